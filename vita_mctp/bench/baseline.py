"""The plain loop that the engine is measured against: one forward a token, transformers' growing caches.

So a model of this kind is decoded where nothing is done for speed: for each token the level that makes it reads, by the
model's own forward, what it has not read yet. Unlike the slow twin it computes nothing twice.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from vita_mctp.decoding.modes import Mode, PlanCursor
from vita_mctp.decoding.request import Request
from vita_mctp.types import BACKBONE


@torch.inference_mode()
def generate_plain(model: Any, request: Request) -> list[int]:
    """The greedy answer of `max_new_tokens` ids."""
    mode, blocks = request.mode, model.config.num_nextn_predict_layers
    cursor = PlanCursor.start(Mode("1,0", (1, 0)) if mode.verified else mode, blocks)
    ids, cache = list(request.prompt_ids), DynamicCache(config=model.config)
    unread: list[list[torch.Tensor]] = [[] for _ in range(blocks + 1)]  # hidden rows that the next level has not read
    read = [0] * (blocks + 1)
    for _ in range(request.max_new_tokens):
        level, cursor = cursor.step()
        first = level + read[level]
        embeds = model.embed(torch.tensor([ids[first:]], device=model.device))
        positions = torch.arange(first, len(ids), device=model.device)[None]
        if level == BACKBONE:
            hidden = model.backbone(embeds, positions, cache=cache)
        else:
            previous, unread[level - 1] = torch.cat(unread[level - 1], 1), []
            hidden = model.block(level - 1, embeds, previous, positions, cache=cache)
        read[level] = len(ids) - level
        if level < cursor.reach:
            unread[level].append(hidden)
        ids.append(int(model.logits(hidden[:, -1]).argmax(-1)))
    return ids[len(request.prompt_ids) :]
