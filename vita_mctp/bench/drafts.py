"""`bench drafts`: where drafts that the backbone verifies pay, from what passes and blocks cost in a shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vita_mctp.bench import Line, Machine, Panel, Row, Study, spent
from vita_mctp.bench.models import LoadedModel
from vita_mctp.bench.modes import Traffic
from vita_mctp.decoding.runners.cycles import CycleRunner, Levels, Read
from vita_mctp.types import BACKBONE, IntArray

_UNITS = {"rows": "", "cost": "ms", "least": "ms"}
_NOTES = (
    "cost: the best of the runs, processor time on a CPU. least: by bytes, at the measured bandwidth of a copy.",
    "Vanilla, Boost, verified: a token, from the costs above; Boost's cycle is four passes, the first of which reads "
    "eleven rows, and ten blocks of fourteen rows.",
)
_BOOST_PASSES, _BOOST_TOKENS = 4, 14


def bench_drafts(
    loaded: LoadedModel,
    machine: Machine,
    *,
    tokens_a_pass: float,
    blocks_a_pass: float,
    prefill: int,
    runs: int,
    seed: int = 0,
) -> Study:
    """Where drafts pay: a shape's costs of passes and blocks, and what an acceptance measured elsewhere makes of them.

    tokens_a_pass, blocks_a_pass: as `bench.verified` counts them.
    """
    traffic, blocks = Traffic.of(loaded), loaded.runner.num_blocks
    rows = 1 + round(tokens_a_pass)
    one, eleven, checked = (_pass_seconds(loaded, n, prefill, runs) for n in (1, 1 + blocks, rows))
    chain, checked_chain = (_chain_seconds(loaded, n, prefill, runs) for n in (_BOOST_TOKENS, rows))
    passes, block = (1e3 * machine.seconds(traffic.step(level, prefill)) for level in (BACKBONE, 1))
    boost = (eleven + (_BOOST_PASSES - 1) * one + chain) / _BOOST_TOKENS
    verified = (checked + blocks_a_pass / blocks * checked_chain) / tokens_a_pass
    found: list[tuple[str, int | None, float, float]] = [
        ("a backbone pass", 1, one, passes),
        ("a backbone pass", 1 + blocks, eleven, passes),
        ("a backbone pass", rows, checked, passes),
        (f"{blocks} blocks", _BOOST_TOKENS, chain, blocks * block),
        (f"{blocks} blocks", rows, checked_chain, blocks * block),
        ("a token of Vanilla", None, one, passes),
        ("a token of Boost", None, boost, (_BOOST_PASSES * passes + blocks * block) / _BOOST_TOKENS),
        ("a token of verified", None, verified, (passes + blocks_a_pass * block) / tokens_a_pass),
    ]
    table: list[Row] = [{"what": w, "rows": n, "cost": 1e3 * cost, "least": least} for w, n, cost, least in found]
    bars = Line("measured", [row["what"] for row in table[-3:]], [row["cost"] for row in table[-3:]], "bars")
    notes = (f"Verified makes {tokens_a_pass:g} tokens a pass with {blocks_a_pass:g} blocks.", *_NOTES)
    return Study("drafts", "Where drafts pay", table, _UNITS, (Panel("A token", "", "ms", (bars,)),), notes)


def _pass_seconds(loaded: LoadedModel, rows: int, prefill: int, runs: int) -> float:
    levels = _levels(loaded)
    read = Read(levels.open(prefill + rows), 0, np.zeros(prefill, np.int64))
    levels.backbone([read])
    read = replace(read, start=prefill, ids=np.zeros(rows, np.int64), judged=rows)
    return _best(loaded, runs, lambda: levels.backbone([read]))


def _chain_seconds(loaded: LoadedModel, rows: int, prefill: int, runs: int) -> float:
    """Of all blocks, whose rows go from one segment to the next."""
    levels = _levels(loaded)
    slot, ids = levels.open(prefill + rows + levels.num_blocks), np.zeros(prefill, np.int64)
    hidden = levels.backbone([Read(slot, 0, ids)])[0].hidden

    def run(start: int, ids: IntArray, hidden: Any) -> None:
        for first, last in levels.segments:
            hidden = levels.chain(first, last, [Read(slot, start, ids, hidden=hidden)])[0].hidden

    run(0, ids, hidden)
    hidden = levels.concatenate([hidden] * rows)[:rows]
    return _best(loaded, runs, lambda: run(prefill, np.zeros(rows, np.int64), hidden))


def _best(loaded: LoadedModel, runs: int, job: Callable[[], object]) -> float:
    """Seconds of the best of some runs behind one that is not counted."""
    found = []
    for _ in range(runs + 1):
        start = spent(loaded.device)
        job()
        found.append(spent(loaded.device) - start)
    return min(found[1:])


def _levels(loaded: LoadedModel) -> Levels:
    assert isinstance(loaded.runner, CycleRunner)
    return loaded.runner.levels
