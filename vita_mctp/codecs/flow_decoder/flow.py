"""The flow, codes -> mel: conformer layers that read codes, an estimator of the mel's velocity, and flow matching.

B streams, N codes, D width, A heads, E = D / A, F mel frames, M mel bands. Position r = i - j is that of key j as seen
from query i. In the estimator: C channels, T frames (halved in the middle), S width of the time embedding, masks
(B, 1, T). Streams of one batch may have different lengths; each comes out as if it were alone. Modules are nested as
the released tensor names want it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.config import NUM_GROUPS, EstimatorConfig, FlowConfig
from vita_mctp.codecs.flow_decoder.layers import RaggedGroupNorm, length_mask, masked, named, ragged_lengths
from vita_mctp.errors import ConfigError

REFERENCE_STEPS = 10
TIME_SCALE = 1000.0
TIME_EXPANSION = 4
FEED_FORWARD_EXPANSION = 4


def relative_positions(num_codes: int, width: int, device: torch.device | None = None) -> Tensor:
    """(2N - 1, D) interleaved sines and cosines of the positions N-1, ..., -(N-1) (Transformer-XL; ESPnet)."""
    positions = torch.arange(num_codes - 1, -num_codes, -1.0, device=device)[:, None]
    rates = torch.exp(torch.arange(0, width, 2.0, device=device) * -(math.log(10_000.0) / width))
    return torch.stack([torch.sin(positions * rates), torch.cos(positions * rates)], dim=-1).flatten(1)


def attended_keys(positions: Tensor, block_size: int, lengths: list[int] | None) -> Tensor:
    """(B or 1, 1, N, N) bool: a query sees its own block of steps and all before, within its stream.

    positions: (B or 1, N) of the steps in their whole streams, which set where blocks begin.
    """
    block = positions // block_size
    seen = block[:, None, :] <= block[:, :, None]
    if lengths is not None:
        steps = torch.arange(positions.shape[1], device=positions.device)
        seen = seen & (steps < torch.tensor(lengths, device=positions.device)[:, None])[:, None]
    return seen[:, None]


def steps_of(like: Tensor, positions: Tensor | None) -> Tensor:
    """(B or 1, N): `positions` where they are given, else those of streams that begin with (B, N, ...) `like`."""
    return torch.arange(like.shape[1], device=like.device)[None] if positions is None else positions.to(like.device)


class RelativeAttention(nn.Module):
    """score(i, j) = ((q_i + u) k_j + (q_i + v) W p_{i-j}) / sqrt(E), of Transformer-XL (Dai et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """(B, N, D), (2N - 1, D) and a bool mask (B or 1, 1, N, N) -> (B, N, D)."""
        query, key, value = (self._split(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        offset = self._split(self.linear_pos(positions)[None])  # 1, A, 2N - 1, E
        by_offset = _align((query + self.pos_bias_v[:, None]) @ offset.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        mixed = functional.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None], key, value, attn_mask=by_offset.masked_fill(~seen, float("-inf"))
        )
        y: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, A, N, E)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _align(scores: Tensor) -> Tensor:
    """(B, A, N, 2N - 1) by position, from N - 1 down -> (B, A, N, N) by key: row i is moved left by N - 1 - i."""
    num_codes = scores.shape[2]
    skewed = functional.pad(scores, (1, 0)).flatten(2)[..., num_codes:]
    return skewed.unflatten(2, (num_codes, -1))[..., :num_codes]


class ConformerLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width, heads)
        self.feed_forward = named(w_1=nn.Linear(width, hidden), silu=nn.SiLU(), w_2=nn.Linear(hidden, width))
        self.norm_ff = nn.LayerNorm(width, eps)
        self.norm_mha = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, seen)
        y: Tensor = x + self.feed_forward(self.norm_ff(x))
        return y


def attend_in_turn(layers: nn.ModuleList, x: Tensor, seen: Tensor) -> Tensor:
    """(B, N, D) through conformer layers, with a bool mask (B or 1, 1, N, N)."""
    relative = relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
    for layer in layers:
        x = layer(x, relative, seen)
    return x


class InputLayer(nn.Module):
    """Linear and norm, scaled by sqrt(D) as absolute embeddings are."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.out = nn.Sequential(nn.Linear(size, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(x) * self.scale
        return y


def time_features(time: Tensor, size: int) -> Tensor:
    """() in [0, 1] -> (1, size): sines, then cosines, at size / 2 rates from 1 to 1e-4."""
    half = size // 2
    rates = torch.exp(torch.arange(half, device=time.device) * -(math.log(10_000.0) / (half - 1)))
    angles = TIME_SCALE * time * rates
    return torch.cat([angles.sin(), angles.cos()])[None]


class CausalConv1d(nn.Conv1d):
    """Convolution of a step and those before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (self.kernel_size[0] - 1, 0)))


