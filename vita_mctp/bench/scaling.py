"""`bench scaling`: what a token costs behind a longer history, in a larger batch, and with more blocks in a cycle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vita_mctp.bench.generation import PAPER_PREFILL, advance_all, request_of
from vita_mctp.bench.machine import Machine
from vita_mctp.bench.result import Cell, Column, Panel, Study, series
from vita_mctp.bench.subjects import Subject
from vita_mctp.bench.traffic import Traffic
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import MODES, Mode
from vita_mctp.errors import ConfigError

HISTORY, BATCH, BLOCKS = "history length", "batch size", "blocks in a cycle"

COLUMNS = (
    Column("study"),
    Column("value", digits=0),
    Column("token", "ms", 3),
    Column("tokens a second, all requests", digits=1),
    Column("least", "ms", 3),
    Column("of the limit", "%", 0),
)
_NOTES = (
    "token: mean time of a step of all requests in a cycle of the mode, the median of the cycles after the first one, "
    "in which the blocks read the prompt.",
    "least: bytes that the step reads, weights once for the batch and each request's own keys and values, over the "
    "measured bandwidth of a copy.",
)

_LONGEST_CYCLE = 64
"""Tokens. A mode without a rhythm, such as vanilla, is counted token by token."""


@dataclass(frozen=True)
class ScalingOptions:
    """mode: of the first two studies, of one pair of counts. tokens: timed for each figure, in whole cycles."""

    mode: Mode = MODES["turbo"]
    tokens: int = 66
    histories: tuple[int, ...] = (32, 512, 1024, 2048, 4096, 8192)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    prefill: int = PAPER_PREFILL
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.mode.counts) != 2:
            raise ConfigError(f"mode {self.mode.name} begins otherwise than it goes on; give one pair of counts")


@dataclass(frozen=True)
class _Case:
    study: str
    value: int
    mode: Mode
    history: int
    batch: int


def bench_scaling(subject: Subject, options: ScalingOptions, machine: Machine) -> Study:
    """Three studies in one table; histories that the model has no positions for are left out, and said."""
    new = _cycle(options.mode) + _counted(options.mode, options.tokens)
    room = subject.model.config.max_position_embeddings - new
    cases = list(_cases(options, subject.model.config.num_nextn_predict_layers))
    rows = [_measure(subject, case, options, machine) for case in cases if case.history <= room]
    left_out = [f"{case.value:,}" for case in cases if case.history > room]
    notes = (*_NOTES, *([f"Left out, for want of positions: a history of {', '.join(left_out)}."] if left_out else []))
    panels = tuple(_panel(study, rows) for study in (HISTORY, BATCH, BLOCKS) if any(row[0] == study for row in rows))
    return Study("scaling", "What a token costs", COLUMNS, tuple(rows), panels, notes)


def _cases(options: ScalingOptions, num_blocks: int) -> Iterator[_Case]:
    for history in options.histories:
        yield _Case(HISTORY, history, options.mode, history, 1)
    for batch in options.batches:
        yield _Case(BATCH, batch, options.mode, options.prefill, batch)
    for blocks in range(num_blocks + 1):
        yield _Case(BLOCKS, blocks, Mode(f"1,{blocks}", (1, blocks)), options.prefill, 1)


def _measure(subject: Subject, case: _Case, options: ScalingOptions, machine: Machine) -> tuple[Cell, ...]:
    engine, traffic = Engine(subject.model, max_batch=case.batch), Traffic.of(subject)
    cycle = _cycle(case.mode)
    counted = _counted(case.mode, options.tokens)
    seeds = range(options.seed, options.seed + case.batch)
    total = cycle + counted
    states = [engine.start(request_of(subject, case.mode, case.history, total, seed)) for seed in seeds]
    advance_all(engine, states, cycle)  # in which every block reads the prompt
    steps = advance_all(engine, states, counted).seconds
    typical = float(np.median(np.reshape(steps, (-1, cycle)).mean(1)))
    weights = _moved(Traffic(traffic.weights, tuple(0 for _ in traffic.weights)), case, cycle, total)
    cached = _moved(Traffic(tuple(0 for _ in traffic.weights), traffic.cache_per_token), case, cycle, total)
    least = machine.seconds((weights + case.batch * cached) / counted)
    return (case.study, case.value, 1e3 * typical, case.batch / typical, 1e3 * least, 100 * least / typical)


def _moved(traffic: Traffic, case: _Case, first: int, end: int) -> int:
    """Bytes of new tokens first..end-1 of one request."""
    return traffic.run(case.mode, case.history, end) - traffic.run(case.mode, case.history, first)


def _cycle(mode: Mode) -> int:
    return sum(mode.counts) if sum(mode.counts) <= _LONGEST_CYCLE else 1


def _counted(mode: Mode, tokens: int) -> int:
    """Whole cycles."""
    return -(-tokens // _cycle(mode)) * _cycle(mode)


def _panel(study: str, rows: list[tuple[Cell, ...]]) -> Panel:
    mine = [row for row in rows if row[0] == study]
    xs = [row[1] for row in mine]
    figures = {
        label: [value if isinstance(value := row[place], float) else None for row in mine]
        for label, place in (("measured", 2), ("measured: limit by bytes", 4))
    }
    lines = [series(label, xs, ys, "limit" if ":" in label else "line") for label, ys in figures.items()]
    return Panel(f"Cost of a step by {study}", study, "ms", tuple(lines))
