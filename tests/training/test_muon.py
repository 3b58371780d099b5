"""Muon against what defines it."""

from __future__ import annotations

import pytest
import torch

from vita_mctp.training.optimizer import Muon, orthogonalize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 40, 8), (2, 8, 40)])
def test_orthogonalized_matrices_keep_their_axes_and_have_singular_values_near_one(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices, dtype)
    assert result.shape == matrices.shape and result.dtype == torch.float32
    in_axes = u.mT @ result @ v.mT
    diagonal = torch.diagonal(in_axes, dim1=1, dim2=2)
    assert float(diagonal.min()) > 0.3 and float(diagonal.max()) < 1.4
    assert float((in_axes - torch.diag_embed(diagonal)).abs().max()) < (1e-3 if dtype == torch.float32 else 0.1)


def test_a_step_is_torch_s_own_muon() -> None:
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in ((12, 12), (12, 12), (30, 12))]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.01, momentum=0.95, weight_decay=0.1, precision=torch.bfloat16),
        torch.optim.Muon(theirs, lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradients = [torch.randn(x.shape, generator=generator) for x in start]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for own, other, first in zip(ours, theirs, start, strict=True):
        assert float((own - other).detach().norm()) < 0.05 * float((other - first).detach().norm())


def test_a_parameter_without_gradient_stays() -> None:
    still, moving = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    moving.grad = torch.eye(4)
    Muon([still, moving], lr=0.1).step()
    assert torch.equal(still, torch.ones(4, 4)) and not torch.equal(moving, torch.ones(4, 4))
