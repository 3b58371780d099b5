"""Layers of talkers of all families: transformers' Llama layer in stacks that are told mask, positions and cache.

B answers, Q new columns, T keys (cached ones and the new), H width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from vita_mctp.models.strict import cache_argument

RMS_EPS, ROPE_THETA = 1e-6, 10_000.0
"""Of every talker layer, whatever the thinker's are."""
_CACHE = cache_argument(LlamaDecoderLayer)


class LayerSizes(Protocol):
    @property
    def hidden_size(self) -> int: ...

    @property
    def ffn_size(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def dropout(self) -> float: ...


def layer(sizes: LayerSizes, index: int = 0) -> LlamaDecoderLayer:
    """index: its number in its stack, which is its number in the stack's cache."""
    config = LlamaConfig(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.ffn_size,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_heads,
        rms_norm_eps=RMS_EPS,
        attention_dropout=sizes.dropout,
        attn_implementation="sdpa",
    )
    return LlamaDecoderLayer(config, index)


def norm(sizes: LayerSizes) -> LlamaRMSNorm:
    return LlamaRMSNorm(sizes.hidden_size, eps=RMS_EPS)


def run(
    layers: Iterable[LlamaDecoderLayer], rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None
) -> Tensor:
    """rows (B, Q, H) at positions (B, Q) -> (B, Q, H), un-normalised.

    mask: (B, Q, T) bool, True = attends; None: everything. A row that attends to nothing is meaningless, not NaN.
    """
    kind = rows.device.type  # in autocast products are narrower, where the least float32 would be infinite
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
    bias = None if mask is None else _additive(mask, dtype)
    if bias is None and rows.shape[1] > 1:  # the kernel takes no mask to mean causal
        bias = rows.new_zeros(1, 1, 1, 1)
    angles = None
    for each in layers:
        angles = angles or _rotary(positions, each.self_attn.head_dim, rows.dtype)
        rows = each(rows, attention_mask=bias, position_embeddings=angles, **{_CACHE: cache})
    return rows


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]


def _rotary(positions: Tensor, head_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, Q, D), half rotation, computed in float32."""
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions[..., None].float() * ROPE_THETA**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
