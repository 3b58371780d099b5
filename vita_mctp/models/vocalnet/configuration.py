"""VocalNet's configurations, with the flat keys of the released folders.

The released folders name files of their authors' machines (`speech_encoder`, `speech_generator_config`), which are
never followed: the encoder's weights are in the folder, its sizes are read from them, and its heads, which no tensor
shows, are Whisper's 64 wide, or those of a `speech_encoder_config.json` beside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, WhisperConfig

from vita_mctp.errors import CheckpointError, ConfigError, VitaError
from vita_mctp.models.vocalnet.sizes import Predictor, TalkerSizes
from vita_mctp.schema import Depth, Schema, Width

ENCODER_PREFIX = "model.speech_encoder."
"""Of the audio encoder's tensors in a checkpoint."""
ENCODER_FILE = "speech_encoder_config.json"

_HEAD_WIDTH = 64
_LAYER = re.compile(r"layers\.(\d+)\.")


class EncoderSizes(Schema):
    """Of a Whisper encoder, in transformers' names."""

    model_config = ConfigDict(extra="ignore")

    d_model: Width
    encoder_layers: Depth
    encoder_attention_heads: Depth
    encoder_ffn_dim: Width
    num_mel_bins: Width = 128
    max_source_positions: Width = 1500

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.d_model % self.encoder_attention_heads:
            raise ValueError(f"width {self.d_model} over {self.encoder_attention_heads} heads; wanted a divisor of it")
        return self

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]], folder: Path) -> EncoderSizes:
        """Of a checkpoint's tensors; CheckpointError for a folder without an encoder."""
        encoder = {
            name.removeprefix(ENCODER_PREFIX): s for name, s in shapes.items() if name.startswith(ENCODER_PREFIX)
        }
        try:
            width, bands, _ = encoder["conv1.weight"]
            positions = encoder["embed_positions.weight"][0]
            inner = encoder["layers.0.fc1.weight"][0]
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{folder} has no whole Whisper encoder ({error}); wanted {ENCODER_PREFIX}*: download it again"
            ) from None
        layers = 1 + max(int(found.group(1)) for name in encoder if (found := _LAYER.match(name)))
        sizes = {
            "d_model": width,
            "encoder_layers": layers,
            "encoder_attention_heads": max(1, width // _HEAD_WIDTH),
            "encoder_ffn_dim": inner,
            "num_mel_bins": bands,
            "max_source_positions": positions,
        }
        if (beside := folder / ENCODER_FILE).is_file():
            sizes["encoder_attention_heads"] = cls.read_json(beside).encoder_attention_heads
        return cls.parse(sizes, str(folder), CheckpointError)

    def whisper(self) -> WhisperConfig:
        return WhisperConfig(**self.model_dump(), attn_implementation="sdpa")


class ThinkerValues(Schema):
    """What a config.json says of the encoder, beside its thinker's own keys, which pass; a subclass adds `talker`."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: Width
    speech_encoder_type: Literal["whisper"] = "whisper"
    speech_projector_type: Literal["linear"] = "linear"
    speech_encoder_ds_rate: Annotated[int, Field(ge=1, le=100)] = 5
    encoder_sizes: EncoderSizes | None = None

    @property
    def codes(self) -> tuple[int, int]:
        """How many the talker has, and its codebooks."""
        raise NotImplementedError


class SpeechValues(ThinkerValues):
    """And of VocalNet's talker."""

    llm_hidden_size: Width | None = None
    speech_generator_type: Literal["ar_mtp"] = "ar_mtp"
    speech_predictor: Predictor = "vocalnet"
    """Ours; released models have VocalNet's."""
    decoder_ffn_dim: Width
    decoder_num_heads: Depth
    decoder_num_layers: Depth
    decoder_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    encoder_num_layers: Depth
    mtp_num: Annotated[int, Field(ge=0, le=1000)]
    unit_vocab_size: Width
    special_tokens: Literal[4] = 4
    speech_bos_token_id: int
    speech_sos_token_id: int
    speech_eos_token_id: int
    speech_padding_token_id: int
    txt_token_num: Width = 5
    speech_token_num: Width = 15

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.llm_hidden_size not in (None, self.hidden_size):
            raise ValueError(
                f"the talker is {self.llm_hidden_size} wide and the thinker {self.hidden_size}; wanted one width: they "
                "are not of one model"
            )
        ids = [self.speech_bos_token_id, self.speech_sos_token_id]
        ids += [self.speech_eos_token_id, self.speech_padding_token_id]
        units = self.unit_vocab_size
        if ids != list(range(units, units + len(ids))):
            raise ValueError(f"special speech ids {ids}; wanted the four behind the {units} units")
        return self

    @property
    def codes(self) -> tuple[int, int]:
        return self.unit_vocab_size, 1

    @property
    def talker(self) -> TalkerSizes:
        """Raises ConfigError for sizes that contradict each other."""
        sizes = {
            "hidden_size": self.hidden_size,
            "ffn_size": self.decoder_ffn_dim,
            "num_heads": self.decoder_num_heads,
            "projector_layers": self.encoder_num_layers,
            "backbone_layers": self.decoder_num_layers,
            "predictor": self.speech_predictor,
            "mtp_levels": self.mtp_num,
            "num_units": self.unit_vocab_size,
            "dropout": self.decoder_dropout,
            "text_chunk": self.txt_token_num,
            "speech_chunk": self.speech_token_num,
        }
        return TalkerSizes.parse(sizes, "the talker")


class ThinkerConfig:
    """What the configurations of all thinkers add; the engine runs a thinker as a model without blocks."""

    num_nextn_predict_layers = 0
    speech_values: ClassVar[type[ThinkerValues]] = SpeechValues

    @property
    def num_backbone_layers(self) -> int:
        return self.num_hidden_layers  # type: ignore[attr-defined]

    @property
    def speech(self) -> Any:
        """Values of the class `speech_values`. Raises ConfigError for a value out of bounds."""
        return self.read_speech(self.to_dict(), self.model_type)  # type: ignore[attr-defined]

    @classmethod
    def read_speech(cls, values: Mapping[str, Any], where: str, error: type[VitaError] = ConfigError) -> Any:
        """Of a config.json's values. Raises `error` as `Schema.parse`, ConfigError for sizes of a talker."""
        kind = cls.speech_values
        found: Any = kind.parse({name: values[name] for name in kind.model_fields if name in values}, where, error)
        found.talker  # noqa: B018 (its own bounds)
        return found


class VocalNetLlamaConfig(ThinkerConfig, LlamaConfig):
    model_type = "omni_speech2s_llama"


class VocalNetQwen2Config(ThinkerConfig, Qwen2Config):
    model_type = "omni_speech2s_qwen"


class VocalNetQwen3Config(ThinkerConfig, Qwen3Config):
    model_type = "omni_speech2s_qwen3"
