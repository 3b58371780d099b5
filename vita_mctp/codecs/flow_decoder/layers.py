"""Layers of flow decoders: masks and norms for batches of streams of different lengths, and HiFT's convolutions.

Each stream of a batch comes out as if it were alone: beyond its own end its convolutions see zeros, as at a border, and
its norms count its own steps only. A mask of None means that all streams are of full length, and costs nothing.

B streams, C channels, T or S steps. A mask is (B, 1, T), one on a stream's own steps and zero beyond.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

_SNAKE_FLOOR = 1e-9


def ragged_lengths(lengths: Tensor | None, size: int) -> list[int] | None:
    """(B,) -> the lengths, or None when each is the full `size`. Raises ValueError for a length not in 1..size."""
    values = [size] if lengths is None else [int(length) for length in lengths.tolist()]
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


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row, under the names that released tensors have for them."""
    return nn.Sequential(OrderedDict(layers))


class NormedConv1d(nn.Conv1d):
    """Convolution that keeps the step count, with weight `weight_g * weight_v / |weight_v|` for each output channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
        _split_weight(self)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _joined_weight(self), self.bias)


class NormedConvTranspose1d(nn.ConvTranspose1d):
    """`rate` output steps for each input step; the norm is taken for each INPUT channel, the weight's first axis."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int) -> None:
        super().__init__(inputs, outputs, kernel, rate, (kernel - rate) // 2)
        _split_weight(self)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding = (self.kernel_size[0] - self.stride[0]) // 2
        return functional.conv_transpose1d(x, _joined_weight(self), self.bias, self.stride, padding)


def _split_weight(conv: nn.Module) -> None:
    weight = conv.get_parameter("weight").detach()
    del conv.weight
    conv.register_parameter("weight_g", nn.Parameter(weight.norm(dim=(1, 2), keepdim=True)))
    conv.register_parameter("weight_v", nn.Parameter(weight))


def _joined_weight(conv: nn.Module) -> Tensor:
    weights = dict(conv.named_parameters())
    if "weight" in weights:
        return weights["weight"]
    return weights["weight_v"] * (weights["weight_g"] / weights["weight_v"].norm(dim=(1, 2), keepdim=True))


def fold_weight_norm(module: nn.Module) -> None:
    """Computes the weight of every normed convolution in `module` once and for all.

    Afterwards `X.weight` stands where `X.weight_g` and `X.weight_v` stood, so this comes after loading.
    """
    for conv in module.modules():
        if isinstance(conv, NormedConv1d | NormedConvTranspose1d):
            trained = conv.get_parameter("weight_v").requires_grad
            weight = nn.Parameter(_joined_weight(conv).detach(), trained)
            del conv.weight_g, conv.weight_v
            conv.register_parameter("weight", weight)


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha with one alpha per channel (Ziyin 2020, arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + (alpha * x).sin().square() / (alpha + _SNAKE_FLOOR)


class ResBlock(nn.Module):
    """For each dilation: x += conv(snake(dilated conv(snake(x)))), (B, C, S) -> (B, C, S)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(NormedConv1d(channels, channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(NormedConv1d(channels, channels, kernel) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` is 0 where `mask` is 0, and so is what comes out."""
        layers = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activation1, conv1, activation2, conv2 in layers:
            inner = masked(conv1(activation1(x)), mask)
            x = x + masked(conv2(activation2(inner)), mask)
        return x


def block_reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Steps on either side that one step out of a `ResBlock` depends on."""
    return (kernel - 1) // 2 * sum(dilation + 1 for dilation in dilations)
