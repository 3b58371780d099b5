"""A whole cycle a step: backbone passes, then a chain of blocks; their products lie behind `Levels`.

Level k's row r reads id k + r and level k - 1's row r (the backbone's reads id r), so that rows are counted alike on
every level. While the first N ids stand, so do rows r < N - k of level k; what lies behind them is cut and, where it is
needed, read again. A chain is cut into segments of blocks that run without a return; between two segments lie the
hidden rows that the later one has not read.

`verified`: a chain's drafts are kept beside the answer until the next backbone pass, which has to read them anyway,
chooses for itself at each of them. Drafts equal to its choices stand (accepted), the first other one is replaced by its
choice (recovered), or one more is won (bonus). The n-th token is chosen with the n-th random number whoever chooses,
so that greedy and sampled answers are Vanilla's token for token; not so in `lossy`, where likely drafts stand too.
Leviathan et al. 2023 reach the same distribution by rejection, which keeps no token of Vanilla's.

Legend: Q rows of one request's read, R of them whose next token is chosen, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, Protocol

import numpy as np

from vita_mctp.decoding.modes import PlanCursor
from vita_mctp.decoding.request import Request, SequenceState
from vita_mctp.decoding.runners import Token
from vita_mctp.decoding.sampling import Scores, is_typical, softmax
from vita_mctp.errors import AnswerError
from vita_mctp.types import BACKBONE, HeardAudio, IntArray

Segments = tuple[tuple[int, int], ...]
"""(first, last) blocks, last not included."""

_PASSES = 4
"""Backbone passes of a step in which nobody drafts."""


@dataclass(frozen=True, slots=True)
class Read:
    """ids (Q,) that a level reads behind `start` rows of a slot.

    judged: so many last rows of the backbone get their next tokens; heard: recordings among the ids.
    hidden: for a block, the rows (Q, H) of the level before. scored: whether logits are wanted.
    rough: whether a block may round as it likes; alike in all reads of a call.
    """

    slot: Any
    start: int
    ids: IntArray
    judged: int = 1
    heard: Sequence[HeardAudio] = ()
    hidden: Any = None
    scored: bool = False
    rough: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What a read gives.

    hidden: rows (Q, H), of a chain's last block; of the model's deepest block any, as nobody reads them.
    tokens: the greedy choices (R,) behind the backbone's judged rows, or the draft of each block of a chain.
    logits: (R, V) of the judged rows, or (1, V) of a chain's last draft; None may stand where they were not wanted.
    probabilities: of each draft.
    """

    hidden: Any
    tokens: list[int]
    logits: Any
    probabilities: list[float] = field(default_factory=list)


class Levels(Protocol):
    """A model's products over the rows of several requests at once.

    segments: how a greedy chain is cut. Any other cut can be run as well.
    """

    vocab_size: int
    max_positions: int
    num_blocks: int
    segments: Segments

    def open(self, capacity: int) -> Any:
        """A slot: caches of every level for so many positions."""
        ...

    def backbone(self, reads: Sequence[Read]) -> list[Made]: ...

    def chain(self, first: int, last: int, reads: Sequence[Read]) -> list[Made]:
        """Blocks first..last-1; each reads the rows of the one before and its draft."""
        ...

    def scores(self, logits: Any) -> Scores:
        """Logits (V,) to choose from, in float32 or float64."""
        ...

    def concatenate(self, rows: list[Any]) -> Any: ...


@dataclass(slots=True)
class _Segment:
    """A run of blocks: the rows that it has read and that stand, and from row `first_row` on those of its input."""

    first: int
    last: int
    length: int = 0
    first_row: int = 0
    rows: Any = None

    @property
    def has_next(self) -> bool:
        return self.rows is not None and self.first_row <= self.length


