"""ConvNeXt blocks that run offline and block by block alike, and finite scalar quantisation.

B batch, T steps, C channels, D dimensions of the quantiser. State is a value: `Past` holds the last inputs of every
convolution, oldest first, and each call returns a new one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Past = tuple[Tensor, ...]


class DepthwiseConv(nn.Module):
    """(B, T, C) -> (B, T, C) over `kernel_size` steps: the last ones when causal, else centred."""

    def __init__(self, channels: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.left = kernel_size - 1 if causal else (kernel_size - 1) // 2
        self.right = kernel_size - 1 - self.left

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if past is None:
            past = x.new_zeros(x.shape[0], self.left, x.shape[2])
        x = functional.pad(torch.cat([past.to(x.dtype), x], dim=1), (0, 0, 0, self.right))
        y: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return y, x[:, x.shape[1] - self.left :]


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, pointwise expansion with GELU, residual (Liu et al. 2022)."""

    def __init__(self, channels: int, kernel_size: int, expansion: int, causal: bool) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(channels, kernel_size, causal)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, channels * expansion)
        self.reduce = nn.Linear(channels * expansion, channels)
        nn.init.zeros_(self.reduce.bias)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, kept = self.depthwise(x, past)
        return x + self.reduce(functional.gelu(self.expand(self.norm(y)))), kept


class ConvNeXtStack(nn.ModuleList):
    """Blocks in a row; all causal or all centred."""

    def __init__(self, layers: int, channels: int, kernel_size: int, expansion: int, causal: bool) -> None:
        super().__init__(ConvNeXtBlock(channels, kernel_size, expansion, causal) for _ in range(layers))

    def forward(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        kept = []
        for block, state in zip(self, past or [None] * len(self), strict=True):
            x, tail = block(x, state)
            kept.append(tail)
        return x, tuple(kept)


def fold_steps(x: Tensor, count: int) -> Tensor:
    """(B, T, C) -> (B, T / count, count * C): neighbouring steps side by side."""
    return x.reshape(x.shape[0], x.shape[1] // count, count * x.shape[2])


def unfold_steps(x: Tensor, count: int) -> Tensor:
    """(B, T, count * C) -> (B, count * T, C): the inverse of `fold_steps`."""
    return x.reshape(x.shape[0], x.shape[1] * count, x.shape[2] // count)


class FiniteScalarQuantizer(nn.Module):
    """(..., D) reals -> the same shape on a grid in [-1, 1], levels[d] values along d; gradients straight through.

    A code is a point of this small fixed grid (Mentzer et al. 2023, arXiv 2309.15505).
    """

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        counts = torch.tensor(levels)
        self.register_buffer("_levels", counts, persistent=False)
        self.register_buffer("_basis", torch.cumprod(torch.tensor((1, *levels[:-1])), 0), persistent=False)

    def digits(self, x: Tensor) -> Tensor:
        """Grid index along each dimension, 0 .. levels[d] - 1, as reals that carry gradients."""
        top = (self._levels - 1).to(x.dtype)
        bounded = (torch.tanh(x) + 1) / 2 * top
        return bounded + (bounded.round() - bounded).detach()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Grid points (..., D) and codes (...)."""
        digits = self.digits(x)
        codes = (digits.detach().round().long() * self._basis).sum(-1)
        return self._points(digits), codes

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (...) -> grid points (..., D)."""
        return self._points(codes.unsqueeze(-1) // self._basis % self._levels)

    def _points(self, digits: Tensor) -> Tensor:
        return digits * (2.0 / (self._levels - 1).float()) - 1.0
