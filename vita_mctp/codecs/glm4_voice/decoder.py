"""The GLM-4-Voice decoder: its flow, its folder, as released or converted to safetensors, and its streaming in windows.

B streams, N codes, F mel frames, M mel bands, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vita_mctp.codecs.flow_decoder.config import FlowConfig, HiftConfig, Layers, Rate, Size, agree
from vita_mctp.codecs.flow_decoder.flow import (
    CodeWindows,
    ConformerLayer,
    Flow,
    InputLayer,
    attend_in_turn,
    attended_keys,
    steps_of,
)
from vita_mctp.codecs.flow_decoder.folder import fill_parts
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import RaggedGroupNorm, length_mask, masked, ragged_lengths
from vita_mctp.codecs.flow_decoder.windows import WindowedDecoder, Windows
from vita_mctp.codecs.released import read_tagged_yaml, without_memory
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema

SAMPLE_RATE, HOP_LENGTH = 22050, 256
"""Hz and samples per frame of the mel between flow and HiFT. The reference writes both into its code."""
DECODER_FILES = ("config.yaml", "config.json")
"""The released file and the plain one, in the order of looking for them."""
DECODER_REMEDY = "download the whole of THUDM/glm-4-voice-decoder"
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
    return DecoderConfig.parse(used, f"{where}, of THUDM/glm-4-voice-decoder or its like", CheckpointError)


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
        seen = attended_keys(steps_of(x, positions), self.config.block_size, lengths)
        y: Tensor = self.after_norm(attend_in_turn(self.encoders, x, seen))
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
        super().__init__(config, BlockEncoder(config.encoder), config.encoder.output_size)
        self.length_regulator = LengthRegulator(config.output_size, len(config.length_regulator.sampling_ratios))

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
        config = load_decoder_config(folder)
        flow, hift = without_memory(lambda: (Glm4Flow(config.flow), Hift(config.hift)))
        fill_parts(flow, hift, folder, DECODER_REMEDY, device, dtype)
        return cls(flow, hift, cut)
