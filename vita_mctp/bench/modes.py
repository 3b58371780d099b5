"""`bench modes`: tokens per second and speed-up of each decoding mode (VITA-Audio paper, table 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vita_mctp.bench.generation import (
    PAPER_PREFILL,
    PAPER_TOKENS,
    Generation,
    fitting_note,
    generate,
    generate_slowly,
    request_of,
    warm,
)
from vita_mctp.bench.machine import Machine
from vita_mctp.bench.result import Cell, Column, Panel, Study, series
from vita_mctp.bench.subjects import Subject
from vita_mctp.bench.traffic import Traffic
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import MODES, Mode
from vita_mctp.decoding.state import Request
from vita_mctp.errors import ConfigError

COLUMNS = (
    Column("mode"),
    Column("tokens", digits=0),
    Column("total", "s"),
    Column("tokens a second", digits=1),
    Column("speed-up", "×"),
    Column("step p50", "ms"),
    Column("step p99", "ms"),
    Column("limit", "tokens/s", 0),
    Column("of the limit", "%", 0),
)
_NAIVE = (Column("naive total", "s"), Column("naive, times slower", "×", 1), Column("same tokens", digits=0))
_NOTES = (
    "The audio encoder and decoder are not in these times, as in the paper.",
    "limit: bytes of weights, keys and values that the mode's steps read, over the measured bandwidth of a copy; a "
    "model that fits the processor's caches can pass it.",
    "Of several runs, the one with the median total.",
)

_POINTS = 128
"""Of a curve."""


@dataclass(frozen=True)
class ModesOptions:
    """runs: of each mode, in turns, so that the machine's other work falls on all. naive: time the slow twin too."""

    modes: tuple[Mode, ...] = tuple(MODES[name] for name in ("vanilla", "boost", "balance", "turbo"))
    tokens: int = PAPER_TOKENS
    prefill: int = PAPER_PREFILL
    runs: int = 1
    naive: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.modes or min(self.tokens, self.prefill, self.runs) < 1:
            raise ConfigError("wanted at least one mode, one token, one token of prefill and one run")


def bench_modes(subject: Subject, options: ModesOptions, machine: Machine) -> Study:
    """The speed-up is over vanilla where it is among the modes, else over the first."""
    engine, traffic = Engine(subject.model), Traffic.of(subject)
    requests = [request_of(subject, mode, options.prefill, options.tokens, options.seed) for mode in options.modes]
    found = _median_runs(engine, requests, options.runs)
    base = next((run for run, mode in zip(found, options.modes, strict=True) if mode.name == "vanilla"), found[0])
    rows = []
    for request, run in zip(requests, found, strict=True):
        row = _row(request, run, base, machine.seconds(traffic.run(request.mode, options.prefill, len(run.events))))
        rows.append(row + (_naive(subject, request, run) if options.naive else ()))
    columns = COLUMNS + (_NAIVE if options.naive else ())
    notes = (*fitting_note(subject, options.prefill, options.tokens), *_NOTES)
    return Study(
        "modes", "Speed of the decoding modes", columns, tuple(rows), _panels(options.modes, rows, found), notes
    )


def _median_runs(engine: Engine, requests: Sequence[Request], runs: int) -> list[Generation]:
    for request in requests:
        warm(engine, request)
    rounds = [[generate(engine, request) for request in requests] for _ in range(runs)]
    return [sorted(of_mode, key=lambda run: run.seconds)[runs // 2] for of_mode in zip(*rounds, strict=True)]


def _row(request: Request, run: Generation, base: Generation, least: float) -> tuple[Cell, ...]:
    steps = run.steps
    return (
        request.mode.name,
        len(run.events),
        run.seconds,
        run.tokens_per_second,
        run.tokens_per_second / base.tokens_per_second,
        1e3 * steps.median,
        1e3 * steps.percentile(99),
        len(run.events) / least,
        100 * least / run.seconds,
    )


def _naive(subject: Subject, request: Request, run: Generation) -> tuple[Cell, ...]:
    seconds, ids = generate_slowly(subject, request)
    same = sum(np.cumprod([fast.id == slow for fast, slow in zip(run.events, ids, strict=True)]))
    return (seconds, seconds / run.seconds, int(same))


def _panels(modes: Sequence[Mode], rows: Sequence[tuple[Cell, ...]], found: Sequence[Generation]) -> tuple[Panel, ...]:
    names = [mode.name for mode in modes]
    figures: dict[str, list[float | None]] = {}
    for label, place in (("measured", 3), ("limit by bytes", 7)):
        figures[label] = [value if isinstance(value := row[place], float) else None for row in rows]
    bars = tuple(series(label, names, ys, "bars") for label, ys in figures.items())
    curves = tuple(
        series(
            mode.name, list(run.moments[:: _thin(run)]), [float(n) for n in range(1, len(run.events) + 1, _thin(run))]
        )
        for mode, run in zip(modes, found, strict=True)
    )
    return (
        Panel("Tokens per second", "", "tokens/s", bars),
        Panel("Tokens made", "seconds since the prompt", "tokens", curves),
    )


def _thin(run: Generation) -> int:
    """Of how many tokens one is drawn."""
    return max(1, len(run.events) // _POINTS)