@dataclass(slots=True, eq=False)
class Memory:
    """What one request remembers.

    rough: whether blocks round as they like, as their drafts decide nothing.
    read: the backbone's rows that stand; drafts: not verified yet.
    """

    slot: Any
    segments: list[_Segment]
    rough: bool = False
    read: int = 0
    drafts: list[int] = field(default_factory=list)

    def cut(self, standing: int) -> None:
        """Forgets every row that read an id at position `standing` or behind."""
        self.read = min(self.read, standing)
        for segment in self.segments:
            segment.length = max(0, min(segment.length, standing - segment.last))
            if segment.rows is not None:
                segment.rows = segment.rows[: max(0, standing - segment.first - segment.first_row)]

    def go_back(self, heard: Sequence[HeardAudio]) -> None:
        """So far that every segment gets its next rows, of which the newest alone are kept; no recording is cut.

        What is read again comes out the same, and is written where it was.
        """
        segments = self.segments
        for i in reversed(range(len(segments))):
            if segments[i].length < self._given(i) and not segments[i].has_next:
                if i:
                    segments[i - 1].length = segments[i].length
                else:
                    self.read = segments[i].length
        self.read = min([self.read, *(audio.start for audio in heard if audio.start < self.read < audio.end)])
        for i, segment in enumerate(segments):
            kept = self._given(i) - segment.first_row
            segment.rows = None if segment.rows is None or kept <= 0 else segment.rows[:kept]

    def _given(self, index: int) -> int:
        """Rows that came to a segment so far."""
        return self.segments[index - 1].length if index else self.read


