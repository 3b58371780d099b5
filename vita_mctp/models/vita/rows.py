"""Rows of packed samples: where samples begin, what each MCTP block sees of them, which label each position predicts.

A row holds one or more samples one after the other; `position_ids` restart at 0 with each sample. A lone 0 also pads
ragged rows: a sample of one token, which no block sees and no loss counts.

B rows, T positions per row, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vita_mctp.models.attention import restarts
from vita_mctp.text.chat import IGNORED

LabelShift = Literal["per_sample", "reference_row"]


@dataclass(frozen=True, eq=False)
class Rows:
    """What one level of the chain (the backbone, then block 0, 1, ...) sees of the rows.

    Attributes:
        position_ids: (B, T) position of each element in its sample.
        source: (B, T) index of each element in the rows that the backbone sees.
    """

    position_ids: Tensor
    source: Tensor

    @classmethod
    def of(cls, position_ids: Tensor) -> Rows:
        """The backbone's level: every position.

        Raises:
            ValueError: a position is neither 0 nor its predecessor's plus one.
        """
        starts = position_ids == 0
        follows = torch.zeros_like(starts)
        follows[:, 1:] = position_ids[:, 1:] == position_ids[:, :-1] + 1
        if not bool((starts | follows).all()):
            raise ValueError("position_ids must count 0, 1, 2, ... and restart at 0 with each packed sample")
        return cls(
            position_ids, torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
        )

    def next(self, block: int) -> tuple[Rows, Tensor]:
        """Block `block`'s level: the elements with position > `block`, moved up to the front of their rows.

        Returns:
            That level, (B, T'), and `previous` (B, T'): for each of its elements, the index in this level of the
            element before it. T' >= 1 even when no sample is long enough: the block then runs on padding alone, so that
            its parameters take part in every step.
        """
        kept = self.position_ids > block
        counts = kept.sum(dim=1, keepdim=True)
        width = max(1, int(counts.max()))
        index = torch.argsort(~kept, dim=1, stable=True)[:, :width]
        real = torch.arange(width, device=kept.device) < counts
        positions = torch.where(real, self.position_ids.gather(1, index), 0)
        return Rows(positions, self.source.gather(1, index)), (index - 1).clamp(min=0)

    def targets(self, labels: Tensor, shift: LabelShift) -> Tensor:
        """(B, T) id that each element is trained to predict, IGNORED where there is none.

        Args:
            labels: (B, T of the backbone's level) unshifted labels.
            shift: "per_sample" shifts within each sample. "reference_row" shifts the row as one sequence, as the
                VITA-Audio reference does: the last element of a sample is trained on the next one's first label.
        """
        own = labels.gather(1, self.source)
        targets = torch.full_like(own, IGNORED)
        targets[:, :-1] = own[:, 1:]
        if shift == "per_sample":
            targets[:, :-1].masked_fill_(restarts(self.position_ids), IGNORED)
        return targets


def take(values: Tensor, index: Tensor) -> Tensor:
    """values (B, T, H) at index (B, T') -> (B, T', H)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
