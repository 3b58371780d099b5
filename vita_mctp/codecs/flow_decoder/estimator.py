"""The flow's velocity estimator: a U-net of residual convolutions and transformer blocks over mel frames.

B streams, C channels, T frames (halved in the middle), M mel bands, S width of the time embedding.
Masks are (B, 1, T), see `layers`; modules are nested as the released tensor names want it.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.config import NUM_GROUPS, EstimatorConfig
from vita_mctp.codecs.flow_decoder.layers import RaggedGroupNorm, masked, named

TIME_SCALE = 1000.0
TIME_EXPANSION = 4
FEED_FORWARD_EXPANSION = 4


def time_features(time: Tensor, size: int) -> Tensor:
    """() in [0, 1] -> (1, size): sines, then cosines, at size / 2 rates from 1 to 1e-4."""
    half = size // 2
    rates = torch.exp(torch.arange(half, device=time.device) * -(math.log(10_000.0) / (half - 1)))
    angles = TIME_SCALE * time * rates
    return torch.cat([angles.sin(), angles.cos()])[None]


class ConvBlock(nn.Module):
    """Convolution over three frames, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.ModuleList([nn.Conv1d(inputs, outputs, 3, padding=1), RaggedGroupNorm(NUM_GROUPS, outputs)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        conv, norm = self.block
        return functional.mish(norm(conv(masked(x, mask)), mask))


class ResnetBlock(nn.Module):
    """Two convolution blocks, the time added in between, beside a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, outputs))
        self.block1 = ConvBlock(inputs, outputs)
        self.block2 = ConvBlock(outputs, outputs)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        hidden = self.block1(x, mask) + self.mlp(time)[..., None]
        y: Tensor = self.block2(hidden, mask) + self.res_conv(x)
        return y


class Attention(nn.Module):
    """Full attention over frames, without positions; the heads' width is free of the channels' number."""

    def __init__(self, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, heads * head_width, bias=False)
        self.to_k = nn.Linear(channels, heads * head_width, bias=False)
        self.to_v = nn.Linear(channels, heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, channels))

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.to_q, self.to_k, self.to_v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        y: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return y


class TransformerBlock(nn.Module):
    """(B, T, C) -> (B, T, C): attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, channels: int, config: EstimatorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, config.num_heads, config.attention_head_dim)
        self.norm3 = nn.LayerNorm(channels)
        hidden = FEED_FORWARD_EXPANSION * channels
        projection = named(proj=nn.Linear(channels, hidden), gelu=nn.GELU())
        # released names number a dropout between the two layers, which does nothing outside training
        self.ff = named(net=nn.Sequential(projection, nn.Identity(), nn.Linear(hidden, channels)))

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), seen)
        y: Tensor = x + self.ff(self.norm3(x))
        return y


class Stage(nn.ModuleList):
    """0: residual block, 1: transformer blocks, 2 (none in the middle): convolution to the next stage."""

    def __init__(self, inputs: int, outputs: int, config: EstimatorConfig, resampler: nn.Module | None = None) -> None:
        transformers = nn.ModuleList(TransformerBlock(outputs, config) for _ in range(config.n_blocks))
        resnet = ResnetBlock(inputs, outputs, TIME_EXPANSION * config.channels[0])
        super().__init__([resnet, transformers] + ([] if resampler is None else [resampler]))

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        """(B, inputs, T) -> (B, outputs, T), before the convolution to the next stage."""
        resnet, transformers = self[0], self[1]
        x = resnet(x, time, mask).transpose(1, 2)
        seen = None if mask is None else mask[:, None].bool()
        for block in transformers:  # type: ignore[attr-defined]
            x = block(x, seen)
        return x.transpose(1, 2)

    def leave(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, outputs, T) through the convolution to the next stage."""
        y: Tensor = self[2](masked(x, mask))
        return y


class Estimator(nn.Module):
    """Velocity of the mel at a time, given what it is to become."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        times = TIME_EXPANSION * widths[0]
        self.time_mlp = named(
            linear_1=nn.Linear(config.in_channels, times), silu=nn.SiLU(), linear_2=nn.Linear(times, times)
        )
        self.down_blocks = nn.ModuleList(
            Stage(inputs, outputs, config, _down(outputs, is_last=index == len(widths) - 1))
            for index, (inputs, outputs) in enumerate(pairwise((config.in_channels, *widths)))
        )
        self.mid_blocks = nn.ModuleList(Stage(widths[-1], widths[-1], config) for _ in range(config.num_mid_blocks))
        self.up_blocks = nn.ModuleList(
            Stage(2 * inputs, outputs, config, _up(outputs, is_last=index == len(widths) - 1))
            for index, (inputs, outputs) in enumerate(pairwise((*widths[::-1], widths[0])))
        )
        self.final_block = ConvBlock(widths[0], widths[0])
        self.final_proj = nn.Conv1d(widths[0], config.out_channels, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None = None) -> Tensor:
        """Velocity at one time for all streams.

        Args:
            x: (B, in_channels, T) noisy mel, mu, speaker and condition, stacked.
            time: () in [0, 1].
            mask: (B, 1, T) ones on each stream's own frames, zeros beyond; None: all frames are all streams' own.

        Returns:
            (B, M, T); frames beyond a stream's own have no meaning.
        """
        embedded = self.time_mlp(time_features(time, self.config.in_channels).to(x.dtype))
        skips: list[tuple[Tensor, Tensor | None]] = []
        own = mask
        for index, stage in enumerate(self.down_blocks):
            x = stage(x, embedded, own)
            skips.append((x, own))
            x = stage.leave(x, own)  # type: ignore[operator]
            if own is not None and index < len(self.down_blocks) - 1:
                own = own[:, :, ::2]
        for stage in self.mid_blocks:
            x = stage(x, embedded, own)
        for stage in self.up_blocks:
            skip, own = skips.pop()
            x = stage(torch.cat([x[:, :, : skip.shape[2]], skip], dim=1), embedded, own)
            x = stage.leave(x, own)  # type: ignore[operator]
        y: Tensor = self.final_proj(self.final_block(x, mask))
        return y


def _down(channels: int, is_last: bool) -> nn.Module:
    if is_last:
        return nn.Conv1d(channels, channels, 3, padding=1)
    return named(conv=nn.Conv1d(channels, channels, 3, stride=2, padding=1))


def _up(channels: int, is_last: bool) -> nn.Module:
    if is_last:
        return nn.Conv1d(channels, channels, 3, padding=1)
    return named(conv=nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1))
