"""`bench scaling`: what a token costs by history, batch and number of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vita_mctp.bench import Line, Machine, Panel, Row, Study
from vita_mctp.bench.models import LoadedModel
from vita_mctp.bench.modes import Traffic, request_of, token_seconds
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import Mode
from vita_mctp.errors import ConfigError
from vita_mctp.progress import track

HISTORY, BATCH, BLOCKS = "history length", "batch size", "blocks in a cycle"

_UNITS = {"token": "ms", "least": "ms", "of the limit": "%"}
_NOTES = (
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
    notes = list(_NOTES)
    if left_out:
        notes.append(f"Left out, for want of positions: a history of {', '.join(left_out)}.")
    panels = [_panel(study, rows) for study in dict.fromkeys(str(row["study"]) for row in rows)]
    return Study("scaling", "What a token costs", rows, _UNITS, panels, notes)


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


def _panel(study: str, rows: Sequence[Row]) -> Panel:
    mine = [row for row in rows if row["study"] == study]
    xs = [row["value"] for row in mine]
    measured = Line("measured", xs, [row["token"] for row in mine])
    limit = Line("measured: limit by bytes", xs, [row["least"] for row in mine], "limit")
    return Panel(f"Cost of a step by {study}", study, "ms", (measured, limit))
