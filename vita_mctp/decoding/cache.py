"""Preallocated keys and values of one request, and their padded batch.

Legend: n layers of the stack (L for the backbone, 1 for a block), B requests, G key/value heads, D head size,
C capacity in tokens, Q new tokens. Both classes speak transformers' `Cache.update` protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIRST_CAPACITY = 256


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a stack of decoder layers stores per token."""

    first_layer: int
    num_layers: int
    num_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device


class KvCache:
    """One request's keys and values in one stack of layers; the first `length` positions of the buffer are filled.

    The buffer, (n, 2, 1, G, C, D), doubles when it is full, so that a token is copied O(1) times over an answer.
    """

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.length = 0
        self._layers: list[tuple[Tensor, Tensor]] = []
        self.buffer = self._allocate(0)

    def reserve(self, new_tokens: int) -> None:
        """Make room for `new_tokens` more."""
        needed, capacity = self.length + new_tokens, self.buffer.shape[-2]
        if needed <= capacity:
            return
        old = self.buffer
        self.buffer = self._allocate(max(needed, 2 * capacity, _FIRST_CAPACITY))
        self.buffer[..., : self.length, :] = old[..., : self.length, :]

    def truncate(self, length: int) -> None:
        """Forget all tokens from number `length` on; no-op when there are fewer."""
        self.length = min(self.length, length)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (1, G, Q, D) behind the filled part; return all up to and with them, as views."""
        keys, values = self._layers[layer_idx - self.spec.first_layer]
        new = key_states.shape[2]
        keys.narrow(2, self.length, new).copy_(key_states)
        values.narrow(2, self.length, new).copy_(value_states)
        return keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens filled before this forward, the same in every layer."""
        return self.length

    def _allocate(self, capacity: int) -> Tensor:
        spec = self.spec
        shape = (spec.num_layers, 2, 1, spec.num_heads, capacity, spec.head_size)
        buffer = torch.empty(shape, dtype=spec.dtype, device=spec.device)
        self._layers = [(layer[0], layer[1]) for layer in buffer.unbind()]
        return buffer


class BatchCache:
    """The caches of several requests side by side for one forward of Q padded tokens, (n, 2, B, G, max length + Q, D).

    Row b's new tokens go to its own length onwards; what padding leaves behind them is out of the causal mask's reach
    and is not written back. Built once per forward: one copy per request in, one out, whatever the number of layers.
    """

    def __init__(self, rows: Sequence[KvCache], padded_tokens: int) -> None:
        self._rows, self._first_layer = rows, rows[0].spec.first_layer
        n, _, _, heads, _, size = rows[0].buffer.shape
        capacity = max(row.length for row in rows) + padded_tokens
        # Zeros, not empty: a masked NaN is still a NaN once it is multiplied by a weight of 0.
        self._batch = rows[0].buffer.new_zeros(n, 2, len(rows), heads, capacity, size)
        for b, row in enumerate(rows):
            self._batch[:, :, b, :, : row.length] = row.buffer[:, :, 0, :, : row.length]
        offsets = torch.tensor([row.length for row in rows], device=self._batch.device)
        positions = offsets[:, None] + torch.arange(padded_tokens, device=self._batch.device)
        self._index = positions[:, None, :, None].expand(len(rows), heads, padded_tokens, size)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, G, Q, D) behind each row's own; return the whole padded batch."""
        keys, values = self._batch[layer_idx - self._first_layer]
        return keys.scatter_(2, self._index, key_states), values.scatter_(2, self._index, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest row's tokens before this forward; asked only when all rows are equally long."""
        return max(row.length for row in self._rows)

    def write_back(self, new_tokens: Sequence[int]) -> None:
        """Give each request the keys and values of its own new tokens; its length is left to the caller."""
        for b, (row, new) in enumerate(zip(self._rows, new_tokens, strict=True)):
            end = row.length + new
            row.buffer[:, :, 0, :, row.length : end] = self._batch[:, :, b, :, row.length : end]
