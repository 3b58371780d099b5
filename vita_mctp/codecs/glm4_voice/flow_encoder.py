"""The flow's encoder: conformer blocks without convolutions, with relative positions, causal over blocks of tokens.

B streams, N tokens, D width, A heads, E = D / A. Position r = i - j is that of key j as seen from query i.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.glm4_voice.decoder_config import FlowEncoderConfig


def relative_positions(num_tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """(2N - 1, D) interleaved sines and cosines of the positions N-1, ..., -(N-1) (Transformer-XL; ESPnet)."""
    positions = torch.arange(num_tokens - 1, -num_tokens, -1.0, device=device)[:, None]
    rates = torch.exp(torch.arange(0, width, 2.0, device=device) * -(math.log(10_000.0) / width))
    return torch.stack([torch.sin(positions * rates), torch.cos(positions * rates)], dim=-1).flatten(1)


def attended_keys(
    num_tokens: int, block_size: int, offsets: Tensor | None, lengths: list[int] | None, device: torch.device
) -> Tensor:
    """(B or 1, 1, N, N) bool: a query sees its own block of tokens and all before, within its stream.

    Args:
        offsets: (B,) place of each stream's first token within its block; None: all begin a block.
    """
    steps = torch.arange(num_tokens, device=device)
    starts = torch.zeros(1, dtype=torch.int64, device=device) if offsets is None else offsets.to(device)
    block = (steps + starts[:, None]) // block_size
    seen = block[:, None, :] <= block[:, :, None]
    if lengths is not None:
        seen = seen & (steps < torch.tensor(lengths, device=device)[:, None])[:, None]
    return seen[:, None]


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
        place = self._split(self.linear_pos(positions)[None])  # 1, A, 2N - 1, E
        by_place = _align((query + self.pos_bias_v[:, None]) @ place.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        mixed = functional.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None], key, value, attn_mask=by_place.masked_fill(~seen, float("-inf"))
        )
        y: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, A, N, E)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _align(scores: Tensor) -> Tensor:
    """(B, A, N, 2N - 1) by position, from N - 1 down -> (B, A, N, N) by key: row i is moved left by N - 1 - i."""
    num_tokens = scores.shape[2]
    skewed = functional.pad(scores, (1, 0)).flatten(2)[..., num_tokens:]
    return skewed.unflatten(2, (num_tokens, -1))[..., :num_tokens]


class FeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, hidden)
        self.w_2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w_2(functional.silu(self.w_1(x)))
        return y


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, config: FlowEncoderConfig) -> None:
        super().__init__()
        width = config.output_size
        self.self_attn = RelativeAttention(width, config.attention_heads)
        self.feed_forward = FeedForward(width, config.linear_units)
        self.norm_ff = nn.LayerNorm(width)
        self.norm_mha = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, seen)
        y: Tensor = x + self.feed_forward(self.norm_ff(x))
        return y


class InputLayer(nn.Module):
    """Linear and norm, scaled by sqrt(D) as absolute embeddings are."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.out = nn.Sequential(nn.Linear(size, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(x) * self.scale
        return y


class FlowEncoder(nn.Module):
    """Embedded tokens -> hidden states."""

    def __init__(self, config: FlowEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = InputLayer(config.input_size, config.output_size)
        self.encoders = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, lengths: list[int] | None = None, offsets: Tensor | None = None) -> Tensor:
        """(B, N, input size) -> (B, N, D); states beyond a stream's length have no meaning."""
        x = self.embed(x)
        positions = relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        seen = attended_keys(x.shape[1], self.config.block_size, offsets, lengths, x.device)
        for layer in self.encoders:
            x = layer(x, positions, seen)
        y: Tensor = self.after_norm(x)
        return y
