"""The released repositories: what each is for, its size, its terms, and the files of it that are read.

Sizes and terms are what could be confirmed, and say so where they could not; a repository's own page decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Alternatives = tuple[str, ...]
"""File names of which one is enough."""

WEIGHTS: Alternatives = ("model.safetensors", "model.safetensors.index.json")
MODEL_FILES: tuple[Alternatives, ...] = (("config.json",), ("tokenizer.json",), WEIGHTS)
"""What every model folder holds; its codecs are its own or others' folders."""

MODEL_PATTERNS = ("*.safetensors", "*.json", "*.txt", "codec/*", "*.wav")
"""What is fetched of a model: weights in safetensors, never pickled ones; configuration; tokenizer."""

TOKENIZER_FILES: tuple[Alternatives, ...] = (("config.json",), ("preprocessor_config.json",), ("model.safetensors",))
DECODER_FILES: tuple[Alternatives, ...] = (
    ("config.yaml", "config.json"),
    ("flow.safetensors", "flow.pt"),
    ("hift.safetensors", "hift.pt"),
)
FRONT_END_FILES: tuple[Alternatives, ...] = (("am.mvn",),)


@dataclass(frozen=True)
class Repository:
    """required: for each entry, one of its names is wanted. patterns: what is fetched."""

    id: str
    what: str
    size: str
    terms: str
    required: tuple[Alternatives, ...]
    patterns: tuple[str, ...]

    @property
    def name(self) -> str:
        """The part behind the owner, by which a local copy is looked for."""
        return self.id.partition("/")[2]

    @property
    def how_to_get(self) -> str:
        """One clause: the command, what it fetches, how much, and on which terms."""
        wanted = "" if self.patterns == MODEL_PATTERNS else "".join(f" {pattern}" for pattern in self.patterns)
        return f"hf download {self.id}{wanted} ({self.what}, {self.size}; {self.terms})"


def missing_files(present: Iterable[str], required: Iterable[Alternatives]) -> list[str]:
    """The first name of each entry of which no file is there."""
    names = set(present)
    return [alternatives[0] for alternatives in required if names.isdisjoint(alternatives)]


_VITA_TERMS = "the code's licence allows academic use only; terms of the weights not confirmed, read its page"
_GLM_TERMS = "GLM-4 model licence"
_LARGE = "about 20.6 GB, computed from its configuration in bfloat16"
_LARGE_PLUS = "about 21.1 GB, computed from its configuration in bfloat16"


def _model(name: str, what: str, size: str) -> Repository:
    return Repository(f"VITA-MLLM/{name}", what, size, _VITA_TERMS, MODEL_FILES, MODEL_PATTERNS)


BOOST = _model("VITA-Audio-Boost", "language model of 7B and ten MCTP blocks, hears codes", _LARGE)
BALANCE = _model("VITA-Audio-Balance", "language model of 7B and ten MCTP blocks, hears codes", _LARGE)
PLUS_VANILLA = _model("VITA-Audio-Plus-Vanilla", "language model of 7B, hears through SenseVoice", _LARGE_PLUS)
PLUS_BOOST = _model("VITA-Audio-Plus-Boost", "language model of 7B, hears through SenseVoice", _LARGE_PLUS)
AUDIO_TOKENIZER = Repository(
    "THUDM/glm-4-voice-tokenizer",
    "speech to codes",
    "1.46 GB",
    _GLM_TERMS,
    TOKENIZER_FILES,
    ("*.json", "*.safetensors"),
)
AUDIO_DECODER = Repository(
    "THUDM/glm-4-voice-decoder",
    "codes to speech",
    "527 MB",
    _GLM_TERMS,
    DECODER_FILES,
    ("config.yaml", "flow.pt", "hift.pt"),
)
FRONT_END = Repository(
    "FunAudioLLM/SenseVoiceSmall",
    "feature statistics of what VITA-Audio-Plus hears with; its encoder is in the language model's own weights",
    "one small file of a repository of 0.94 GB",
    "its page says model-license",
    FRONT_END_FILES,
    ("am.mvn",),
)

RELEASED = {
    repository.id: repository
    for repository in (BOOST, BALANCE, PLUS_VANILLA, PLUS_BOOST, AUDIO_TOKENIZER, AUDIO_DECODER, FRONT_END)
}
