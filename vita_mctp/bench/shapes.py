"""Sizes to draw random models in: Qwen2.5's as VITA-Audio has them, with ten MCTP blocks, and the released codec's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_mctp.codecs.glm4_voice.config import (
    DecoderConfig,
    TokenizerConfig,
    parse_decoder_config,
    parse_tokenizer_config,
)
from vita_mctp.errors import ConfigError
from vita_mctp.models.vita.configuration import VitaMctpConfig

BLOCKS = 10
_RELEASED_VOCABULARY = 168_072
_POSITIONS = 32_768

_LANGUAGE_MODELS: Mapping[str, Mapping[str, Any]] = {
    "nano": {
        "vocab_size": 1968,
        "hidden_size": 224,
        "intermediate_size": 448,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "72b": {
        "hidden_size": 8192,
        "intermediate_size": 29_568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
"""By name; layers are the backbone's."""

LANGUAGE_MODELS = tuple(_LANGUAGE_MODELS)

_RESBLOCK = [1, 3, 5]
_DECODER: Mapping[str, Any] = {
    "sample_rate": 22_050,
    "flow": {
        "input_size": 512,
        "output_size": 80,
        "spk_embed_dim": 192,
        "vocab_size": 16_384,
        "input_frame_rate": 12.5,
        "encoder": {
            "input_size": 512,
            "output_size": 512,
            "attention_heads": 8,
            "linear_units": 2048,
            "num_blocks": 6,
            "block_size": 10,
        },
        "length_regulator": {"channels": 80, "sampling_ratios": [1, 1, 1, 1]},
        "decoder": {
            "in_channels": 240,
            "n_spks": 1,
            "spk_emb_dim": 80,
            "cfm_params": {"inference_cfg_rate": 0.7},
            "estimator": {
                "in_channels": 320,
                "out_channels": 80,
                "channels": [256, 256],
                "attention_head_dim": 64,
                "n_blocks": 4,
                "num_mid_blocks": 12,
                "num_heads": 8,
            },
        },
    },
    "hift": {
        "in_channels": 80,
        "base_channels": 512,
        "nb_harmonics": 8,
        "sampling_rate": 22_050,
        "nsf_alpha": 0.1,
        "nsf_sigma": 0.003,
        "nsf_voiced_threshold": 10,
        "upsample_rates": [8, 8],
        "upsample_kernel_sizes": [16, 16],
        "istft_params": {"n_fft": 16, "hop_len": 4},
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [_RESBLOCK] * 3,
        "source_resblock_kernel_sizes": [7, 11],
        "source_resblock_dilation_sizes": [_RESBLOCK] * 2,
        "lrelu_slope": 0.1,
        "audio_limit": 0.99,
        "f0_predictor": {"num_class": 1, "in_channels": 80, "cond_channels": 512},
    },
}

_SMALL: Mapping[str, Any] = {
    "flow": {
        "input_size": 96,
        "encoder": {"input_size": 96, "output_size": 96, "attention_heads": 4, "linear_units": 256, "num_blocks": 2},
        "decoder": {
            "estimator": {
                "channels": [64, 64],
                "attention_head_dim": 32,
                "n_blocks": 1,
                "num_mid_blocks": 2,
                "num_heads": 2,
            }
        },
    },
    "hift": {"base_channels": 64, "f0_predictor": {"cond_channels": 64}},
}
"""What differs in a decoder narrow enough to be studied over long answers on a CPU: widths and depths, no rate."""

_TOKENIZER: Mapping[str, Any] = {
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "pooling_kernel_size": 4,
    "pooling_position": 16,
    "quantize_position": 16,
    "quantize_vocab_size": 16_384,
    "quantize_causal_block_size": 200,
}
_FEATURES: Mapping[str, Any] = {
    "sampling_rate": 16_000,
    "n_fft": 400,
    "hop_length": 160,
    "feature_size": 128,
    "chunk_length": 30,
}


def language_model(name: str) -> VitaMctpConfig:
    """Raises ConfigError for a size that is not known."""
    if name not in _LANGUAGE_MODELS:
        raise ConfigError(f"unknown size {name!r} of a random language model; known: {', '.join(_LANGUAGE_MODELS)}")
    values = {"vocab_size": _RELEASED_VOCABULARY, "rope_theta": 1e6} | dict(_LANGUAGE_MODELS[name])
    values["num_hidden_layers"] += BLOCKS
    return VitaMctpConfig(num_nextn_predict_layers=BLOCKS, max_position_embeddings=_POSITIONS, **values)


def glm4_voice_decoder(small: bool = False) -> DecoderConfig:
    """small: with every rate and window of the released one, and a few hundredths of its arithmetic."""
    return parse_decoder_config(_merged(_DECODER, _SMALL) if small else _DECODER)


def glm4_voice_tokenizer() -> TokenizerConfig:
    return parse_tokenizer_config(_TOKENIZER, _FEATURES)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _merged(values[key], change) for key, change in changes.items() if isinstance(change, Mapping)}
    return {**values, **changes, **nested}
