"""A batch of answers as a talker is trained on it: padded columns, labels of each level, and who attends to whom.

Columns: text (BOS, then the projected rows, padded to the longest), then speech (SOS, then what was said, padded).
B answers, T text columns, S speech rows (of g tokens each), H width, K levels behind the main head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.models.vocalnet.sizes import TalkerSizes


@dataclass(frozen=True, eq=False)
class TalkerBatch:
    """Answers to learn from.

    text: (B, T - 1, H) rows of the thinker, zeros behind each answer's. text_lengths: (B,) with BOS.
    inputs: (B, S, g) ids from SOS on. targets: (B, S, g) what follows them. rows: (B,) valid rows of each.
    streaming: (B,) bool, which mask each is trained with.
    """

    sizes: TalkerSizes
    text: Tensor
    text_lengths: Tensor
    inputs: Tensor
    targets: Tensor
    rows: Tensor
    streaming: Tensor

    @classmethod
    def of(
        cls, sizes: TalkerSizes, text: Sequence[Tensor], speech: Sequence[Tensor], streaming: Sequence[bool]
    ) -> TalkerBatch:
        """text: of each answer (n, H). speech: of each (L,) ids, no special ones. streaming: of each."""
        g, device = sizes.group_size, text[0].device
        ends = [torch.cat([said.new_full((g,), sizes.sos), said, said.new_tensor([sizes.eos])]) for said in speech]
        padded = pad_sequence(ends, batch_first=True, padding_value=sizes.pad)
        padded = torch.nn.functional.pad(padded, (0, -padded.shape[1] % g), value=sizes.pad)
        groups = padded.unflatten(1, (-1, g)).to(device)
        rows = torch.tensor([-(-(len(said) + 1) // g) for said in speech], device=device)
        lengths = torch.tensor([len(row) + 1 for row in text], device=device)
        flags = torch.tensor(list(streaming), device=device)
        return cls(
            sizes, pad_sequence(list(text), batch_first=True), lengths, groups[:, :-1], groups[:, 1:], rows, flags
        )

    @property
    def text_columns(self) -> int:
        return self.text.shape[1] + 1

    def labels(self, level: int = 0) -> Tensor:
        """(B, S, g), PAD where there is nothing to learn: what level k predicts stands k rows further on."""
        shifted = torch.full_like(self.targets, self.sizes.pad)
        shifted[:, : self.targets.shape[1] - level] = self.targets[:, level:]
        return shifted

    def mask(self, level: int = 0) -> Tensor:
        """(B, T + S, T + S) bool, True = attends. A padded row attends to nothing; no valid row attends to it."""
        text, columns = self.text_columns, self.text_columns + self.inputs.shape[1]
        rows = (self.rows - level).clamp(min=0)
        lengths, index = self.text_lengths, torch.arange(columns, device=self.text.device)
        mask = torch.zeros(len(rows), columns, columns, dtype=torch.bool, device=self.text.device)
        valid = index[:text] < lengths[:, None]
        causal = index[:text] <= index[:text, None]
        mask[:, :text, :text] = (valid[:, :, None] & valid[:, None]) & (causal | ~self.streaming[:, None, None])
        spoken = index[: columns - text]
        limits = text_limits(self.sizes, spoken, lengths, self.streaming, level)
        alive = spoken < rows[:, None]
        mask[:, text:, :text] = (index[:text] < limits[..., None]) & alive[..., None]
        mask[:, text:, text:] = (spoken <= spoken[:, None]) & alive[..., None]
        return mask


def text_limits(sizes: TalkerSizes, rows: Tensor, text_lengths: Tensor, streaming: Tensor, level: int = 0) -> Tensor:
    """How many text columns, BOS counted, speech rows (R,) of each answer may see: (B, R).

    When streaming, rows 0..C_s see one chunk of C_t, the next C_s two, and so on; level k's row j sees what row j + k
    of the main head sees.
    """
    chunks = (rows + level - 1).clamp(min=0) // sizes.speech_chunk + 1
    lengths = text_lengths[:, None].expand(-1, len(rows))
    return torch.where(streaming[:, None], torch.minimum(chunks * sizes.text_chunk, lengths), lengths)
