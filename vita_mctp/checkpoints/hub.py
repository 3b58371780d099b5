"""Repositories of the Hugging Face hub as local folders, or one line that says why not and what to do.

What is in the local cache is never asked for again. `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_HOME` are huggingface_hub's
own settings and work here too; a download that was cut off goes on where it stopped.

Sizes and terms of the released repositories are what could be confirmed, and say so where they could not; a
repository's own page decides.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vita_mctp.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SHARD_INDEX = "model.safetensors.index.json"

Alternatives = tuple[str, ...]
"""File names of which one is enough."""

WEIGHTS: Alternatives = ("model.safetensors", "model.safetensors.index.json")
MODEL_FILES: tuple[Alternatives, ...] = (("config.json",), ("tokenizer.json",), WEIGHTS)
"""What every model folder holds; its codecs are its own or others' folders."""

MODEL_PATTERNS = ("*.safetensors", "*.json", "*.txt", "codec/*", "*.wav")
"""What is fetched of a model: weights in safetensors, never pickled ones; configuration; tokenizer."""

TOKENIZER_FILES: tuple[Alternatives, ...] = (("config.json",), ("preprocessor_config.json",), ("model.safetensors",))
FLOW_FILES: tuple[Alternatives, ...] = (("flow.safetensors", "flow.pt"), ("hift.safetensors", "hift.pt"))
DECODER_FILES: tuple[Alternatives, ...] = (("config.yaml", "config.json"), *FLOW_FILES)
FRONT_END_FILES: tuple[Alternatives, ...] = (("am.mvn",),)


@dataclass(frozen=True)
class Repository:
    """required: for each entry, one of its names is repo. patterns: what is fetched."""

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
        """The command, what it fetches, how much, and on which terms."""
        patterns = "" if self.patterns == MODEL_PATTERNS else "".join(f" {pattern}" for pattern in self.patterns)
        return f"hf download {self.id}{patterns} ({self.what}, {self.size}; {self.terms})"


def missing_files(present: Iterable[str], required: Iterable[Alternatives]) -> list[str]:
    """The first name of each entry of which no file is there."""
    names = set(present)
    return [alternatives[0] for alternatives in required if names.isdisjoint(alternatives)]


_VITA_TERMS = "the code's licence allows academic use only; terms of the weights not confirmed, read its page"
_GLM_TERMS = "GLM-4 model licence"


def _model(id: str, what: str, size: str, terms: str = _VITA_TERMS) -> Repository:
    size = f"about {size} GB, computed from its configuration in bfloat16"
    return Repository(id, what, size, terms, MODEL_FILES, MODEL_PATTERNS)


_7B = "language model of 7B"
_GLM = "THUDM/glm-4-voice"
_TOKENIZER_PATTERNS, _DECODER_PATTERNS = ("*.json", "*.safetensors"), ("config.yaml", "flow.pt", "hift.pt")
AUDIO_TOKENIZER = Repository(
    f"{_GLM}-tokenizer", "speech to codes", "1.46 GB", _GLM_TERMS, TOKENIZER_FILES, _TOKENIZER_PATTERNS
)
AUDIO_DECODER = Repository(f"{_GLM}-decoder", "codes to speech", "527 MB", _GLM_TERMS, DECODER_FILES, _DECODER_PATTERNS)
FRONT_END = Repository(
    "FunAudioLLM/SenseVoiceSmall",
    "feature statistics of what VITA-Audio-Plus hears with; its encoder is in the language model's own weights",
    "one small file of a repository of 0.94 GB",
    "its page says model-license",
    FRONT_END_FILES,
    ("am.mvn",),
)
COSYVOICE2 = Repository(
    "FunAudioLLM/CosyVoice2-0.5B",
    "codes to speech, and two models that read a voice",
    "about 1.06 GB, computed from its networks, one of which is not known",
    "Apache-2.0",
    FLOW_FILES,
    ("flow.pt", "hift.pt", "speech_tokenizer_v2.onnx", "campplus.onnx"),
)
XY_TOKENIZER = Repository(
    "fdugyt/XY_Tokenizer",
    "speech to eight codes and back",
    "about 2.1 GB, computed from its networks",
    "Apache-2.0",
    (("model.safetensors", "xy_tokenizer.ckpt"),),
    ("xy_tokenizer.ckpt",),
)

