"""Sizes and constants of the GLM-4-Voice speech tokenizer: a Whisper encoder cut short by a quantiser.

The fields are those of the released `config.json` and `preprocessor_config.json`; the many keys of a Whisper that a
tokenizer never reads are passed over. What the released model fixes and this code computes in one way only is typed as
that one value, so that a tokenizer of another make is refused and not misread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.strict import build_strict

MODEL_FILE, FEATURES_FILE = "config.json", "preprocessor_config.json"
CONV_STRIDE = 2
"""Log-mel frames per encoder frame; the second convolution's stride, which no configuration names."""
REPOSITORY = "THUDM/glm-4-voice-tokenizer"
HOW_TO_GET = (
    f"download the whole of {REPOSITORY} (1.46 GB, under the GLM-4 model licence): "
    f"hf download {REPOSITORY} --local-dir glm-4-voice-tokenizer"
)


@dataclass(frozen=True)
class FeatureConfig:
    """Samples -> log-mel frames."""

    sampling_rate: int
    n_fft: int
    hop_length: int
    feature_size: int
    """Mel bands."""
    chunk_length: int
    """Seconds of a segment; a longer recording is cut into segments that know nothing of each other."""
    padding_side: Literal["right"] = "right"

    @property
    def segment_samples(self) -> int:
        return self.chunk_length * self.sampling_rate


@dataclass(frozen=True)
class EncoderConfig:
    """Log-mel frames -> codes."""

    d_model: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int
    pooling_kernel_size: int
    """Encoder frames per code."""
    pooling_position: int
    quantize_position: int
    """Number of layers, whatever `encoder_layers` says: those behind the quantiser were never released."""
    quantize_vocab_size: int
    quantize_causal_block_size: int
    """Encoder frames that attend to each other both ways."""
    pooling_type: Literal["avg"] = "avg"
    activation_function: Literal["gelu"] = "gelu"
    scale_embedding: Literal[False] = False
    encoder_causal_convolution: Literal[True] = True
    encoder_causal_attention: Literal[False] = False
    quantize_causal_encoder: Literal[False] = False
    quantize_encoder_only: Literal[True] = True


@dataclass(frozen=True)
class TokenizerConfig:
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
    def samples_per_block(self) -> int:
        return self.samples_per_frame * self.encoder.quantize_causal_block_size

    @property
    def codes_per_block(self) -> int:
        return self.encoder.quantize_causal_block_size // self.encoder.pooling_kernel_size

    @property
    def frame_rate(self) -> Fraction:
        """Codes per second."""
        return Fraction(self.features.sampling_rate, self.samples_per_code)


def load_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Reads `config.json` and `preprocessor_config.json` of a tokenizer's folder.

    Raises:
        CheckpointError: one is missing, damaged, or not that of such a tokenizer; the message names the key.
    """
    return parse_tokenizer_config(_read(folder / MODEL_FILE), _read(folder / FEATURES_FILE), str(folder))


def parse_tokenizer_config(
    model: Mapping[str, Any], features: Mapping[str, Any], where: str = "tokenizer config"
) -> TokenizerConfig:
    """Released mappings -> TokenizerConfig. Raises CheckpointError on missing, ill-typed or contradictory keys."""
    try:
        config = TokenizerConfig(
            _build(FeatureConfig, features, f"{where}: {FEATURES_FILE}"),
            _build(EncoderConfig, model, f"{where}: {MODEL_FILE}"),
        )
        _check_agreement(config, where)
    except ConfigError as error:
        raise CheckpointError(f"{error} (only {REPOSITORY} and tokenizers of its make can be loaded)") from error
    return config


def _build(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    return build_strict(cls, {field.name: values[field.name] for field in fields(cls) if field.name in values}, where)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}, so it is no GLM-4-Voice tokenizer: {HOW_TO_GET}")
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}), a JSON object is wanted: {HOW_TO_GET}") from None


def _check_agreement(config: TokenizerConfig, where: str) -> None:
    features, encoder = config.features, config.encoder
    positions = features.segment_samples // config.samples_per_frame
    for key, came, wanted in (
        ("feature_size", features.feature_size, encoder.num_mel_bins),
        ("pooling_position", encoder.pooling_position, encoder.quantize_position),
        ("d_model % encoder_attention_heads", encoder.d_model % encoder.encoder_attention_heads, 0),
        ("quantize_causal_block_size % pooling_kernel_size", _remainder(encoder), 0),
        ("samples per segment % samples per code", features.segment_samples % config.samples_per_code, 0),
        ("max_source_positions", encoder.max_source_positions, max(positions, encoder.max_source_positions)),
    ):
        if came != wanted:
            raise ConfigError(f"{where}: {key} is {came}, but the rest of the configuration wants {wanted}")


def _remainder(encoder: EncoderConfig) -> int:
    return encoder.quantize_causal_block_size % encoder.pooling_kernel_size
