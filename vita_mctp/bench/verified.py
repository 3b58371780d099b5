"""`bench verified`: what drafts that the backbone verifies bring on a trained model, beside Vanilla and Boost; and
`bench drafts`: where they pay, from what passes and blocks cost in a shape.

Acceptance belongs to a model and its prompts: random weights say nothing about it. Costs belong to a shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vita_mctp.bench import Cell, Line, Machine, Panel, Row, Study, spent
from vita_mctp.bench.models import LoadedModel
from vita_mctp.bench.modes import Traffic
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES, Mode
from vita_mctp.decoding.request import Classify, Request, SequenceState
from vita_mctp.decoding.runners.cycles import CycleRunner, Levels, Read
from vita_mctp.progress import track
from vita_mctp.types import BACKBONE, IntArray, TokenEvent, TokenKind

_BATCH = 16
_NOTES = (
    "accepted: drafts that the backbone chose too. A pass accepts so many and makes one token of its own.",
    "block steps unused: of the blocks that ran, those whose draft was not accepted; a graph runs all of its blocks.",
    "passes to the first sound: of the backbone, until there are codes for the first chunk; one reads the prompt.",
    "tokens a CPU-second: processor time of the engine alone, prompts included, each in the three modes in turns.",
    "right: written answers, word for word.",
)


@dataclass(frozen=True)
class Asked:
    """A request of any mode, and the one right answer in writing, if there is one."""

    request: Request
    right: str | None


@dataclass(frozen=True)
class Spelling:
    """What ids mean. first_block: audio codes that the first chunk of sound takes."""

    classify: Classify
    decode: Callable[[Iterable[int]], str]
    first_block: int


@dataclass
class _Tally:
    """What one mode did. drafted, accepted: by slot, from 0, and kind; blocks: those that ran."""

    tokens: int = 0
    passes: int = 0
    first_sound: int = 0
    seconds: float = 0.0
    right: int = 0
    blocks: int = 0
    drafted: Counter[tuple[int, TokenKind]] = field(default_factory=Counter)
    accepted: Counter[tuple[int, TokenKind]] = field(default_factory=Counter)

    def percent(self, slots: Iterable[int], kinds: Iterable[TokenKind]) -> float | None:
        keys = [(slot, kind) for slot in slots for kind in kinds]
        drafted = sum(self.drafted[key] for key in keys)
        return 100 * sum(self.accepted[key] for key in keys) / drafted if drafted else None


def bench_verified(
    loaded: LoadedModel,
    machine: Machine,
    *,
    sets: Mapping[str, Sequence[Asked]],
    spelling: Spelling,
    verified: Mode = MODES["verified"],
    seed: int = 0,
) -> Study:
    """A column for each set of requests. verified: that mode, or a variant of it."""
    columns = {name: _column(loaded, asked, spelling, verified) for name, asked in track(sets.items(), "sets")}
    whats = next(iter(columns.values()))
    rows: list[Row] = [{"what": what} | {name: column[what] for name, column in columns.items()} for what in whats]
    slots = [what for what in whats if what.startswith("accepted, slot")]
    speeds = [what for what in whats if what.startswith("tokens a CPU-second")]
    panels = [
        Panel("Drafts accepted", "slot", "%", _lines(columns, slots, list(range(1, len(slots) + 1)), "line")),
        Panel("Tokens a CPU-second", "", "", _lines(columns, speeds, [what.split(", ")[1] for what in speeds], "bars")),
    ]
    lossy = (f"Lossy: drafts that are typical at {verified.typical:g} stand too; see Vanilla's ids exactly.",)
    notes = (
        f"Chains end with the draft that makes the product of probabilities less than {verified.stop_below:g}.",
        *(lossy if verified.typical else ()),
        *_NOTES,
    )
    return Study("verified", "Drafts that the backbone verifies", rows, {}, panels, notes)


def _lines(columns: Mapping[str, Mapping[str, Cell]], whats: Sequence[str], xs: list[Any], style: Any) -> list[Line]:
    return [Line(name, xs, [column[what] for what in whats], style) for name, column in columns.items()]


def _column(loaded: LoadedModel, asked: Sequence[Asked], spelling: Spelling, verified: Mode) -> dict[str, Cell]:
    tallies = {mode: _Tally() for mode in (MODES["vanilla"], MODES["boost"], verified)}
    vanilla, exact = [], 0
    for each in asked:
        ids = [_decode(loaded, each, mode, spelling, tally) for mode, tally in tallies.items()]
        vanilla.append(ids[0])
        exact += ids[2] == ids[0]
    requests = [replace(each.request, mode=verified) for each in asked]
    Engine(loaded.runner, max_batch=_BATCH).generate(requests[:_BATCH])  # builds what is built at first use
    start = spent(loaded.device)
    batch = Engine(loaded.runner, max_batch=_BATCH).generate(requests)
    batch_seconds = spent(loaded.device) - start
    it, n = tallies[verified], len(asked)
    drafted, accepted = it.drafted.total(), it.accepted.total()
    slots, kinds = range(loaded.runner.num_blocks), tuple(TokenKind)
    marks = tuple(kind for kind in kinds if kind not in (TokenKind.TEXT, TokenKind.AUDIO))
    knows_right = any(each.right is not None for each in asked)
    return {
        "answers": n,
        "Vanilla's ids exactly": exact,
        f"Vanilla's ids exactly, {_BATCH} at once": sum(r.ids == ids for r, ids in zip(batch, vanilla, strict=True)),
        "tokens": it.tokens,
        "tokens a backbone pass": it.tokens / it.passes,
        "tokens a pass behind the prompt's": (it.tokens - n) / (it.passes - n) if it.passes > n else None,
        "drafts a pass": drafted / it.passes,
        "blocks run a pass": it.blocks / it.passes,
        "block steps unused, %": 100 * (1 - accepted / it.blocks) if it.blocks else None,
        "accepted, text, %": it.percent(slots, (TokenKind.TEXT,)),
        "accepted, audio, %": it.percent(slots, (TokenKind.AUDIO,)),
        "accepted, begin, end and stop, %": it.percent(slots, marks),
        **{f"accepted, slot {slot + 1}, %": it.percent((slot,), kinds) for slot in slots},
        **{f"passes to the first sound, {mode.name}": t.first_sound / n for mode, t in tallies.items()},
        **{f"tokens a CPU-second, {mode.name}": t.tokens / t.seconds for mode, t in tallies.items()},
        f"tokens a CPU-second, {verified.name} {_BATCH} at once": it.tokens / batch_seconds,
        **{f"right, {mode.name}, %": 100 * t.right / n if knows_right else None for mode, t in tallies.items()},
    }


def _decode(loaded: LoadedModel, asked: Asked, mode: Mode, spelling: Spelling, tally: _Tally) -> tuple[int, ...]:
    """One answer, a step at a time; what came of each step's drafts goes into the tally."""
    engine = Engine(loaded.runner, classify=spelling.classify)
    start = spent(loaded.device)
    state = engine.start(replace(asked.request, mode=mode))
    steps: list[tuple[list[int], list[TokenEvent]]] = []
    while state.reason is None:
        drafts = list(state.memory.drafts)
        steps.append((drafts, engine.advance([state])[0]))
    tally.seconds += spent(loaded.device) - start
    events = [event for _, new in steps for event in new]
    for drafts, new in steps:
        for i, draft in enumerate(drafts):
            tally.drafted[i, spelling.classify(draft)] += 1
            tally.accepted[i, spelling.classify(draft)] += i < len(new) and new[i].level != BACKBONE
        tally.blocks += _ran(state, len(drafts))
    passes, first_sound = count_passes([new for _, new in steps], mode, spelling.first_block)
    tally.tokens, tally.passes = tally.tokens + len(events), tally.passes + passes
    tally.first_sound += first_sound
    text = spelling.decode(event.id for event in events if event.kind is TokenKind.TEXT)
    tally.right += asked.right is not None and text.strip() == asked.right
    return tuple(event.id for event in events)


