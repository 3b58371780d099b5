"""The tokenizer's network: Whisper's encoder with causal convolutions and block-causal attention, then a codebook.

B segments, M mel bands, F log-mel frames, T = F / 2 encoder frames, N = T / pooling codes, D width, H heads, P encoder
frames already encoded. Frames attend both ways inside their block and to every earlier block, so each block is computed
from itself and the keys and values of those before it, in a stream as in a whole recording, and needs no causal mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.glm4_voice.config import CONV_STRIDE, EncoderConfig

KERNEL = 3
CONTEXT_FRAMES = (KERNEL - 1) * (1 + 1)
"""Log-mel frames before an encoder frame's own that both convolutions, of strides 1 and then 2, reach back to."""


class KeysValues(NamedTuple):
    """What one layer's attention keeps of frames seen, both (B, H, P, D / H)."""

    keys: Tensor
    values: Tensor


Past = tuple[KeysValues, ...]
"""One entry per layer; empty: nothing has been seen."""


class Quantized(NamedTuple):
    """hidden (B, N, D) before the codebook, and ids (B, N) int64 of the nearest codes."""

    hidden: Tensor
    ids: Tensor


class BlockAttention(nn.Module):
    """Whisper's attention, in which a query sees all of its block and all before it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads, self.block = config.encoder_attention_heads, config.quantize_causal_block_size
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """x (B, T, D) from a block's start -> the same shape, and the keys and values of x alone.

        valid: (B, P + T) bool, frames that may be attended to; None = all.
        """
        query, new = self._heads(self.q_proj(x)), KeysValues(self._heads(self.k_proj(x)), self._heads(self.v_proj(x)))
        keys, values = new if past is None else (torch.cat(pair, dim=2) for pair in zip(past, new, strict=True))
        start = keys.shape[2] - x.shape[1]
        blocks = []
        for begin in range(0, x.shape[1], self.block):
            seen = min(start + begin + self.block, keys.shape[2])
            mask = None if valid is None else valid[:, None, None, :seen]
            attended = functional.scaled_dot_product_attention(
                query[:, :, begin : begin + self.block], keys[:, :, :seen], values[:, :, :seen], mask
            )
            blocks.append(attended)
        joined = torch.cat(blocks, dim=2).transpose(1, 2).flatten(2)
        return self.out_proj(joined), new

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention, then two linear layers around a GELU, each behind a norm and added to what came in."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = BlockAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, valid: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        attended, new = self.self_attn(self.self_attn_layer_norm(x), valid, past)
        x = x + attended
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x)))), new


class WhisperVqEncoder(nn.Module):
    """Log-mel features -> codes; names and shapes of parameters as released."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.pooling, self.num_codes = config.pooling_kernel_size, config.quantize_vocab_size
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, KERNEL)
        self.conv2 = nn.Conv1d(width, width, KERNEL, stride=CONV_STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // config.pooling_kernel_size, width)
        """Released for what came behind the codes in training; no code depends on it."""

    @property
    def device(self) -> torch.device:
        return self.codebook.weight.device

    def forward(
        self, features: Tensor, lengths: Sequence[int], past: Past = (), keep: bool = False
    ) -> tuple[Quantized, Past]:
        """Codes of the frames behind `past`, and with `keep` these frames' own keys and values.

        features: (B, M, F) from a segment's start; with a past, (B, M, CONTEXT_FRAMES + F): those seen last come first.
        lengths: B counts of valid encoder frames among the P + T; later ones are padding that no frame attends to.
        """
        start = past[0].keys.shape[2] if past else 0
        x = self._convolve(features.to(self.conv1.weight.dtype), is_start=start == 0)
        x = x + self.embed_positions.weight[start : start + x.shape[1]]
        valid = _valid_frames(lengths, start + x.shape[1], x.device)
        kept = []
        for index, layer in enumerate(self.layers):
            x, new = layer(x, valid, past[index] if past else None)
            if keep:
                kept.append(new)
        return self._quantize(x.unflatten(1, (-1, self.pooling)).mean(dim=2)), tuple(kept)

    def _convolve(self, features: Tensor, is_start: bool) -> Tensor:
        """(B, M, F) -> (B, T, D); before a segment's start lie zeros, at the input of each convolution."""
        before = (KERNEL - 1 if is_start else 0, 0)
        x = functional.gelu(self.conv1(functional.pad(features, before)))
        return functional.gelu(self.conv2(functional.pad(x, before))).transpose(1, 2)

    def _quantize(self, hidden: Tensor) -> Quantized:
        return Quantized(hidden, squared_distances(hidden, self.codebook.weight).argmin(dim=2))


def squared_distances(hidden: Tensor, codebook: Tensor) -> Tensor:
    """(B, N, D) to each of (V, D), in float32: (B, N, V), as |x|^2 + |c|^2 - 2 x c."""
    hidden, codebook = hidden.float(), codebook.float()
    norms = hidden.square().sum(dim=2, keepdim=True) + codebook.square().sum(dim=1)
    return norms - 2.0 * (hidden @ codebook.T)


def _valid_frames(lengths: Sequence[int], total: int, device: torch.device) -> Tensor | None:
    if min(lengths) >= total:
        return None
    return torch.arange(total, device=device) < torch.tensor(lengths, device=device)[:, None]
