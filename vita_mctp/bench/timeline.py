"""`bench timeline`: when each token came, and from the backbone or which block (VITA-Audio paper, figure 5)."""

from __future__ import annotations

from dataclasses import dataclass

from vita_mctp.bench.generation import PAPER_PREFILL, Generation, generate, request_of, warm
from vita_mctp.bench.machine import Machine
from vita_mctp.bench.result import Cell, Column, Line, Panel, Study, series
from vita_mctp.bench.subjects import Subject
from vita_mctp.bench.traffic import Traffic
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import MODES, Mode
from vita_mctp.types import BACKBONE

COLUMNS = (
    Column("mode"),
    Column("token", digits=0),
    Column("source"),
    Column("came after", "ms"),
    Column("least", "ms"),
)

_RUNS = 5
"""Of each mode; the fastest is drawn, since only other work on the machine makes one slower than another."""


@dataclass(frozen=True)
class TimelineOptions:
    modes: tuple[Mode, ...] = tuple(MODES[name] for name in ("vanilla", "balance", "boost", "turbo"))
    tokens: int = 48
    prefill: int = PAPER_PREFILL
    seed: int = 0


def bench_timeline(subject: Subject, options: TimelineOptions, machine: Machine) -> Study:
    """One row for each token of each mode."""
    engine, traffic = Engine(subject.model), Traffic.of(subject)
    rows: list[tuple[Cell, ...]] = []
    panels = []
    for mode in options.modes:
        request = request_of(subject, mode, options.prefill, options.tokens, options.seed)
        warm(engine, request)
        run = min((generate(engine, request) for _ in range(_RUNS)), key=lambda run: run.seconds)
        least = 0.0
        for event, moment in zip(run.events, run.moments, strict=True):
            least += machine.seconds(traffic.step(event.level, options.prefill + event.index))
            source = "backbone" if event.level == BACKBONE else f"block {event.level - 1}"
            rows.append((mode.name, event.index + 1, source, 1e3 * moment, 1e3 * least))
        panels.append(Panel(mode.name, "ms since the prompt", "token", _lines(run)))
    notes = (
        f"The fastest of {_RUNS} runs of each mode.",
        "least: bytes read up to each token, over the measured bandwidth of a copy.",
    )
    return Study("timeline", "When each token came", COLUMNS, tuple(rows), tuple(panels), notes)


def _lines(run: Generation) -> tuple[Line, ...]:
    def of(label: str, by_backbone: bool) -> Line:
        pairs = zip(run.events, run.moments, strict=True)
        chosen = [(event.index + 1, moment) for event, moment in pairs if (event.level == BACKBONE) == by_backbone]
        return series(label, [1e3 * moment for _, moment in chosen], [float(index) for index, _ in chosen], "points")

    return of("backbone", True), of("blocks", False)
