"""The GLM-4-Voice decoder: its flow, its folder, as released or converted to safetensors, and its streaming in windows.

B streams, N codes, F mel frames, M mel bands, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vita_mctp.codecs.flow_decoder.flow import (
    CodeWindows,
    ConditionalFlowMatching,
    ConformerLayer,
    Estimator,
    Flow,
    InputLayer,
    attended_keys,
    relative_positions,
    steps_of,
)
from vita_mctp.codecs.flow_decoder.folder import fill_parts
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import RaggedGroupNorm, length_mask, masked, ragged_lengths
from vita_mctp.codecs.flow_decoder.windows import WindowedDecoder, Windows
from vita_mctp.codecs.glm4_voice.config import (
    DECODER_REMEDY,
    BlockEncoderConfig,
    DecoderConfig,
    Glm4FlowConfig,
    load_decoder_config,
)
from vita_mctp.codecs.released import without_memory


class BlockEncoder(nn.Module):
    """Embedded codes -> hidden states, causal over blocks of codes."""

    def __init__(self, config: BlockEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = InputLayer(config.input_size, config.output_size)
        self.encoders = nn.ModuleList(
            ConformerLayer(config.output_size, config.attention_heads, config.linear_units)
            for _ in range(config.num_blocks)
        )
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, lengths: list[int] | None = None, positions: Tensor | None = None) -> Tensor:
        """(B, N, input size) -> (B, N, D); states beyond a stream's length have no meaning."""
        x = self.embed(x)
        relative = relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        seen = attended_keys(steps_of(x, positions), self.config.block_size, lengths)
        for layer in self.encoders:
            x = layer(x, relative, seen)
        y: Tensor = self.after_norm(x)
        return y


class LengthRegulator(nn.Module):
    """Smooths states that have been stretched to frames: convolutions, each with a norm over all time."""

    def __init__(self, width: int, convolutions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv1d(width, width, 3, padding=1), RaggedGroupNorm(1, width), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, F) -> (B, M, F)."""
        for layer in self.model:
            x = layer(x, mask) if isinstance(layer, RaggedGroupNorm) else layer(masked(x, mask))
        return x


class Glm4Flow(Flow):
    """The flow under its released tensor names."""

    config: Glm4FlowConfig

    def __init__(self, config: Glm4FlowConfig) -> None:
        super().__init__(config)
        self.encoder = BlockEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.length_regulator = LengthRegulator(config.output_size, len(config.length_regulator.sampling_ratios))
        guidance = config.decoder.cfm_params.inference_cfg_rate
        self.decoder = ConditionalFlowMatching(guidance, Estimator(config.decoder.estimator))

    def encode_codes(self, codes: Tensor, lengths: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """(B, N) codes -> (B, N, M) states, one for each code; ids below 0 stand for 0."""
        embedded = self.input_embedding(codes.clamp(min=0))
        states: Tensor = self.encoder_proj(self.encoder(embedded, ragged_lengths(lengths, codes.shape[1]), positions))
        return states

    def mean(self, windows: CodeWindows) -> Tensor:
        states, owners = self.encode_codes(windows.codes, windows.lengths, windows.positions), windows.owners
        mask = length_mask(ragged_lengths(windows.frame_lengths, owners.shape[1]), states, owners.shape[1])
        index = owners.to(states.device)[:, None].expand(-1, states.shape[2], -1)
        stretched = states.transpose(1, 2).gather(2, index)
        return masked(self.length_regulator(stretched, mask), mask).transpose(1, 2)


class DecoderParts(NamedTuple):
    """A folder's content, in eval mode and without gradients."""

    config: DecoderConfig
    flow: Glm4Flow
    hift: Hift


class Glm4VoiceDecoder(WindowedDecoder):
    """Codes -> wave, offline or in blocks; the samples do not depend on how a stream is cut."""

    name = "glm4_voice"
    flow: Glm4Flow

    def __init__(self, flow: Glm4Flow, hift: Hift, windows: Windows | None = None) -> None:
        super().__init__(flow, hift, flow.config.encoder.block_size, windows)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        windows: Mapping[str, Any] | None = None,
    ) -> Glm4VoiceDecoder:
        """dtype: the flow's. windows: fields of `Windows` that differ from its defaults, as JSON gives them.

        Raises CheckpointError for a folder that is not a whole decoder, ConfigError for windows that cannot work.
        """
        cut = Windows.parse(windows or {}, f"windows of the audio decoder {cls.name}")
        parts = load_decoder(folder, device=device, dtype=dtype)
        return cls(parts.flow, parts.hift, cut)


def load_decoder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DecoderParts:
    """Opens the folder for inference; as `fill_parts`."""
    config = load_decoder_config(folder)
    parts = without_memory(lambda: DecoderParts(config, Glm4Flow(config.flow), Hift(config.hift)))
    fill_parts(parts.flow, parts.hift, folder, DECODER_REMEDY, device, dtype)
    return parts
