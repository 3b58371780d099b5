"""`bench streams` and `bench gpu`: many answers at once that begin at moments of their own."""

from __future__ import annotations

import gc
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from vita_mctp.bench import Cell, Line, Machine, Panel, Row, Study, now, spent
from vita_mctp.bench.models import LoadedModel, ModelChoice, open_language_model
from vita_mctp.bench.modes import Traffic, flops, request_of
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import Mode
from vita_mctp.errors import OutOfMemoryError
from vita_mctp.progress import track

_FIRST = 11
"""Tokens: one of the backbone and ten of the blocks, which hold a first chunk of sound."""
_APART = 32
"""Answers of n tokens begin within n / 32 steps."""
_MIB = 2**20
_UNITS = {"tokens a second": "all", "over one stream": "×", "step p50": "ms", f"first {_FIRST} tokens p50": "ms"}
_UNITS |= {"limit": "tokens/s", "of the limit": "%", "peak memory": "MiB"}
_NOTES = (
    "tokens a second: of all streams, over processor time on a CPU and over time elsewhere; each begins at a step that "
    "the seed draws, and its prompt counts.",
    f"first {_FIRST} tokens: from the moment a stream joins, by the clock; Boost and Turbo make so many with one pass.",
    "limit: what takes longer, reading weights once for all streams and each one's keys and values, or all products.",
)


@dataclass(frozen=True)
class _Run:
    """seconds: as `spent` counts them; firsts, steps: by the clock, of each stream and of each step."""

    tokens: int
    seconds: float
    firsts: Sequence[float]
    steps: Sequence[float]


def bench_streams(
    loaded: LoadedModel,
    machine: Machine,
    *,
    modes: Sequence[Mode],
    streams: Sequence[int],
    tokens: int,
    prefill: int,
    seed: int = 0,
) -> Study:
    """tokens: of each stream."""
    found = _rows(loaded, machine, modes, streams, tokens, prefill, seed)
    rows = list(track(found, "streams", len(modes) * len(streams)))
    return Study("streams", "Many answers at once", rows, _UNITS, (_panel("", rows),), _NOTES)


def bench_gpu(
    machine: Machine,
    *,
    choices: Sequence[ModelChoice],
    modes: Sequence[Mode],
    streams: Sequence[int],
    tokens: int,
    prefill: int,
    seed: int = 0,
) -> Study:
    """Each shape in each mode with each number of streams; what does not fit is a row without results."""
    rows: list[Row] = []
    panels = []
    for choice in choices:
        loaded = open_language_model(choice)
        measured = _rows(loaded, machine, modes, streams, tokens, prefill, seed)
        found = list(track(measured, choice.name, len(modes) * len(streams)))
        rows += [{"shape": choice.name, **row} for row in found]
        panels.append(_panel(f", {choice.name}", found))
        del loaded
        _free(choice.device)
    return Study("gpu", "Shapes, modes and streams", rows, _UNITS, panels, _NOTES)


def _rows(
    loaded: LoadedModel,
    machine: Machine,
    modes: Sequence[Mode],
    streams: Sequence[int],
    tokens: int,
    prefill: int,
    seed: int,
) -> Iterator[Row]:
    traffic = Traffic.of(loaded)
    caches = Traffic((0,) * len(traffic.weights), traffic.cache_per_token)
    for mode in modes:
        alone: float | None = None
        for number in streams:
            if loaded.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(loaded.device)
            try:
                run = _run(loaded, mode, number, tokens, prefill, seed)
            except (OutOfMemoryError, torch.OutOfMemoryError):
                run = None
            total = number * tokens
            moved = traffic.run(mode, prefill, tokens) + (number - 1) * caches.run(mode, prefill, tokens)
            limit = total / machine.seconds(moved, number * flops(loaded, mode, prefill, tokens))
            speed = None if run is None else run.tokens / run.seconds
            alone = speed if alone is None else alone
            row: dict[str, Cell] = {"mode": mode.name, "streams": number, "tokens a second": speed}
            row["over one stream"] = None if speed is None or alone is None else speed / alone
            row["step p50"] = None if run is None else 1e3 * median(run.steps)
            row[f"first {_FIRST} tokens p50"] = None if run is None else 1e3 * median(run.firsts)
            row |= {"limit": limit, "of the limit": None if speed is None else 100 * speed / limit}
            yield row | {"peak memory": _peak_memory(loaded.device) / _MIB}
            _free(loaded.device)


def _run(loaded: LoadedModel, mode: Mode, streams: int, tokens: int, prefill: int, seed: int) -> _Run:
    requests = [replace(request_of(loaded, mode, prefill, tokens, seed + i), id=str(i)) for i in range(streams)]
    engine, size = Engine(loaded.runner, max_batch=streams), 1
    while size < 2 * streams:  # builds what is built at first use, for every number at once
        engine.generate([replace(request, max_new_tokens=_FIRST) for request in requests[:size]])
        size *= 2
    moments = np.random.default_rng(seed).integers(1 + tokens // _APART, size=streams)
    waiting = sorted(zip(moments.tolist(), range(streams), strict=True), reverse=True)
    joined: dict[str, float] = {}
    made: Counter[str] = Counter()
    firsts: list[float] = []
    steps: list[float] = []
    start, before = spent(loaded.device), now(loaded.device)
    while waiting or len(engine):
        while waiting and (waiting[-1][0] <= len(steps) or not len(engine)):
            request = requests[waiting.pop()[1]]
            engine.add(request)
            joined[request.id] = now(loaded.device)
        events = engine.step()
        moment = now(loaded.device)
        steps.append(moment - before)
        before = moment
        for name, new in events.items():
            if made[name] < min(_FIRST, tokens) <= made[name] + len(new):
                firsts.append(moment - joined[name])
            made[name] += len(new)
    return _Run(made.total(), spent(loaded.device) - start, firsts, steps)


def _panel(shape: str, rows: Sequence[Row]) -> Panel:
    lines = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        mine = [row for row in rows if row["mode"] == mode]
        lines.append(Line(str(mode), [row["streams"] for row in mine], [row["tokens a second"] for row in mine]))
    return Panel(f"Tokens a second{shape}", "streams", "tokens/s", lines)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, or resident in this process, so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
