"""ConvNeXt blocks that run offline and block by block alike. B batch, T steps, C channels.

State is a value: `Past` holds the last inputs of every convolution, oldest first, and each call returns a new one.
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
