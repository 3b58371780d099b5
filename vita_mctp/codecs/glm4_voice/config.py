"""Sizes and constants of GLM-4-Voice's speech tokenizer and speech decoder.

The fields are those of the released configurations; the many keys of a Whisper that a tokenizer never reads are passed
over. What the released models fix and this code computes in one way only is typed as that one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from vita_mctp.codecs.flow_decoder.config import FlowConfig, HiftConfig, Layers, Rate, Size, agree
from vita_mctp.codecs.released import read_tagged_yaml
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema, read_json

SAMPLE_RATE, HOP_LENGTH = 22050, 256
"""Hz and samples per frame of the mel between flow and HiFT. The reference writes both into its code."""
CONV_STRIDE = 2
"""Log-mel frames per frame of the tokenizer's encoder: its second convolution's stride, which no file names."""

DECODER_FILES = ("config.yaml", "config.json")
"""The released file and the plain one, in the order of looking for them."""
MODEL_FILE, FEATURES_FILE = "config.json", "preprocessor_config.json"
DECODER_REMEDY = "download the whole of THUDM/glm-4-voice-decoder"
TOKENIZER_REMEDY = (
    "download the whole of THUDM/glm-4-voice-tokenizer (1.46 GB, under the GLM-4 model licence): "
    "hf download THUDM/glm-4-voice-tokenizer --local-dir glm-4-voice-tokenizer"
)
_Schema = TypeVar("_Schema", bound=Schema)
_UNUSED = ("llm", "text_encoder_input_size", "llm_input_size", "llm_output_size", "spk_embed_dim")
"""Top-level keys of the decoder's file that only feed its unused language model, or other keys by reference."""


class BlockEncoderConfig(Schema):
    """Conformer blocks without convolutions, attending causally over blocks of `block_size` tokens."""

    input_size: Size
    output_size: Annotated[int, Field(ge=2, le=1 << 14, multiple_of=2)]
    attention_heads: Annotated[int, Field(ge=1, le=256)]
    linear_units: Size
    num_blocks: Layers
    block_size: Size
    dropout_rate: Rate = 0.0
    positional_dropout_rate: Rate = 0.0
    attention_dropout_rate: Rate = 0.0
    normalize_before: Literal[True] = True
    input_layer: Literal["linear"] = "linear"
    pos_enc_layer_type: Literal["rel_pos_espnet"] = "rel_pos_espnet"
    selfattention_layer_type: Literal["block_rel_selfattn"] = "block_rel_selfattn"
    use_cnn_module: Literal[False] = False
    macaron_style: Literal[False] = False


class RegulatorConfig(Schema):
    """Convolutions over the stretched encoder output, one for each ratio."""

    channels: Size
    sampling_ratios: Annotated[tuple[Literal[1], ...], Field(max_length=16)]


class Glm4FlowConfig(FlowConfig):
    """Speech tokens to log-mel frames."""

    encoder: BlockEncoderConfig
    length_regulator: RegulatorConfig

    @model_validator(mode="after")
    def _check_encoder(self) -> Self:
        encoder = self.encoder
        agree(
            (
                ("encoder: input_size", encoder.input_size, self.input_size),
                ("encoder: output_size % attention_heads", encoder.output_size % encoder.attention_heads, 0),
                ("length_regulator: channels", self.length_regulator.channels, self.output_size),
            )
        )
        return self


class DecoderConfig(Schema):
    """Both halves of the decoder."""

    sample_rate: Literal[22050]
    flow: Glm4FlowConfig
    hift: HiftConfig

    @property
    def frame_rate(self) -> Fraction:
        """Tokens per second."""
        return Fraction(self.flow.input_frame_rate)

    @model_validator(mode="after")
    def _check_mel(self) -> Self:
        agree(
            (
                ("hift: sampling_rate", self.hift.sampling_rate, SAMPLE_RATE),
                ("hift: upsample_rates * hop_len", self.hift.hop_length, HOP_LENGTH),
                ("hift: in_channels", self.hift.in_channels, self.flow.output_size),
            )
        )
        return self


class FeatureConfig(Schema, extra="ignore"):
    """Samples -> log-mel frames."""

    sampling_rate: Literal[16_000]
    n_fft: Annotated[int, Field(ge=2, le=1 << 14, multiple_of=2)]
    hop_length: Annotated[int, Field(ge=1, le=1 << 13)]
    feature_size: Annotated[int, Field(ge=1, le=1 << 10)]
    """Mel bands."""
    chunk_length: Annotated[int, Field(ge=1, le=600)]
    """Seconds of a segment; a longer recording is cut into segments that know nothing of each other."""
    padding_side: Literal["right"] = "right"

    @property
    def segment_samples(self) -> int:
        return self.chunk_length * self.sampling_rate


