"""What VocalNet is trained on: chats with their recordings spliced in, and answers' hidden states with their units.

Stage 1 trains the thinker to answer in writing, stage 2 the talker to speak a frozen thinker's hidden states.

B samples, T positions, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.models.vocalnet.prompts import SPEECH
from vita_mctp.text.chat import IGNORED


@dataclass(frozen=True, eq=False)
class Merged:
    """embeds (B, T, H), zeros behind each sample's end; labels (B, T), IGNORED where not trained on."""

    embeds: Tensor
    labels: Tensor


def merge(model: Any, chats: Sequence[tuple[Tensor, Tensor]], recordings: Sequence[Sequence[Tensor]]) -> Merged:
    """Chats as (ids, labels), each (n,), with rows (r, H) of each recording where SPEECH stands."""
    embeds, labels = [], []
    for (ids, own), heard in zip(chats, recordings, strict=True):
        indices = (ids == SPEECH).nonzero().flatten().tolist()
        if len(indices) != len(heard):
            raise ValueError(f"a chat with {len(indices)} recordings got the rows of {len(heard)}")
        words = model.embed(ids.clamp(min=0)[None])[0]
        starts, ends = [0, *(index + 1 for index in indices)], [*indices, len(ids)]
        rows, marks = [], []
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            rows.append(words[start:end])
            marks.append(own[start:end])
            if number < len(heard):
                rows.append(heard[number].to(words))
                marks.append(own.new_full((len(heard[number]),), IGNORED))
        embeds.append(torch.cat(rows))
        labels.append(torch.cat(marks))
    return Merged(pad_sequence(embeds, batch_first=True), pad_sequence(labels, True, IGNORED))


def hidden_states(model: Any, merged: Merged) -> Tensor:
    """(B, T, H) after the final norm, which is what the talker speaks."""
    positions = torch.arange(merged.embeds.shape[1], device=merged.embeds.device)[None]
    hidden: Tensor = model.backbone(merged.embeds, positions.expand(len(merged.embeds), -1))
    return hidden


def thinker_loss(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens, float32 or better."""
    known = labels[:, 1:] != IGNORED
    logits = model.logits(hidden[:, :-1][known])
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels[:, 1:][known])


def spoken_rows(hidden: Tensor, labels: Tensor, unspoken: int | None, text_end: Tensor | None) -> list[Tensor]:
    """Of each sample the rows (n, H) that its speech is trained on.

    These stand at the answer's tokens but for `unspoken`; the last yields to the row text_end (H,), if there is one.
    """
    rows = []
    for states, each in zip(hidden, labels, strict=True):
        kept = states[(each != IGNORED) & (each != (IGNORED if unspoken is None else unspoken))]
        rows.append(kept if text_end is None else torch.cat([kept[:-1], text_end[None]]))
    return rows