class CycleRunner:
    """Runs requests of any modes in one rhythm: each step every request makes a cycle, and all chains run together.

    prefill_chunk: tokens of a prompt that one step reads, so that a long prompt does not hold up the others; None reads
    it at once. A prompt with recordings is read at once in any case.
    """

    def __init__(self, levels: Levels, prefill_chunk: int | None = None) -> None:
        self.levels, self.prefill_chunk = levels, prefill_chunk
        self.vocab_size, self.max_positions = levels.vocab_size, levels.max_positions
        self.num_blocks = levels.num_blocks

    def open(self, request: Request) -> Memory:
        budget = request.token_budget(self.vocab_size, self.max_positions)
        slot = self.levels.open(len(request.prompt_ids) + budget + _PASSES + self.num_blocks)
        segments = [_Segment(first, last) for first, last in self._segments(request)]
        return Memory(slot, segments, request.mode.lossless)

    def reopen(self, memory: Memory, request: Request, standing: int) -> Memory | None:
        cuts = [(segment.first, segment.last) for segment in memory.segments]
        if (cuts, memory.rough) != (self._segments(request), request.mode.lossless):
            return None
        memory.drafts = []
        memory.cut(standing)
        memory.go_back(request.heard)
        return memory

    def _segments(self, request: Request) -> list[tuple[int, int]]:
        blocks = self.num_blocks
        segments = self.levels.segments if request.sampling.is_argmax else [(k, k + 1) for k in range(blocks)]
        reach = PlanCursor.start(request.mode, blocks).reach
        return [(first, min(last, reach)) for first, last in segments if first < reach]

    def run(self, states: Sequence[SequenceState]) -> list[list[Token]]:
        tasks = [_Task(state) for state in states]
        ready = [task for task in tasks if not self._read_ahead(task)]
        rhythm = max((task.passes for task in ready), default=0) or _PASSES
        for i in range(rhythm, 0, -1):
            if due := [task for task in ready if (task.passes or rhythm) >= i and not task.ended]:
                self._pass(due)
        self._chain([task for task in ready if task.drafts and not task.ended])
        return [task.tokens for task in tasks]

    def _read_ahead(self, task: _Task) -> bool:
        """Reads a piece of a long prompt; False when the rest is to be read with the cycle."""
        state, chunk = task.state, self.prefill_chunk
        read = state.memory.read
        if chunk is None or state.request.heard or len(state.ids) - read <= chunk:
            return False
        self._backbone([task], [Read(state.memory.slot, read, np.array(state.ids[read : read + chunk]), 0)])
        return True

    def _pass(self, tasks: Sequence[_Task]) -> None:
        """A backbone pass: it reads what it has not read, drafts included, and chooses behind them."""
        reads = []
        for task in tasks:
            memory, request = task.state.memory, task.state.request
            ids = np.array(task.ids_from(memory.read) + memory.drafts)
            heard = [audio.moved(-memory.read) for audio in request.heard if audio.start >= memory.read]
            scored = not request.sampling.is_argmax or request.mode.typical > 0
            reads.append(Read(memory.slot, memory.read, ids, 1 + len(memory.drafts), heard, scored=scored))
        for task, rows in zip(tasks, self._backbone(tasks, reads), strict=True):
            self._verify(task, rows)

    def _backbone(self, tasks: Sequence[_Task], reads: Sequence[Read]) -> list[Made]:
        results = self.levels.backbone(reads)
        for task, read, rows in zip(tasks, reads, results, strict=True):
            task.state.memory.read += len(read.ids)
            self._hand_on(task.state, 0, read.start, rows.hidden)
        return results

    def _verify(self, task: _Task, rows: Made) -> None:
        """Takes the backbone's choices as far as the drafts it read equal them, or are typical, and one more."""
        memory, state, typical = task.state.memory, task.state, task.state.request.mode.typical
        drafts, memory.drafts = memory.drafts, []
        if task.length == len(state.request.prompt_ids):
            shown = rows.hidden[-len(rows.tokens) :] if rows.logits is None else rows.logits
            _check_finite(self.levels.scores(shown[0]))
        for i in range(len(drafts) + 1):
            token = rows.tokens[i]
            if not state.request.sampling.is_argmax:
                token = state.sampler.choose(self.levels.scores(rows.logits[i]), task.ids_from(0))
            if typical and i < len(drafts) and is_typical(self.levels.scores(rows.logits[i]), drafts[i], typical):
                token = drafts[i]
            if state.request.keeps_hidden:
                state.hidden.append(rows.hidden[len(rows.hidden) - len(rows.tokens) + i])
            accepted = i < len(drafts) and drafts[i] == token
            task.take(token, i + 1 if accepted else BACKBONE)
            if not accepted or task.ended:
                break
        if drafts:
            memory.cut(task.length - 1)

    def _chain(self, tasks: Sequence[_Task]) -> None:
        """Drafts for every task, together as far as their chains are cut alike and as rough."""
        groups: dict[tuple[Segments, bool], list[_Chain]] = {}
        for task in tasks:
            memory = task.state.memory
            cuts = tuple((segment.first, segment.last) for segment in memory.segments)
            groups.setdefault((cuts, memory.rough), []).append(_Chain(task))
        for (cuts, _), chains in groups.items():
            for index, (first, last) in enumerate(cuts):
                if going := [chain for chain in chains if chain.goes_on(first)]:
                    self._run_segment(index, first, last, going)
            for chain in chains:
                chain.finish()

    def _run_segment(self, index: int, first: int, last: int, chains: Sequence[_Chain]) -> None:
        reads = [chain.read(index) for chain in chains]
        for chain, read, rows in zip(chains, reads, self.levels.chain(first, last, reads), strict=True):
            state = chain.task.state
            state.memory.segments[index].length += len(read.ids)
            self._hand_on(state, index + 1, read.start, rows.hidden)
            drafts, probabilities = rows.tokens, rows.probabilities
            if not state.request.sampling.is_argmax:
                scores = self.levels.scores(rows.logits[0])
                drafts = [state.sampler.choose(scores, chain.task.ids_from(0) + chain.drafts)]
                probabilities = [float(softmax(scores)[drafts[0]])]
            chain.take(drafts, probabilities)

    def _hand_on(self, state: SequenceState, index: int, start: int, hidden: Any) -> None:
        """Hidden rows from `start` on become a segment's input; what it can never read, or not again, is dropped."""
        segments, reach = state.memory.segments, state.cursor.reach
        for segment in segments[index:]:
            if segment.first >= reach:
                segment.rows = None
        if index == len(segments) or segments[index].first >= reach:
            return
        segment = segments[index]
        if segment.rows is None:
            segment.first_row, segment.rows = start, hidden
            return
        oldest = max(segment.first_row, min(segment.length - self.num_blocks, start))
        kept = segment.rows[oldest - segment.first_row : start - segment.first_row]
        segment.first_row, segment.rows = oldest, self.levels.concatenate([kept, hidden])


