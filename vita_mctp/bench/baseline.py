"""The plain loop that the engine is measured against: one forward a token, transformers' growing caches.

So a model of this kind is decoded where nothing is done for speed: for each token the level that makes it reads, by the
model's own forward, what it has not read yet. Unlike the slow twin it computes nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from vita_mctp.bench import Cell, spent
from vita_mctp.bench.models import LoadedModel
from vita_mctp.decoding.engine import Engine
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


@dataclass(frozen=True)
class Beside:
    """Tokens a CPU-second (on a GPU, a second) of the plain loop and of the engine; how many first ids are the same."""

    plain: float
    engine: float
    same: int

    def columns(self) -> dict[str, Cell]:
        ratio = self.engine / self.plain
        return {"plain loop": self.plain, "engine": self.engine, "engine over plain loop": ratio, "same ids": self.same}


def time_beside(loaded: LoadedModel, requests: Sequence[Request], runs: int) -> list[Beside]:
    """Both decode each request in turns; the best of the runs, as other work on the machine only slows one."""
    plain: list[float] = [0.0] * len(requests)
    engine, same = list(plain), [0] * len(requests)
    for _ in range(runs):
        for i, request in enumerate(requests):
            ids, seconds = _timed(loaded, partial(generate_plain, loaded.model, request))
            made, engine_seconds = _timed(loaded, partial(_generate, loaded, request))
            plain[i], engine[i] = max(plain[i], len(ids) / seconds), max(engine[i], len(made) / engine_seconds)
            same[i] = next((n for n in range(len(ids)) if ids[n] != made[n]), len(ids))
    return [Beside(*values) for values in zip(plain, engine, same, strict=True)]


def _generate(loaded: LoadedModel, request: Request) -> list[int]:
    return list(Engine(loaded.runner).generate([request])[0].ids)


def _timed(loaded: LoadedModel, job: Callable[[], list[int]]) -> tuple[list[int], float]:
    start = spent(loaded.device)
    ids = job()
    return ids, spent(loaded.device) - start
