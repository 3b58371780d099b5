"""A model's logits at every level by teacher forcing, the whole chain computed from nothing, with no cache.

A level's token at position p depends only on true tokens, never on the level's own earlier guesses, so what the engine
gets from its caches must equal these; the engine's slow twin in the tests is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vita_mctp.types import HeardAudio

if TYPE_CHECKING:
    from vita_mctp.models.registry import SpeechModel


@torch.inference_mode()
def teacher_forced_chain(
    model: SpeechModel, ids: Sequence[int], deepest: int | None = None, heard: Sequence[HeardAudio] = ()
) -> list[Tensor]:
    """Logits of levels 0..deepest (default: all that `ids` are long enough for).

    Entry 0 is the backbone's (T, V), row p predicting token p + 1. Entry k is level k's (T-k, V): it starts at position
    k, reading token p and the hidden state of level k - 1 at p - 1.
    """
    device = next(model.parameters()).device
    length = len(ids)
    embeds = model.embed(torch.tensor([list(ids)], device=device))
    positions = torch.arange(length, device=device)[None]
    hidden = model.backbone(model.listen(embeds, [heard]), positions, attention_mask=_causal_mask(embeds))
    chain = [model.logits(hidden)[0]]
    deepest = model.config.num_nextn_predict_layers if deepest is None else deepest
    for level in range(1, min(deepest, length - 1) + 1):
        seen = embeds[:, level:]
        hidden = model.block(level - 1, seen, hidden[:, :-1], positions[:, level:], attention_mask=_causal_mask(seen))
        chain.append(model.logits(hidden)[0])
    return chain


def _causal_mask(embeds: Tensor) -> Tensor:
    """Additive causal mask (1, 1, T, T) for embeds (1, T, H)."""
    length = embeds.shape[1]
    mask = torch.full((length, length), torch.finfo(embeds.dtype).min, dtype=embeds.dtype, device=embeds.device)
    return mask.triu(1)[None, None]
