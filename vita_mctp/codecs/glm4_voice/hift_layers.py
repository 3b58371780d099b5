"""Layers of HiFT: convolutions with weight norm, the snake activation, residual blocks.

B streams, C channels, S steps at whatever rate a layer runs. Masks are those of `ragged`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.glm4_voice.ragged import masked

_SNAKE_FLOOR = 1e-9


class NormedConv1d(nn.Conv1d):
    """Convolution that keeps the step count, with weight `weight_g * weight_v / |weight_v|` for each output channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
        _split_weight(self)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, normed_weight(self), self.bias)


class NormedConvTranspose1d(nn.ConvTranspose1d):
    """`rate` output steps for each input step; the norm is taken for each INPUT channel, the weight's first axis."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int) -> None:
        super().__init__(inputs, outputs, kernel, rate, (kernel - rate) // 2)
        _split_weight(self)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding = (self.kernel_size[0] - self.stride[0]) // 2
        return functional.conv_transpose1d(x, normed_weight(self), self.bias, self.stride, padding)


def _split_weight(conv: nn.Module) -> None:
    weight = conv.get_parameter("weight").detach()
    del conv.weight
    conv.register_parameter("weight_g", nn.Parameter(weight.norm(dim=(1, 2), keepdim=True)))
    conv.register_parameter("weight_v", nn.Parameter(weight))


def normed_weight(conv: nn.Module) -> Tensor:
    """The weight that `weight_g` and `weight_v` stand for."""
    direction = conv.get_parameter("weight_v")
    return direction * (conv.get_parameter("weight_g") / direction.norm(dim=(1, 2), keepdim=True))


def fold_weight_norm(module: nn.Module) -> None:
    """Replaces every normed convolution in `module` by a plain one that computes the same, sparing the norm each time.

    Afterwards `X.weight` stands where `X.weight_g` and `X.weight_v` stood; all other names, `X.bias` too, remain. The
    module then no longer takes a released state dict, so this comes after loading.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, NormedConv1d | NormedConvTranspose1d):
            setattr(module, name, _plain(child))
        else:
            fold_weight_norm(child)


def _plain(conv: NormedConv1d | NormedConvTranspose1d) -> nn.Conv1d | nn.ConvTranspose1d:
    kind = nn.Conv1d if isinstance(conv, NormedConv1d) else nn.ConvTranspose1d
    shape = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    with torch.device("meta"):
        plain = kind(conv.in_channels, conv.out_channels, **shape)
    plain.weight = nn.Parameter(
        normed_weight(conv).detach(), requires_grad=conv.get_parameter("weight_v").requires_grad
    )
    plain.bias = conv.bias
    return plain.train(conv.training)


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
