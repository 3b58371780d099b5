"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): a code is a point of a small fixed grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FiniteScalarQuantizer(nn.Module):
    """(..., D) reals -> the same shape on a grid in [-1, 1], levels[d] values along d; gradients straight through."""

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
