"""`bench streams` and `bench gpu`: many answers at once that begin at moments of their own; and `bench scaling`: what a
token costs by history, batch and number of blocks.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from vita_mctp.bench import Cell, Line, Machine, Panel, Row, Study, now, spent
from vita_mctp.bench.models import LoadedModel, ModelChoice, open_language_model
from vita_mctp.bench.modes import Traffic, flops, request_of, token_seconds
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import Mode
from vita_mctp.errors import ConfigError, OutOfMemoryError
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
class Load:
    """streams: numbers of answers made at once. tokens, prefill: of each."""

    modes: Sequence[Mode]
    streams: Sequence[int]
    tokens: int
    prefill: int


@dataclass(frozen=True)
class _Run:
    """seconds: as `spent` counts them; firsts, steps: by the clock, of each stream and of each step."""

    tokens: int
    seconds: float
    firsts: Sequence[float]
    steps: Sequence[float]


def bench_streams(loaded: LoadedModel, machine: Machine, *, load: Load, seed: int = 0) -> Study:
    """A row of each mode with each number of streams."""
    rows = _rows(loaded, load, machine, seed)
    return Study("streams", "Many answers at once", rows, _UNITS, (_panel("", rows),), _NOTES)


def bench_gpu(machine: Machine, *, choices: Sequence[ModelChoice], load: Load, seed: int = 0) -> Study:
    """Each shape in each mode with each number of streams; what does not fit is a row without results."""
    rows: list[Row] = []
    panels = []
    for choice in choices:
        loaded = open_language_model(choice)
        found = _rows(loaded, load, machine, seed)
        rows += [{"shape": choice.name, **row} for row in found]
        panels.append(_panel(f", {choice.name}", found))
        del loaded
        _free(choice.device)
    return Study("gpu", "Shapes, modes and streams", rows, _UNITS, panels, _NOTES)


def _rows(loaded: LoadedModel, load: Load, machine: Machine, seed: int) -> list[Row]:
    return list(track(_each_row(loaded, load, machine, seed), loaded.name, len(load.modes) * len(load.streams)))


def _each_row(loaded: LoadedModel, load: Load, machine: Machine, seed: int) -> Iterator[Row]:
    traffic, tokens, prefill = Traffic.of(loaded), load.tokens, load.prefill
    caches = Traffic((0,) * len(traffic.weights), traffic.cache_per_token)
    for mode in load.modes:
        alone: float | None = None
        for number in load.streams:
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
            yield row | {"peak memory": _peak_memory(loaded.device)}
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


def _peak_memory(device: torch.device) -> float | None:
    """MiB: the most that was allocated on a GPU, or resident in this process, so far; None: the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / _MIB


HISTORY, BATCH, BLOCKS = "history length", "batch size", "blocks in a cycle"

_SCALING_UNITS = {"token": "ms", "least": "ms", "of the limit": "%"}
_SCALING_NOTES = (
    "token: mean time of a step of all requests in a cycle of the mode, the median of the cycles after the first one, "
    "in which the blocks read the prompt.",
    "least: bytes that the step reads, weights once for the batch and each request's own keys and values, over the "
    "measured bandwidth of a copy.",
)

_LONGEST_CYCLE = 64
"""Tokens. A mode without a rhythm, such as vanilla, is counted token by token."""
_SPARE = 8
"""Tokens beyond those measured: a step may make some more than were asked for."""


@dataclass(frozen=True)
class _Case:
    study: str
    value: int
    mode: Mode
    history: int
    batch: int

    @property
    def cycle(self) -> int:
        """Tokens."""
        return sum(self.mode.counts) if sum(self.mode.counts) <= _LONGEST_CYCLE else 1

    def counted(self, tokens: int) -> int:
        """So many tokens or a few more, in whole cycles."""
        return -(-tokens // self.cycle) * self.cycle


def bench_scaling(
    loaded: LoadedModel,
    machine: Machine,
    *,
    mode: Mode,
    tokens: int,
    histories: Sequence[int],
    batches: Sequence[int],
    prefill: int,
    seed: int = 0,
) -> Study:
    """Three studies in one table; histories that the model has no positions for are left out, and said.

    mode: of histories and batches, one pair of counts. tokens: timed for each row, in whole cycles.

    Raises:
        ConfigError: a mode that begins otherwise than it goes on.
    """
    if len(mode.counts) != 2:
        raise ConfigError(f"mode {mode.name} begins otherwise than it goes on; wanted: one pair of counts")
    cases = list(_cases(mode, histories, batches, prefill, loaded.model.config.num_nextn_predict_layers))
    room = loaded.model.config.max_position_embeddings - cases[0].cycle - cases[0].counted(tokens)
    fitting = [case for case in cases if case.history <= room]
    rows = [_measure(loaded, case, tokens, seed, machine) for case in track(fitting, "scaling")]
    left_out = [f"{case.value:,}" for case in cases if case.history > room]
    notes = list(_SCALING_NOTES)
    if left_out:
        notes.append(f"Left out, for want of positions: a history of {', '.join(left_out)}.")
    panels = [_scaling_panel(study, rows) for study in dict.fromkeys(str(row["study"]) for row in rows)]
    return Study("scaling", "What a token costs", rows, _SCALING_UNITS, panels, notes)


def _cases(
    mode: Mode, histories: Sequence[int], batches: Sequence[int], prefill: int, num_blocks: int
) -> Iterator[_Case]:
    for history in histories:
        yield _Case(HISTORY, history, mode, history, 1)
    for batch in batches:
        yield _Case(BATCH, batch, mode, prefill, batch)
    for blocks in range(num_blocks + 1):
        yield _Case(BLOCKS, blocks, Mode(f"1,{blocks}", (1, blocks)), prefill, 1)


def _measure(loaded: LoadedModel, case: _Case, tokens: int, seed: int, machine: Machine) -> Row:
    engine, counted = Engine(loaded.runner, max_batch=case.batch), case.counted(tokens)
    total = case.cycle + counted
    for i in range(case.batch):
        engine.add(replace(request_of(loaded, case.mode, case.history, total + _SPARE, seed + i), id=str(i)))
    token_seconds(engine, loaded.device, case.cycle)  # in which every block reads the prompt
    typical = float(np.median(token_seconds(engine, loaded.device, counted)))
    least = machine.seconds(_moved(Traffic.of(loaded), case, total) / counted)
    return {
        "study": case.study,
        "value": case.value,
        "token": 1e3 * typical,
        "tokens a second, all requests": case.batch / typical,
        "least": 1e3 * least,
        "of the limit": 100 * least / typical,
    }


def _moved(traffic: Traffic, case: _Case, end: int) -> int:
    """Bytes of new tokens case.cycle..end-1: weights once, keys and values of each request."""
    nothing = (0,) * len(traffic.weights)
    weights, caches = Traffic(traffic.weights, nothing), Traffic(nothing, traffic.cache_per_token)

    def behind_first(part: Traffic) -> int:
        return part.run(case.mode, case.history, end) - part.run(case.mode, case.history, case.cycle)

    return behind_first(weights) + case.batch * behind_first(caches)


def _scaling_panel(study: str, rows: Sequence[Row]) -> Panel:
    mine = [row for row in rows if row["study"] == study]
    xs = [row["value"] for row in mine]
    measured = Line("measured", xs, [row["token"] for row in mine])
    limit = Line("measured: limit by bytes", xs, [row["least"] for row in mine], "limit")
    return Panel(f"Cost of a step by {study}", study, "ms", (measured, limit))