def count_passes(steps: Iterable[Sequence[TokenEvent]], mode: Mode, first_block: int) -> tuple[int, int]:
    """Of the backbone in an answer's steps: all, and those until there are so many codes; 0 where there never are."""
    passes = codes = first = 0
    for events in steps:
        for number, event in enumerate(events):
            passes += number == 0 if mode.verified else event.level == BACKBONE
            codes += event.kind is TokenKind.AUDIO
            first = passes if not first and codes >= first_block else first
    return passes, first


def _ran(state: SequenceState, drafts: int) -> int:
    """Blocks that ran for so many drafts: whole segments of the chain."""
    segments = state.memory.segments
    return next((segment.last for segment in segments if segment.last >= drafts), 0) if drafts else 0


_DRAFTS_UNITS = {"rows": "", "cost": "ms", "least": "ms"}
_DRAFTS_NOTES = (
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

    tokens_a_pass, blocks_a_pass: as `bench verified` counts them.
    """
    traffic, blocks = Traffic.of(loaded), loaded.runner.num_blocks
    rows = 1 + round(tokens_a_pass)
    one, eleven, checked = (_pass_seconds(loaded, n, prefill, runs) for n in (1, 1 + blocks, rows))
    chain = _chain_seconds(loaded, _BOOST_TOKENS, prefill, runs, rough=False)
    checked_chain = _chain_seconds(loaded, rows, prefill, runs, rough=True)
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
    notes = (f"Verified makes {tokens_a_pass:g} tokens a pass with {blocks_a_pass:g} blocks.", *_DRAFTS_NOTES)
    return Study("drafts", "Where drafts pay", table, _DRAFTS_UNITS, (Panel("A token", "", "ms", (bars,)),), notes)


def _pass_seconds(loaded: LoadedModel, rows: int, prefill: int, runs: int) -> float:
    levels = _levels(loaded)
    read = Read(levels.open(prefill + rows), 0, np.zeros(prefill, np.int64))
    levels.backbone([read])
    read = replace(read, start=prefill, ids=np.zeros(rows, np.int64), judged=rows)
    return _best(loaded, runs, lambda: levels.backbone([read]))


def _chain_seconds(loaded: LoadedModel, rows: int, prefill: int, runs: int, rough: bool) -> float:
    """Of all blocks, whose rows go from one segment to the next; verified's are rough."""
    levels = _levels(loaded)
    slot, ids = levels.open(prefill + rows + levels.num_blocks), np.zeros(prefill, np.int64)
    hidden = levels.backbone([Read(slot, 0, ids)])[0].hidden

    def run(start: int, ids: IntArray, hidden: Any) -> None:
        for first, last in levels.segments:
            hidden = levels.chain(first, last, [Read(slot, start, ids, hidden=hidden, rough=rough)])[0].hidden

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
