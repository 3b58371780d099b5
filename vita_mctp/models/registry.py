"""Model families by `model_type`: all that the other rooms know of a kind of model. Imported when asked for.

K blocks, L backbone layers, B rows, T positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vita_mctp.errors import ConfigError
from vita_mctp.text.chat import ChatFormat, Clip, Message, PromptStyle, Sample
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import AudioFeatures, HeardAudio, Prompt, Task, Turn

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Of a checkpoint's tensors, by name."""


class SpeechModel(Protocol):
    """What decoding takes: parts that keep no state. A model without blocks has K = 0 and level 0 alone.

    config: with vocab_size, max_position_embeddings, num_backbone_layers (L), num_nextn_predict_layers (K), and the
    head sizes of the caches. generation_config: transformers'.
    """

    config: Any
    generation_config: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def parameters(self) -> Any: ...

    def state_dict(self) -> Any: ...

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> embeddings (B, T, H)."""

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        """embeds with each row's recordings, encoded, at their positions. Raises ConfigError where none is heard."""

    def backbone(
        self, embeds: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """embeds (B, T, H) -> hidden states (B, T, H), layers 0..L-1 of the cache updated."""

    def block(
        self,
        k: int,
        embeds: Tensor,
        previous_hidden: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """embeds and the level below's hidden states, one position before -> hidden states of level k + 1."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., H) of any level -> logits (..., V) of the token after each position."""


class Chat(Protocol):
    """Questions to prompts. `vita_mctp.text.chat:ChatFormat` is VITA-Audio's."""

    def turn(self, task: Task, question: str | Sequence[int] | AudioFeatures) -> Turn:
        """The user's turn: a text to read, or what a recording became. Raises ConfigError for an unknown task."""

    def ask(
        self,
        question: Turn,
        task: Task,
        *,
        voice: Sequence[int] | AudioFeatures | None = None,
        history: Sequence[Turn] = (),
        instructions: str = "",
    ) -> Prompt:
        """All before the answer. instructions: a system text of the user's, beside the model's own."""

    def speech(self, codes: Iterable[int]) -> tuple[int, ...]:
        """Content that is one recording, of a model that hears codes."""

    @property
    def codes(self) -> tuple[int, int]:
        """How many an answer's codec has that is trained on, and its codebooks."""

    def sample(self, messages: Sequence[Message], clips: Sequence[Clip], ratio: Any) -> Sample:
        """A conversation to train on. Raises DataError for one that this model cannot learn from."""


@dataclass(frozen=True, eq=False)
class Speaking:
    """How a model that only writes is made to speak, by a talker (`decoding.talker.TalkerModel`) of its own.

    end_id: of an answer. text_end: (H,) the row that is spoken behind an answer's last one.
    end_row: whether training speaks the hidden state that predicted the end.
    decode: ids to text, special tokens skipped.
    reset_interval: text tokens after which the end of a sentence ends a segment, which forgets all before it.
    """

    talker: Any
    end_id: int
    text_end: Tensor
    decode: Callable[[Sequence[int]], str]
    end_row: bool = False
    reset_interval: int = 50
    usual_speed: ClassVar[int] = 3
    """Tokens a step where the user says nothing: as the authors' scripts."""
    contracts: ClassVar[tuple[str, ...]] = ("reference", "as_trained")
    """Ways to decode, `decoding.talker.Contract`, that a mode may name."""

    @property
    def codebooks(self) -> tuple[int, int]:
        """How many there are, and the codes of each."""
        return 1, self.talker.sizes.num_units


@dataclass(frozen=True, eq=False)
class FrameSpeaking:
    """As `Speaking`, of a talker of several codebooks (`decoding.frames.FrameTalkerModel`).

    fuse: a text token's id and the hidden state (H,) that predicted it -> what the talker reads of it (1, W).
    """

    talker: Any
    fuse: Callable[[int, Tensor], Tensor]
    usual_speed: ClassVar[int] = 1
    """Frames a step: the paper's word error rates are without its MTP layers."""
    contracts: ClassVar[tuple[str, ...]] = ()

    @property
    def codebooks(self) -> tuple[int, int]:
        return self.talker.sizes.num_codebooks, self.talker.sizes.codebook_size


@dataclass(frozen=True)
class ReleasedCodec:
    """A codec's name in `codecs.registry`, and the hub id of its repository; None: the model's own folder."""

    name: str
    hub_id: str | None


@dataclass(frozen=True)
class ModelFamily(ABC):
    """One kind of model. What a subclass does not override is a plain language model's.

    import_model: gives the model's class, which names its configuration's, and imports torch for it, not before.
    audio_frontend, audio_decoder: of its released folders, which have no speech.json; None: there are none.
    input_kind: how a question is heard, as codes or as features, and with it the vocabulary.
    max_history_turns, voice_prompts, channel: of the released models, as in speech.json; settings: its other values.
    """

    import_model: Callable[[], type[Any]]
    input_kind: VocabularyKind
    audio_frontend: ReleasedCodec | None = None
    audio_decoder: ReleasedCodec | None = None
    max_history_turns: int = 0
    voice_prompts: bool = False
    channel: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    shrinks: ClassVar[re.Pattern[str]] = re.compile(r"(?:.*\.)?layers\.\d+\..*_proj")
    """Linear layers that quantisation makes smaller and that adapters sit on."""

    parts: ClassVar[Mapping[str, str]] = {}
    """Modules beside the language model that a recipe may train, by the names it has for them."""

    @property
    def config_class(self) -> type[Any]:
        found: type[Any] = self.model_class.config_class
        return found

    @property
    def model_class(self) -> type[Any]:
        return self.import_model()

    @property
    def hears_features(self) -> bool:
        return self.input_kind is VocabularyKind.CONTINUOUS

    @abstractmethod
    def read_config(self, folder: Path, values: Mapping[str, Any], shapes: Callable[[], Shapes]) -> Any:
        """config.json's values, in the released layout -> the configuration; shapes: for what these do not say.

        Raises CheckpointError or ConfigError for values of a wrong type or out of bounds, and for contradictions.
        """

    def graph_values(self, folder: Path, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """config.json's values, checked as by `read_config`, with what they leave out, for graphs made without torch.

        Raises ConfigError for a family of which there are no such graphs.
        """
        raise ConfigError(f"{type(self).__name__} has no graphs; take its own forward")

    def load_weights(self, folder: Path, config: Any, dtype: torch.dtype, kernel: str) -> Any:
        """The model stored in a folder, every tensor accounted for; weights may stay mapped from their files."""
        return self.model_class.from_pretrained(folder, config=config, dtype=dtype, attn_implementation=kernel)

    def load_tokenizer(self, folder: Path, kind: str | None = None, num_codes: int | None = None) -> TextTokenizer:
        """Text, markers, and the audio vocabulary of `num_codes` codes; None: as the folder's tokenizer has it."""
        return TextTokenizer.from_folder(folder, kind, num_codes)

    def chat(self, tokenizer: TextTokenizer, style: PromptStyle) -> Chat:
        """style: what stands around a spoken question, where the format leaves it open."""
        return ChatFormat(tokenizer, style)

    def speaking(self, model: Any, tokenizer: TextTokenizer) -> Speaking | FrameSpeaking | None:
        """None of a model whose own tokens are codes."""
        return None

    def grow(self, model: Any, num_blocks: int, seed: int) -> None:
        """Appends blocks, in place, until there are so many."""
        if num_blocks != model.config.num_nextn_predict_layers:
            raise ConfigError(f"a {model.config.model_type} model has no blocks to add; leave their number out")

    def new_values(self, hidden_size: int) -> dict[str, Any]:
        """What a new model of this kind has in its config beside the values of a language model of that width."""
        return {}

    def with_encoder(
        self, backbone: Any, encoder: Mapping[str, Tensor], source: Path, seed: int, values: Mapping[str, Any]
    ) -> Any:
        """A new model of this kind: a language model, a released audio encoder's tensors, and what joins them.

        values: of its config, that differ from `new_values`. Raises CheckpointError for tensors, read from `source`,
        that are no such encoder, ConfigError for values that contradict each other.
        """
        raise ConfigError(f"{type(self).__name__} has no audio encoder to join to a language model")

    def is_block_parameter(self, config: Any, name: str) -> bool:
        """Whether a parameter (wrappers' prefixes allowed) is a block's: trained by every stage, at its own rate."""
        return False

    def is_never_trained(self, name: str) -> bool:
        """Whether a parameter stays as it was in every stage."""
        return False

    def forward_options(self, recipe: Any) -> dict[str, Any]:
        """What a recipe says to the model's training forward."""
        return {}

    def inference_mode(self, ratio: Sequence[int]) -> Any:
        """How a model trained with that rhythm decodes by default; None: as its parent."""
        return None

    @abstractmethod
    def resize_vocabulary(self, model: Any, size: int, seed: int) -> None:
        """Gives embeddings and head `size` rows."""

    @abstractmethod
    def flops_per_token(self, config: Any, *, backbone_trains: bool, context: int) -> float:
        """FLOPs that training needs for one token of samples of `context` tokens, without recomputation."""

    def work_beside(self, model: Any) -> str:
        """A line about training's work that no number of tokens says; "" where there is none."""
        return ""

    @abstractmethod
    def activation_bytes(self, config: Any, positions: int) -> int:
        """At least what a training step keeps for its backward pass, layers' insides being computed again."""


_FAMILIES: dict[str, str | ModelFamily] = {
    "qwen2": "vita_mctp.models.vita.family:VITA",  # a plain Qwen2 or Qwen2.5 is VITA's backbone without blocks
    "qwen2_mtp": "vita_mctp.models.vita.family:VITA",
    "qwen2_mtp_sensevoice": "vita_mctp.models.vita.family:VITA_PLUS",
    "omni_speech2s_llama": "vita_mctp.models.vocalnet:VOCALNET_LLAMA",
    "omni_speech2s_qwen": "vita_mctp.models.vocalnet:VOCALNET_QWEN2",
    "omni_speech2s_qwen3": "vita_mctp.models.vocalnet:VOCALNET_QWEN3",
    "nano_vocalnet": "vita_mctp.models.nano_vocalnet:NANO_VOCALNET",
    "vocalnet_m2_qwen2": "vita_mctp.models.vocalnet_m2:M2_QWEN2",
    "vocalnet_m2_qwen3": "vita_mctp.models.vocalnet_m2:M2_QWEN3",
}

TRAINED: dict[str | None, str] = {None: "qwen2_mtp", "sensevoice": "qwen2_mtp_sensevoice"}
"""The `model_type` that training makes, by the name of its audio encoder; None: it hears codes."""

SPOKEN = {
    "vocalnet": {"llama": "omni_speech2s_llama", "qwen2": "omni_speech2s_qwen", "qwen3": "omni_speech2s_qwen3"},
    "vocalnet-m2": {"qwen2": "vocalnet_m2_qwen2", "qwen3": "vocalnet_m2_qwen3"},
}
"""The `model_type` of a talker's model, by the talker's name and that of the language model that writes."""


def is_known(model_type: str) -> bool:
    return model_type in _FAMILIES


def register(model_type: str, family: str | ModelFamily) -> None:
    """Makes a family, or "module:NAME" of one, known under the `model_type` of its config.json."""
    if _FAMILIES.setdefault(model_type, family) != family:
        raise ConfigError(f"the model_type {model_type} already stands for {_FAMILIES[model_type]}; choose another one")


def family_of(model_type: str) -> ModelFamily:
    """Raises ConfigError for an unknown one."""
    found = _FAMILIES.get(model_type)
    if found is None:
        raise ConfigError(f"a {model_type} model; wanted one of {', '.join(_FAMILIES)}")
    if isinstance(found, str):
        module, _, name = found.partition(":")
        family: ModelFamily = getattr(import_module(module), name)
        return family
    return found