def _frame_conv(inputs: int, outputs: int, config: EstimatorConfig) -> nn.Conv1d:
    """Over three frames."""
    return CausalConv1d(inputs, outputs, 3) if config.causal else nn.Conv1d(inputs, outputs, 3, padding=1)


class ChannelNorm(nn.LayerNorm):
    """Norm over the channels of each step, (B, C, T) -> (B, C, T)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvBlock(nn.Module):
    """Convolution over three frames, norm, Mish."""

    def __init__(self, inputs: int, outputs: int, config: EstimatorConfig) -> None:
        super().__init__()
        # released names number a transposition between the causal convolution and its norm
        norm = [nn.Identity(), ChannelNorm(outputs)] if config.causal else [RaggedGroupNorm(NUM_GROUPS, outputs)]
        self.block = nn.ModuleList([_frame_conv(inputs, outputs, config), *norm])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return functional.mish(self.block[-1](self.block[0](masked(x, mask)), mask))


class ResnetBlock(nn.Module):
    """Two convolution blocks, the time added in between, beside a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, config: EstimatorConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(TIME_EXPANSION * config.channels[0], outputs))
        self.block1 = ConvBlock(inputs, outputs, config)
        self.block2 = ConvBlock(outputs, outputs, config)
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
        resnet = ResnetBlock(inputs, outputs, config)
        super().__init__([resnet, transformers] + ([] if resampler is None else [resampler]))

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None, seen: Tensor | None) -> Tensor:
        """(B, inputs, T) -> (B, outputs, T), before the convolution to the next stage.

        seen: (B, 1, T, T) bool, what each frame attends to; None: all of its stream.
        """
        resnet, transformers = self[0], self[1]
        x = resnet(x, time, mask).transpose(1, 2)
        if seen is None and mask is not None:
            seen = mask[:, None].bool()
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
            Stage(inputs, outputs, config, _down(outputs, config, is_last=index == len(widths) - 1))
            for index, (inputs, outputs) in enumerate(pairwise((config.in_channels, *widths)))
        )
        self.mid_blocks = nn.ModuleList(Stage(widths[-1], widths[-1], config) for _ in range(config.num_mid_blocks))
        self.up_blocks = nn.ModuleList(
            Stage(2 * inputs, outputs, config, _up(outputs, config, is_last=index == len(widths) - 1))
            for index, (inputs, outputs) in enumerate(pairwise((*widths[::-1], widths[0])))
        )
        self.final_block = ConvBlock(widths[0], widths[0], config)
        self.final_proj = nn.Conv1d(widths[0], config.out_channels, 1)

    def forward(self, x: Tensor, time: Tensor, mask: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """x (B, in_channels, T): noisy mel, mu, speaker, condition, stacked; time () in [0, 1] -> velocity (B, M, T).

        mask: None when all frames are all streams' own; those behind a stream's own come out without meaning.
        seen: (B, 1, T, T) bool, for an estimator of one level: what each frame attends to; None: all of its stream.
        """
        embedded = self.time_mlp(time_features(time, self.config.in_channels).to(x.dtype))
        skips: list[tuple[Tensor, Tensor | None]] = []
        own = mask
        for index, stage in enumerate(self.down_blocks):
            x = stage(x, embedded, own, seen)
            skips.append((x, own))
            x = stage.leave(x, own)  # type: ignore[operator]
            if own is not None and index < len(self.down_blocks) - 1:
                own = own[:, :, ::2]
        for stage in self.mid_blocks:
            x = stage(x, embedded, own, seen)
        for stage in self.up_blocks:
            skip, own = skips.pop()
            x = stage(torch.cat([x[:, :, : skip.shape[2]], skip], dim=1), embedded, own, seen)
            x = stage.leave(x, own)  # type: ignore[operator]
        y: Tensor = self.final_proj(self.final_block(x, mask))
        return y


def _down(channels: int, config: EstimatorConfig, is_last: bool) -> nn.Module:
    if is_last:
        return _frame_conv(channels, channels, config)
    return named(conv=nn.Conv1d(channels, channels, 3, stride=2, padding=1))


def _up(channels: int, config: EstimatorConfig, is_last: bool) -> nn.Module:
    if is_last:
        return _frame_conv(channels, channels, config)
    return named(conv=nn.ConvTranspose1d(channels, channels, 4, stride=2, padding=1))


class ConditionalFlowMatching(nn.Module):
    """Integrates the estimator's guided velocity from noise to mel with Euler steps."""

    def __init__(self, guidance: float, estimator: nn.Module) -> None:
        super().__init__()
        self.guidance, self.estimator = guidance, estimator

    def forward(
        self, noise: Tensor, conditions: Tensor, mask: Tensor | None, steps: int, seen: Tensor | None = None
    ) -> Tensor:
        """(B, M, F) noise and (B, 3 M, F) conditions -> (B, M, F) mel; mask and seen are as the estimator has them."""
        x = noise
        for time, duration in time_steps(steps):
            x = x + duration * self.velocity(x, conditions, time.to(x.device), mask, seen)
        return x

    def velocity(self, x: Tensor, conditions: Tensor, time: Tensor, mask: Tensor | None, seen: Tensor | None) -> Tensor:
        """(1 + g) E(x, conditions) - g E(x, 0) (Ho & Salimans 2022), both from one doubled batch."""
        both = torch.cat([torch.cat([x, conditions], 1), torch.cat([x, torch.zeros_like(conditions)], 1)])
        masks = (None if own is None else torch.cat([own, own]) for own in (mask, seen))
        guided, free = self.estimator(both, time, *masks).chunk(2)
        return (1.0 + self.guidance) * guided - self.guidance * free


def time_steps(steps: int) -> list[tuple[Tensor, float]]:
    """Time and length of each Euler step: 1 - cos on [0, pi / 2], added up in float32 as the reference does."""
    if steps < 1:
        raise ConfigError(f"the flow wants at least one step, got {steps}; {REFERENCE_STEPS} are the released number")
    span = 1 - torch.cos(torch.linspace(0, 1, steps + 1, dtype=torch.float32) * 0.5 * math.pi)
    time, steps_taken = span[0], []
    for end in span[1:]:
        duration = end - time
        steps_taken.append((time, float(duration)))
        time = time + duration
    return steps_taken


class CodeWindows(NamedTuple):
    """Stretches of longer streams, padded to one length; what lies behind a window's length does not matter."""

    codes: Tensor
    """(B, N) int64."""
    owners: Tensor
    """(B, F) the code of each mel frame, counted from the window's first one."""
    lengths: Tensor | None = None
    """(B,) codes of each window, 1..N; None: all N."""
    frame_lengths: Tensor | None = None
    """(B,) frames of each, 1..F; None: all F."""
    positions: Tensor | None = None
    """(B, N) of the codes in their whole streams, which set where blocks begin; None: from 0."""


class Flow(nn.Module):
    """Codes -> log-mel frames. A codec's own class gives the encoder, of so many outputs, and says what `mean` is."""

    def __init__(self, config: FlowConfig, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.config: FlowConfig = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder, self.encoder_proj = encoder, nn.Linear(width, config.output_size)
        guidance = config.decoder.cfm_params.inference_cfg_rate
        self.decoder = ConditionalFlowMatching(guidance, Estimator(config.decoder.estimator))

    @property
    def like(self) -> Tensor:
        """An empty tensor of the device and type that the flow computes with."""
        return self.spk_embed_affine_layer.weight.new_zeros(0)

    def mean(self, windows: CodeWindows) -> Tensor:
        """What their mel is to become, on average: (B, F, M), zeros behind each one's frames."""
        raise NotImplementedError

    def speaker(self, embedding: Tensor) -> Tensor:
        """(B, 192) x-vector -> (B, M). The released scripts give zeros, of which the bias remains."""
        projected: Tensor = self.spk_embed_affine_layer(functional.normalize(embedding, dim=1))
        return projected

    def solve(
        self,
        mu: Tensor,
        cond: Tensor,
        speaker: Tensor,
        noise: Tensor,
        frame_lengths: Tensor | None = None,
        steps: int = REFERENCE_STEPS,
        positions: Tensor | None = None,
    ) -> Tensor:
        """From noise to mel (B, M, F), zeros behind each stream's frames.

        mu: (B, F, M), of `mean`. cond: (B, M, F) mel frames that are already known, zeros elsewhere. speaker: (B, M).
        noise: (B, M, F), standard normal. frame_lengths: (B,), as for `mean`. steps: Euler steps, each two calls of the
        estimator; time runs as 1 - cos in any number of them. positions: (B, F) of the frames in their whole streams,
        which matter to an estimator that attends in blocks; None: from 0.
        """
        own, block = ragged_lengths(frame_lengths, mu.shape[1]), self.config.decoder.estimator.static_chunk_size
        mask = length_mask(own, mu, mu.shape[1])
        seen = attended_keys(steps_of(mu, positions).expand(len(mu), -1), block, own) if block else None
        conditions = torch.cat([mu.transpose(1, 2), speaker[..., None].expand_as(cond), cond], dim=1)
        return masked(self.decoder(noise, conditions, mask, steps, seen), mask)