def _check_finite(scores: Scores) -> None:
    """Of the first choice, or of the hidden state where nobody has scores: there damaged weights show, and activations
    beyond their type's range.
    """
    if not np.isfinite(scores.max()):
        raise AnswerError(
            "the model's scores are NaN or infinite; wanted finite ones: its weights are damaged, or overflow in this "
            "dtype; get them again, or take --dtype float32 or bfloat16"
        )


class _Task:
    """One request's part of a step. passes, drafts: as `_cycle` gives them."""

    def __init__(self, state: SequenceState) -> None:
        self.state = state
        self.tokens: list[Token] = []
        self.passes, self.drafts = _cycle(state.cursor)
        self.ended = False
        self._new: list[int] = []

    @property
    def length(self) -> int:
        return len(self.state.ids) + len(self._new)

    def ids_from(self, position: int) -> list[int]:
        """Final ids from a position on, those of this step included."""
        known = len(self.state.ids)
        return self.state.ids[position:] + self._new if position < known else self._new[position - known :]

    @property
    def room(self) -> int:
        """Tokens that the answer may still have."""
        return self.state.budget - self.length + len(self.state.request.prompt_ids)

    def take(self, token: int, level: int) -> None:
        self.tokens.append((token, level))
        self._new.append(token)
        self.ended = token in self.state.request.eos_ids or self.room == 0
        _, self.state.cursor = self.state.cursor.step()


@lru_cache(maxsize=1024)
def _cycle(cursor: PlanCursor) -> tuple[int, int]:
    """Backbone passes, 0 for as many as the others make, and the drafts behind them."""
    if cursor.mode.verified:
        return 1, cursor.num_blocks
    levels: list[int] = []
    for _ in range(_PASSES + cursor.num_blocks):
        level, cursor = cursor.step()
        if level == BACKBONE and (len(levels) == _PASSES or (levels and levels[-1] != BACKBONE)):
            break
        levels.append(level)
    drafts = len(levels) - levels.count(BACKBONE)
    return (levels.count(BACKBONE), drafts) if drafts else (0, 0)


class _Chain:
    """The drafts behind one task's tokens."""

    def __init__(self, task: _Task) -> None:
        self.task = task
        self._most = min(task.drafts, task.room)
        self.drafts: list[int] = []
        self._probabilities: list[float] = []
        self._stopped = False

    def goes_on(self, first: int) -> bool:
        return not self._stopped and first == len(self.drafts) < self._most

    def read(self, index: int) -> Read:
        memory, sampling = self.task.state.memory, self.task.state.request.sampling
        segment = memory.segments[index]
        position = segment.first + 1 + segment.length
        final = min(position, self.task.length)
        ids = (self.task.ids_from(final) + self.drafts)[position - final :]
        hidden = segment.rows[segment.length - segment.first_row :]
        scored = not sampling.is_argmax
        return Read(memory.slot, segment.length, np.array(ids), hidden=hidden, scored=scored, rough=memory.rough)

    def take(self, drafts: Sequence[int], probabilities: Sequence[float]) -> None:
        """Drafts up to what was wanted, or with the one that makes all of them together too improbable."""
        for draft, probability in zip(drafts, probabilities, strict=True):
            self.drafts.append(draft)
            self._probabilities.append(probability)
            self._stopped = prod(self._probabilities) < self.task.state.request.mode.stop_below
            self._stopped |= len(self.drafts) == self._most or draft in self.task.state.request.eos_ids
            if self._stopped:
                return

    def finish(self) -> None:
        """Drafts are tokens, or wait for the backbone's next pass."""
        task, memory = self.task, self.task.state.memory
        if task.state.request.mode.verified:
            memory.drafts = self.drafts
            return
        for level, draft in enumerate(self.drafts, BACKBONE + 1):
            task.take(draft, level)
        memory.cut(task.length)
