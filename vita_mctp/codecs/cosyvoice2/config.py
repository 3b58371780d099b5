"""Sizes of CosyVoice2's flow and HiFT.

The released folder's yaml is not read: it mixes them with code to run, and VocalNet overrides its chunk sizes. A folder
without `config.json` is taken for CosyVoice2-0.5B, and its tensors must have that model's shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vita_mctp.codecs.flow_decoder.config import FlowConfig, HiftConfig, Layers, Size, agree
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema, read_json

CONFIG_FILE, VOICE_FILE = "config.json", "voice.safetensors"
REMEDY = "download flow.pt and hift.pt of FunAudioLLM/CosyVoice2-0.5B (533 MB, Apache-2.0)"
FRAMES_PER_CODE = 2
RELEASED: dict[str, Any] = {
    "flow": {
        "input_size": 512,
        "output_size": 80,
        "spk_embed_dim": 192,
        "vocab_size": 6561,
        "input_frame_rate": 25,
        "encoder": {
            "output_size": 512,
            "attention_heads": 8,
            "linear_units": 2048,
            "num_blocks": 6,
            "up_blocks": 4,
        },
        "decoder": {
            "in_channels": 240,
            "n_spks": 1,
            "spk_emb_dim": 80,
            "cfm_params": {"inference_cfg_rate": 0.7},
            "estimator": {
                "in_channels": 320,
                "out_channels": 80,
                "channels": [256],
                "attention_head_dim": 64,
                "n_blocks": 4,
                "num_mid_blocks": 12,
                "num_heads": 8,
                "causal": True,
                "static_chunk_size": 100,
            },
        },
    },
    "hift": {
        "in_channels": 80,
        "base_channels": 512,
        "nb_harmonics": 8,
        "sampling_rate": 24000,
        "nsf_alpha": 0.1,
        "nsf_sigma": 0.003,
        "nsf_voiced_threshold": 10,
        "upsample_rates": [8, 5, 3],
        "upsample_kernel_sizes": [16, 11, 7],
        "istft_params": {"n_fft": 16, "hop_len": 4},
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "source_resblock_kernel_sizes": [7, 7, 11],
        "source_resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        "f0_predictor": {"in_channels": 80, "cond_channels": 512},
    },
}


class UpsampleEncoderConfig(Schema):
    """Conformer layers over codes, then over two frames for each; both attend in blocks."""

    output_size: Annotated[int, Field(ge=2, le=1 << 14, multiple_of=2)]
    attention_heads: Annotated[int, Field(ge=1, le=256)]
    linear_units: Size
    num_blocks: Layers
    up_blocks: Layers
    static_chunk_size: Annotated[int, Field(ge=1, le=1 << 20)] = 50
    """Codes of a block."""


class CosyVoice2FlowConfig(FlowConfig):
    encoder: UpsampleEncoderConfig
    token_mel_ratio: Literal[2] = 2
    pre_lookahead_len: Annotated[int, Field(ge=0, le=64)] = 3
    """Codes to come that a code's frames depend on, beside those of its block."""

    @model_validator(mode="after")
    def _check_encoder(self) -> Self:
        encoder = self.encoder
        agree(
            (
                ("encoder: output_size % attention_heads", encoder.output_size % encoder.attention_heads, 0),
                ("decoder: estimator: causal", self.decoder.estimator.causal, True),
            )
        )
        return self


class CosyVoice2Config(Schema):
    flow: CosyVoice2FlowConfig
    hift: HiftConfig

    @model_validator(mode="after")
    def _check_mel(self) -> Self:
        frames = self.flow.input_frame_rate * FRAMES_PER_CODE
        agree(
            (
                ("hift: in_channels", self.hift.in_channels, self.flow.output_size),
                ("hift: sampling_rate", self.hift.sampling_rate, self.hift.hop_length * frames),
            )
        )
        return self


def load_config(folder: Path) -> CosyVoice2Config:
    """Raises CheckpointError for a config.json that does not describe such a decoder; the message names the key."""
    path = folder / CONFIG_FILE
    values = read_json(path) if path.is_file() else RELEASED
    return CosyVoice2Config.parse(values, str(path), CheckpointError)
