"""Batches of streams of different lengths in which each stream comes out as if it were alone.

Beyond its own end a stream's convolutions must see zeros, as at a border, and its norms must count its own steps only.
A mask of None means that all streams are of full length, and costs nothing.

B streams, C channels, T steps. A mask is (B, 1, T), one on a stream's own steps and zero beyond.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ragged_lengths(lengths: Tensor | None, size: int) -> list[int] | None:
    """(B,) -> the lengths, or None when each is the full `size`. Raises ValueError for a length not in 1..size."""
    if lengths is None:
        return None
    values = [int(length) for length in lengths.tolist()]
    if not all(1 <= value <= size for value in values):
        raise ValueError(f"each stream of this batch must have 1 to {size} steps, got lengths {values}")
    return None if all(value == size for value in values) else values


def length_mask(lengths: list[int] | None, like: Tensor, size: int) -> Tensor | None:
    """The mask of `lengths` with the type and device of `like`."""
    if lengths is None:
        return None
    steps = torch.arange(size, device=like.device)
    ends = torch.tensor(lengths, device=like.device)
    return (steps < ends[:, None])[:, None].to(like.dtype)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, C, T) with zeros beyond each stream's end."""
    return x if mask is None else x * mask


class RaggedGroupNorm(nn.GroupNorm):
    """Group norm whose means and variances count each stream's own steps only."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        if mask is None:
            return super().forward(x)
        grouped = x.unflatten(1, (self.num_groups, -1))  # B, groups, C / groups, T
        own = mask[:, None]
        count = grouped.shape[2] * own.sum(-1, keepdim=True)
        centred = grouped - (grouped * own).sum((2, 3), keepdim=True) / count
        variance = (centred.square() * own).sum((2, 3), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        return normed * self.weight[:, None] + self.bias[:, None]