_LLAMA_TERMS = "Apache-2.0, and Meta's Llama licence for the base weights"
_MODELS = (
    _model("VITA-MLLM/VITA-Audio-Boost", f"{_7B} and ten MCTP blocks, hears codes", "20.6"),
    _model("VITA-MLLM/VITA-Audio-Balance", f"{_7B} and ten MCTP blocks, hears codes", "20.6"),
    _model("VITA-MLLM/VITA-Audio-Plus-Vanilla", f"{_7B}, hears through SenseVoice", "21.1"),
    _model("VITA-MLLM/VITA-Audio-Plus-Boost", f"{_7B}, hears through SenseVoice", "21.1"),
    _model("VocalNet/VocalNet-1B", "VocalNet on Llama 3.2 of 1B, hears through Whisper", "5.4", _LLAMA_TERMS),
    _model("VocalNet/VocalNet-8B", "VocalNet on Llama 3.1 of 8B, hears through Whisper", "23.7", _LLAMA_TERMS),
    _model("VocalNet/VocalNet-qwen25-7B", "VocalNet on Qwen2.5 of 7B, hears through Whisper", "21.4", "Apache-2.0"),
)
_CODECS = (AUDIO_TOKENIZER, AUDIO_DECODER, FRONT_END, COSYVOICE2, XY_TOKENIZER)
RELEASED = {each.id: each for each in (*_MODELS, *_CODECS)}


def repository(hub_id: str) -> Repository:
    """What is known of a hub id; of an unknown one, that it holds a model."""
    unknown = Repository(hub_id, "not one of the released", "size unknown", "see its page", MODEL_FILES, MODEL_PATTERNS)
    return RELEASED.get(hub_id, unknown)


def fetch(repo: Repository) -> Path:
    """The folder of a repository: out of the local cache, or downloaded into it.

    Raises:
        CheckpointError: it cannot be had, or is half downloaded and the rest cannot be had.
        ConfigError: the hub id cannot be one.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        folder = _in_cache(repo)
        if folder is None or absent(folder, repo):
            folder = _download(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo.id!r} is no hub id: {_one_line(error)}; give owner/name") from None
    if lacking := absent(folder, repo):
        raise CheckpointError(
            f"{repo.id} is half downloaded: {folder} lacks {_some(lacking)}; go on with: {repo.how_to_get}"
        )
    return folder


def absent(folder: Path, repo: Repository) -> list[str]:
    """Files that a folder lacks to be a copy of `repo`, shards that its index names included."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    lacking = missing_files(names, repo.required)
    if _SHARD_INDEX in names and "model.safetensors" not in names:
        broken = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
        with contextlib.suppress(*broken):  # which the loader names
            placed = json.loads((folder / _SHARD_INDEX).read_bytes())["weight_map"]
            lacking += sorted({Path(name).name for name in placed.values()} - names)
    return lacking


def _in_cache(repo: Repository) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(repo.id, allow_patterns=list(repo.patterns), local_files_only=True))
    return None


def _download(repo: Repository) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    transport_error = cast("type[Exception]", HfHubHTTPError.__mro__[1])  # of huggingface_hub's HTTP library
    try:
        return Path(snapshot_download(repo.id, allow_patterns=list(repo.patterns)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_unreachable(repo)) from error
    except HfHubHTTPError as error:
        raise CheckpointError(_refused(repo, error)) from error
    except (OSError, transport_error) as error:
        raise CheckpointError(
            f"the download of {repo.id} stopped ({_one_line(error)}); it goes on with: {repo.how_to_get}"
        ) from error


def _unreachable(repo: Repository) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub cannot be reached"
    return (
        f"{repo.id} is neither a folder here nor whole in the Hugging Face cache, and {why}; "
        f"get it where there is a network with: {repo.how_to_get}"
    )


def _refused(repo: Repository, error: HfHubHTTPError) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"{repo.id} is gated: accept its terms at https://huggingface.co/{repo.id}, log in with: "
            f"hf auth login, and then: {repo.how_to_get}"
        )
    if isinstance(error, RepositoryNotFoundError) or error.response.status_code == 401:
        return (
            f"{repo.id} is neither a folder here nor a public repository of the hub; check the name, or, if it is "
            f"private, log in with: hf auth login, and then: {repo.how_to_get}"
        )
    return f"the hub refuses {repo.id} ({_one_line(error)}); try again later with: {repo.how_to_get}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
