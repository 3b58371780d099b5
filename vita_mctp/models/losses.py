"""Cross-entropy of all levels' predictions through the shared head, a chunk of logits at a time.

Ten blocks at 8,192 positions and 168,072 words would be 55 GB of float32 logits. Here each chunk's logits are made,
give loss and gradients, and are dropped: the gradients are known in the forward pass, as the levels' weights
are. (Liger Kernel, arXiv 2410.10989, section 3.2, does so for one level in one GPU kernel.)

N_k positions of level k (the backbone, then each block), H hidden, V vocabulary, K blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from vita_mctp.text.chat import IGNORED

SLICE_ELEMENTS = 1 << 24
"""Of the head's gradient, made at once in another type than it is added up in."""

CHUNK_BYTES = 2**28
"""Of float32 logits that exist at once. Their softmax and its cast copies take about twice as much again."""


@dataclass
class LevelLosses(ModelOutput):
    """What a model's forward pass says of its losses; fields that were not asked for are None.

    Attributes:
        loss: what to minimise.
        lm_loss, mtp_losses: the language model's own loss and each further level's, unweighted, after the reduction;
            without gradients.
        num_targets, num_correct: of the language model and of each level, supervised positions and right predictions.
    """

    loss: Tensor | None = None
    lm_loss: Tensor | None = None
    mtp_losses: tuple[Tensor, ...] | None = None
    num_targets: Tensor | None = None
    num_correct: Tensor | None = None


@dataclass(frozen=True, eq=False)
class HeadLosses:
    """Losses of all levels.

    Attributes:
        loss: sum of scales * totals; the only one that carries gradients.
        totals: (K+1,) cross-entropy of each level in float32 or better, summed over its targets.
        num_correct: (K+1,) how many targets had the largest logit; None when not asked for.
    """

    loss: Tensor
    totals: Tensor
    num_correct: Tensor | None


class SharedHead(nn.Linear):
    """The head of backbone and blocks: hidden states to logits, or to the losses of all levels.

    Both go through `forward`, so that a sharded weight (ZeRO-3) is gathered by its owner's hooks.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)

    def forward(self, *hidden: Tensor, losses_of: tuple[tuple[Tensor, ...], Tensor, bool] | None = None) -> Any:
        """(..., H) -> (..., V); with `losses_of` = (targets, scales, count_correct) see `losses`."""
        if losses_of is None:
            return super().forward(*hidden)
        targets, scales, count_correct = losses_of
        return _ChunkedCrossEntropy.apply(self.weight, targets, scales, count_correct, *hidden)

    def losses(
        self, hidden: list[Tensor], targets: list[Tensor], scales: Tensor, *, count_correct: bool = False
    ) -> HeadLosses:
        """Cross-entropy, in float32 or better, of every level's predictions.

        Logits are made for supervised positions only. A level without any adds 0 and gets zero gradients.

        Args:
            hidden: of each level (..., H), after the final norm.
            targets: of each level (...), the id to predict, IGNORED to leave a position out.
            scales: (K+1,) weight of each level's sum in the loss.
            count_correct: also count the targets that have the largest logit.
        """
        flat = tuple(each.flatten() for each in targets)
        rows = (each.flatten(0, -2) for each in hidden)
        loss, totals, correct = self(*rows, losses_of=(flat, scales, count_correct))
        return HeadLosses(loss, totals, correct if count_correct else None)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over chunks; the backward pass only scales what the forward pass found."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, targets: tuple[Tensor, ...], scales: Tensor, count_correct: bool, *hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden[0].device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden[0].dtype
        pass_ = _Pass(weight, weight.to(dtype), count_correct, ctx.needs_input_grad[0])
        totals, correct, gradients = [], [], []
        with torch.autocast(device, enabled=False):
            for each, ids, scale, trains in zip(hidden, targets, scales, ctx.needs_input_grad[4:], strict=True):
                total, right, gradient = pass_.level(each, ids, scale, trains)
                totals.append(total)
                correct.append(right)
                gradients.append(gradient)
        ctx.gradients, ctx.weight_dtype = (pass_.weight_gradient, gradients), weight.dtype
        sums, counts = torch.stack(totals), torch.stack(correct)
        ctx.mark_non_differentiable(sums, counts)
        return (sums * scales.to(sums)).sum(), sums, counts

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the chunked loss keeps its gradients for one backward pass; run forward again")
        (weight_gradient, gradients), ctx.gradients = ctx.gradients, None
        found = [None if each is None else each.mul_(outer[0]) for each in (weight_gradient, *gradients)]
        of_weight = None if found[0] is None else found[0].to(ctx.weight_dtype)
        return of_weight, None, None, None, *found[1:]


class _Pass:
    """One pass over all levels' chunks, summing the head's gradient."""

    def __init__(self, weight: Tensor, product_weight: Tensor, count_correct: bool, trains: bool) -> None:
        """product_weight: the weight in the type that products are computed in."""
        self._weight, self._count_correct = product_weight, count_correct
        wide = torch.promote_types(weight.dtype, torch.float32)  # a hundred chunks added up in bfloat16 lose their sum
        self.weight_gradient = torch.zeros_like(weight, dtype=wide) if trains else None
        self._chunk = max(1, CHUNK_BYTES // (4 * len(weight)))

    def level(
        self, hidden: Tensor, targets: Tensor, scale: Tensor, trains: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sum of the losses, right predictions, and the gradient (N_k, H) of scale * sum, if it is wanted."""
        gradient = torch.zeros_like(hidden) if trains else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        for rows in (targets != IGNORED).nonzero().flatten().split(self._chunk):
            inputs, ids = hidden[rows].to(self._weight.dtype), targets[rows]
            logits = F.linear(inputs, self._weight).to(total.dtype)
            total += F.cross_entropy(logits, ids, reduction="sum")
            if self._count_correct:
                correct += (logits.argmax(dim=-1) == ids).sum()
            if gradient is not None or self.weight_gradient is not None:
                slope = _slope(logits, ids, scale).to(self._weight.dtype)
                del logits
                if gradient is not None:
                    gradient[rows] = (slope @ self._weight).to(gradient.dtype)
                if self.weight_gradient is not None:
                    _add_product(self.weight_gradient, slope.mT, inputs)
        return total, correct, gradient


def _slope(logits: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
    """Gradient (n, V) of scale * summed cross-entropy with respect to the logits."""
    slope = logits.softmax(dim=-1)
    slope[torch.arange(len(ids), device=ids.device), ids] -= 1
    return slope.mul_(scale)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; where the types differ in slices, so that no second matrix of this size is made."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    rows = max(1, SLICE_ELEMENTS // right.shape[1])
    for part, factor in zip(total.split(rows), left.split(rows), strict=True):
        part.add_(factor @ right)
