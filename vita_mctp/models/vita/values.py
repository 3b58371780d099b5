"""What a config.json of the family may say, in the released checkpoints' own terms; nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from vita_mctp.schema import Depth, Schema, Width

DType = Literal["float64", "float32", "bfloat16", "float16"]
Rate = Annotated[float, Field(ge=0, le=1)]

MODEL_TYPE, PLUS_MODEL_TYPE = "qwen2_mtp", "qwen2_mtp_sensevoice"
ENCODER_PREFIX = "model.audio_model.model."
"""Of the audio encoder's tensors in a VITA-Audio-Plus checkpoint."""

_DECODER_LAYER = re.compile(r"(?:^|\.)model\.layers\.(\d+)\.")
_MCTP_MODULE = re.compile(r"(?:^|\.)mtp_(?:projs|embed_norms|hidden_norms)\.")


class RopeValues(Schema):
    """Of rotary positions; a kind's own factors pass."""

    model_config = ConfigDict(extra="ignore")

    rope_type: Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"] = "default"
    rope_theta: Annotated[float, Field(gt=0, le=1e12)] | None = None


class ConfigValues(Schema):
    """Bounds on what a config.json says of a backbone and its blocks; transformers' own keys beside these pass."""

    model_config = ConfigDict(extra="ignore")

    vocab_size: Annotated[int, Field(ge=1, le=1 << 24)] = 151936
    hidden_size: Width = 4096
    intermediate_size: Width = 22016
    num_hidden_layers: Depth = 32
    num_attention_heads: Depth = 32
    num_key_value_heads: Depth | None = 32
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=1000)] = 1
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 30)] = 32768
    rms_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    initializer_range: Rate = 0.02
    attention_dropout: Rate = 0.0
    mtp_loss_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    tie_word_embeddings: bool = False
    speech_token_offset: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    pad_token_id: Annotated[int, Field(ge=0)] | None = None
    rope_theta: Annotated[float, Field(gt=0, le=1e12)] | None = None
    rope_parameters: RopeValues | None = None
    rope_scaling: RopeValues | None = None
    layer_types: tuple[Literal["full_attention"], ...] | None = None
    hidden_act: Literal["silu", "gelu", "gelu_new", "relu"] = "silu"
    dtype: DType | None = None
    torch_dtype: DType | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        size, heads, keys = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if size % (2 * heads) or heads % (keys or heads):
            raise ValueError(
                f"hidden_size {size}, num_attention_heads {heads}, num_key_value_heads {keys}; wanted heads of even "
                "size that share out hidden_size, and keys that share out the heads"
            )
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers, num_hidden_layers is another number")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is no id below vocab_size {self.vocab_size}")
        return self


class SenseVoiceSizes(Schema):
    """Sizes of an audio encoder, named as FunASR names them; defaults: SenseVoiceSmall."""

    input_size: Width = 560
    output_size: Width = 512
    attention_heads: Depth = 4
    linear_units: Width = 2048
    num_blocks: Depth = 50
    tp_blocks: Annotated[int, Field(ge=0, le=4096)] = 20
    kernel_size: Width = 11
    ctc_size: Width = 25055

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.output_size % self.attention_heads:
            raise ValueError(f"{self.attention_heads} attention heads do not divide {self.output_size} channels")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is even; wanted an odd one")
        return self

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> SenseVoiceSizes:
        """The sizes of an encoder whose tensors, under this module's names, have these shapes.

        Released configs do not say them. The number of heads leaves no trace in a shape and is SenseVoiceSmall's.

        Raises:
            KeyError, IndexError: a tensor that says a size is missing or misshapen.
        """
        first = "encoder.encoders0.0"
        return cls(
            input_size=shapes["embed.weight"][1],
            output_size=shapes[f"{first}.self_attn.linear_out.weight"][0],
            linear_units=shapes[f"{first}.feed_forward.w_1.weight"][0],
            num_blocks=1 + _num_layers(shapes, "encoder.encoders"),
            tp_blocks=_num_layers(shapes, "encoder.tp_encoders"),
            kernel_size=shapes[f"{first}.self_attn.fsmn_block.weight"][2],
            ctc_size=shapes["ctc.ctc_lo.weight"][0],
        )


def _num_layers(shapes: Mapping[str, Sequence[int]], stack: str) -> int:
    numbers = (re.match(rf"{re.escape(stack)}\.(\d+)\.", name) for name in shapes)
    return max((int(number.group(1)) + 1 for number in numbers if number), default=0)


def is_mctp_parameter(config: Any, name: str) -> bool:
    """Whether the parameter `name` (as `named_parameters` gives it, wrappers' prefixes allowed) is an MCTP block's."""
    layer = _DECODER_LAYER.search(name)
    if layer is not None:
        return int(layer.group(1)) >= config.num_backbone_layers
    return _MCTP_MODULE.search(name) is not None
