"""`bench verified`: what drafts that the backbone verifies bring on a trained model, beside Vanilla and Boost.

Acceptance belongs to a model and its prompts: random weights say nothing about it. What passes and blocks cost belongs
to a shape: `bench drafts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vita_mctp.bench import Cell, Line, Machine, Panel, Row, Study, spent
from vita_mctp.bench.models import LoadedModel
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES, Mode
from vita_mctp.decoding.request import Classify, Request, SequenceState
from vita_mctp.progress import track
from vita_mctp.types import BACKBONE, TokenEvent, TokenKind

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
    stop_below: float,
    seed: int = 0,
) -> Study:
    """A column for each set of requests.

    stop_below: a chain ends with the draft that makes the product of its probabilities less.
    """
    verified = replace(MODES["verified"], stop_below=stop_below)
    columns = {name: _column(loaded, asked, spelling, verified) for name, asked in track(sets.items(), "sets")}
    whats = next(iter(columns.values()))
    rows: list[Row] = [{"what": what} | {name: column[what] for name, column in columns.items()} for what in whats]
    slots = [what for what in whats if what.startswith("accepted, slot")]
    speeds = [what for what in whats if what.startswith("tokens a CPU-second")]
    panels = [
        Panel("Drafts accepted", "slot", "%", _lines(columns, slots, list(range(1, len(slots) + 1)), "line")),
        Panel("Tokens a CPU-second", "", "", _lines(columns, speeds, [what.split(", ")[1] for what in speeds], "bars")),
    ]
    notes = (f"Chains end with the draft that makes the product of probabilities less than {stop_below:g}.", *_NOTES)
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
        f"tokens a CPU-second, verified {_BATCH} at once": it.tokens / batch_seconds,
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
    codes = passes = 0
    for drafts, new in steps:
        for i, draft in enumerate(drafts):
            tally.drafted[i, spelling.classify(draft)] += 1
            tally.accepted[i, spelling.classify(draft)] += i < len(new) and new[i].level != BACKBONE
        tally.blocks += _ran(state, len(drafts))
        for i, event in enumerate(new):
            passes += i == 0 if mode.verified else event.level == BACKBONE
            codes += event.kind is TokenKind.AUDIO
            if codes == spelling.first_block and event.kind is TokenKind.AUDIO:
                tally.first_sound += passes
    tally.tokens, tally.passes = tally.tokens + len(events), tally.passes + passes
    text = spelling.decode(event.id for event in events if event.kind is TokenKind.TEXT)
    tally.right += asked.right is not None and text.strip() == asked.right
    return tuple(event.id for event in events)


def _ran(state: SequenceState, drafts: int) -> int:
    """Blocks that ran for so many drafts: whole segments of the chain."""
    segments = state.memory.segments
    return next((segment.last for segment in segments if segment.last >= drafts), 0) if drafts else 0
