"""The CosyVoice2 decoder: its sizes, its flow, its folder, and its streaming in windows of our own.

The released folder's yaml is not read: it mixes sizes with code to run, and VocalNet overrides its chunk sizes. A
folder without `config.json` is taken for CosyVoice2-0.5B, and its tensors must have that model's shapes.

B streams, N codes, F = 2 N mel frames, M mel bands, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.config import FlowConfig, HiftConfig, Layers, Size, agree
from vita_mctp.codecs.flow_decoder.flow import (
    CausalConv1d,
    CodeWindows,
    ConformerLayer,
    Flow,
    InputLayer,
    attend_in_turn,
    attended_keys,
    steps_of,
)
from vita_mctp.codecs.flow_decoder.folder import VoicePrompt, fill_parts
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import length_mask, masked, named, ragged_lengths
from vita_mctp.codecs.flow_decoder.windows import WindowedDecoder, Windows
from vita_mctp.codecs.released import without_memory
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema, read_json

CONFIG_FILE, VOICE_FILE = "config.json", "voice.safetensors"
REMEDY = "download flow.pt and hift.pt of FunAudioLLM/CosyVoice2-0.5B (533 MB, Apache-2.0)"
FRAMES_PER_CODE = 2
RELEASED = Path(__file__).parents[2] / "assets" / "cosyvoice2.json"
"""Of CosyVoice2-0.5B."""


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
    return CosyVoice2Config.parse(read_json(path if path.is_file() else RELEASED), str(path), CheckpointError)


BLOCK_SIZE = 15
"""Codes that VocalNet speaks at a time."""
WINDOWS = {"chunk_sizes": [15, 15, 30], "context": 50, "overlap": 3}
"""Where this decoder differs from the defaults of `Windows`. The last 3 codes of a window lack the look-ahead, so they
are the ones whose frames are made again."""
_NORM_EPS = 1e-12
_UP_KERNEL = 5


class LookAhead(nn.Module):
    """Mixes a few codes to come into each state."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.conv1 = nn.Conv1d(width, width, length + 1)
        self.conv2 = CausalConv1d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D), zeros behind each stream's end -> the same shape."""
        ahead = functional.leaky_relu(self.conv1(functional.pad(x.transpose(1, 2), (0, self.length))))
        return x + self.conv2(ahead).transpose(1, 2)


class UpsampleEncoder(nn.Module):
    """Embedded codes (B, N, input size) -> states of their frames (B, 2 N, D)."""

    def __init__(self, config: CosyVoice2FlowConfig) -> None:
        super().__init__()
        sizes, width = config.encoder, config.encoder.output_size

        def layers(count: int) -> nn.ModuleList:
            shape = (width, sizes.attention_heads, sizes.linear_units, _NORM_EPS)
            return nn.ModuleList(ConformerLayer(*shape) for _ in range(count))

        self.block_size = sizes.static_chunk_size
        self.embed = InputLayer(config.input_size, width)
        self.pre_lookahead_layer = LookAhead(width, config.pre_lookahead_len)
        self.encoders = layers(sizes.num_blocks)
        self.up_layer = named(conv=CausalConv1d(width, width, _UP_KERNEL))
        self.up_embed = InputLayer(width, width)
        self.up_encoders = layers(sizes.up_blocks)
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, lengths: list[int] | None, positions: Tensor | None) -> Tensor:
        """positions: (B, N) of the codes in their whole streams; states behind a stream's end have no meaning."""
        steps, ratio = steps_of(x, positions), FRAMES_PER_CODE
        own = length_mask(lengths, x, x.shape[1])
        x = masked(self.embed(x).transpose(1, 2), own).transpose(1, 2)
        x = attend_in_turn(self.encoders, self.pre_lookahead_layer(x), attended_keys(steps, self.block_size, lengths))
        x = self.up_layer(x.transpose(1, 2).repeat_interleave(ratio, dim=2)).transpose(1, 2)
        frames = (steps[..., None] * ratio + torch.arange(ratio, device=x.device)).flatten(1)
        ends = lengths and [length * ratio for length in lengths]
        x = attend_in_turn(self.up_encoders, self.up_embed(x), attended_keys(frames, self.block_size * ratio, ends))
        y: Tensor = self.after_norm(x)
        return y


class CosyVoice2Flow(Flow):
    """The flow under its released tensor names."""

    config: CosyVoice2FlowConfig

    def __init__(self, config: CosyVoice2FlowConfig) -> None:
        super().__init__(config, UpsampleEncoder(config), config.encoder.output_size)

    def mean(self, windows: CodeWindows) -> Tensor:
        own = ragged_lengths(windows.lengths, windows.codes.shape[1])
        states = self.encoder_proj(self.encoder(self.input_embedding(windows.codes), own, windows.positions))
        mask = length_mask(own and [length * FRAMES_PER_CODE for length in own], states, states.shape[1])
        return masked(states.transpose(1, 2), mask).transpose(1, 2)


class CosyVoice2Decoder(WindowedDecoder):
    """Codes -> wave, offline or in blocks; the samples do not depend on how a stream is cut."""

    name = "cosyvoice2"

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        windows: Mapping[str, Any] | None = None,
        voice: str | None = None,
    ) -> Self:
        """windows: fields of `Windows` that differ from `WINDOWS`. voice: a file, None for that of the folder.

        dtype: the flow's. Raises CheckpointError when a file is not there, cut short or does not fit, ConfigError for
        windows that cannot work.
        """
        cut = Windows.parse({**WINDOWS, **(windows or {})}, f"windows of the audio decoder {cls.name}")
        config, path = load_config(folder), folder / VOICE_FILE if voice is None else Path(voice)
        if not path.is_file():
            raise CheckpointError(
                f"no voice at {path}: prepare one with `vita-mctp convert voice RECORDING {folder} {path}`"
            )
        flow, hift = without_memory(lambda: (CosyVoice2Flow(config.flow), Hift(config.hift)))
        fill_parts(flow, hift, folder, REMEDY, device, dtype)
        return cls(flow, hift, BLOCK_SIZE, cut, VoicePrompt.read(path, config.flow, FRAMES_PER_CODE))