class EncoderConfig(Schema, extra="ignore"):
    """Log-mel frames -> codes."""

    d_model: Annotated[int, Field(ge=1, le=1 << 14)]
    encoder_attention_heads: Annotated[int, Field(ge=1, le=256)]
    encoder_ffn_dim: Size
    num_mel_bins: Annotated[int, Field(ge=1, le=1 << 10)]
    max_source_positions: Annotated[int, Field(ge=1, le=1 << 20)]
    pooling_kernel_size: Annotated[int, Field(ge=1, le=1 << 10)]
    """Encoder frames per code."""
    pooling_position: Layers
    quantize_position: Layers
    """Number of layers, whatever `encoder_layers` says: those behind the quantiser were never released."""
    quantize_vocab_size: Annotated[int, Field(ge=1, le=1 << 20)]
    quantize_causal_block_size: Annotated[int, Field(ge=1, le=1 << 20)]
    """Encoder frames that attend to each other both ways."""
    pooling_type: Literal["avg"] = "avg"
    activation_function: Literal["gelu"] = "gelu"
    scale_embedding: Literal[False] = False
    encoder_causal_convolution: Literal[True] = True
    encoder_causal_attention: Literal[False] = False
    quantize_causal_encoder: Literal[False] = False
    quantize_encoder_only: Literal[True] = True


class TokenizerConfig(Schema):
    """Both halves of the tokenizer, and the rates that follow from them."""

    features: FeatureConfig
    encoder: EncoderConfig

    @property
    def samples_per_frame(self) -> int:
        """Of the encoder."""
        return self.features.hop_length * CONV_STRIDE

    @property
    def samples_per_code(self) -> int:
        return self.samples_per_frame * self.encoder.pooling_kernel_size

    @property
    def frame_rate(self) -> Fraction:
        """Codes per second."""
        return Fraction(self.features.sampling_rate, self.samples_per_code)

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        features, encoder = self.features, self.encoder
        block, pooling = encoder.quantize_causal_block_size, encoder.pooling_kernel_size
        positions = features.segment_samples // self.samples_per_frame
        agree(
            (
                ("feature_size", features.feature_size, encoder.num_mel_bins),
                ("pooling_position", encoder.pooling_position, encoder.quantize_position),
                ("d_model % encoder_attention_heads", encoder.d_model % encoder.encoder_attention_heads, 0),
                ("quantize_causal_block_size % pooling_kernel_size", block % pooling, 0),
                ("samples per segment % samples per code", features.segment_samples % self.samples_per_code, 0),
                ("max_source_positions", encoder.max_source_positions, max(positions, encoder.max_source_positions)),
                ("hop_length", features.hop_length, min(features.hop_length, features.n_fft // 2)),
            )
        )
        return self


def load_decoder_config(folder: Path) -> DecoderConfig:
    """Reads `config.yaml` as released, or else `config.json`, of a decoder's folder.

    Raises CheckpointError: there is neither, or it is not that of such a decoder; the message names the key.
    """
    path = next((folder / name for name in DECODER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder} has neither {' nor '.join(DECODER_FILES)}; wanted a GLM-4-Voice decoder: {DECODER_REMEDY}"
        )
    return parse_decoder_config(read_tagged_yaml(path), str(path))


def parse_decoder_config(values: Mapping[str, Any], where: str = "decoder config") -> DecoderConfig:
    """Nested mappings -> DecoderConfig. Raises CheckpointError on unknown, missing, ill-typed or contradictory keys."""
    used = {key: value for key, value in values.items() if key not in _UNUSED and not str(key).startswith("__")}
    return _parse(DecoderConfig, used, where, "THUDM/glm-4-voice-decoder")


def load_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Reads `config.json` and `preprocessor_config.json` of a tokenizer's folder.

    Raises CheckpointError: one is missing, damaged, or not that of such a tokenizer; the message names the key.
    """
    try:
        model, features = read_json(folder / MODEL_FILE), read_json(folder / FEATURES_FILE)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {TOKENIZER_REMEDY}") from None
    return parse_tokenizer_config(model, features, str(folder))


def parse_tokenizer_config(model: Any, features: Any, where: str = "tokenizer config") -> TokenizerConfig:
    """Released mappings -> TokenizerConfig. Raises CheckpointError on missing, ill-typed or contradictory keys."""
    return _parse(TokenizerConfig, {"encoder": model, "features": features}, where, "THUDM/glm-4-voice-tokenizer")


def _parse(schema: type[_Schema], values: object, where: str, repository: str) -> _Schema:
    try:
        return schema.parse(values, where, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (only {repository} and its like can be loaded)") from None
