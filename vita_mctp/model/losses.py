"""Cross-entropy of one level's predictions, from hidden states to a sum: logits of only one level exist at a time.

N = supervised positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_mctp.model.rows import IGNORED


@dataclass(frozen=True, eq=False)
class HeadLoss:
    """Scalars of one level: float32 cross-entropy summed over its targets, their number, how many argmax got right."""

    total: Tensor
    num_targets: Tensor
    num_correct: Tensor | None

    def reduced(self, num_items: Tensor | int | None) -> Tensor:
        """The mean over the targets, or the sum over `num_items`: the labels of all accumulated micro-batches."""
        if num_items is None:
            return self.total / self.num_targets.clamp(min=1)
        return self.total / torch.as_tensor(num_items, device=self.total.device).clamp(min=1)


def head_loss(hidden: Tensor, head: nn.Module, targets: Tensor, *, count_correct: bool = False) -> HeadLoss:
    """Cross-entropy, in float32 or better, of `head(hidden)` against `targets`.

    Logits are made for supervised positions only. No target at all gives a loss of 0 with zero gradients.

    Args:
        hidden: (..., H) after the final norm.
        head: maps (N, H) to logits (N, V).
        targets: (...) id to predict at each position, IGNORED to leave it out.
        count_correct: also count the targets that have the largest logit.
    """
    supervised = targets != IGNORED
    wanted = targets[supervised]
    logits = head(hidden[supervised])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, wanted, reduction="sum")
    correct = (logits.detach().argmax(dim=-1) == wanted).sum() if count_correct else None
    return HeadLoss(total, supervised.sum(), correct)
