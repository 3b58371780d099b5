"""From a thinker's answer to a talker's codes: which hidden states are spoken, in which segments, when.

Each drawn text token comes with the hidden state that predicted it. VocalNet-M2 speaks all, each with its token
(`FrameStream`). Of VocalNet (`SpokenStream`), under the contract "reference" all of these are spoken, the first one
being the last prompt position's; "as_trained" speaks those that training had: not that one, nor, where `end_row` is
False, the one that predicted the end. Both end with the text-end row.

Mended of the authors' loops: a call that gives a single unit is as good as any other; ids beyond the codes are for the
loop alone (`SpokenPart.codes`, `speak_whole`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vita_mctp.decoding.frames import FrameAnswer
from vita_mctp.decoding.talker import STREAM_PENALTY, WHOLE_PENALTY, TalkerAnswer, TalkerOptions
from vita_mctp.models.registry import FrameSpeaking, Speaking
from vita_mctp.types import BACKBONE, NO_ID, Code, StopReason, TokenEvent, TokenKind

_SENTENCE_ENDS = (".", "!", "?")
_NOTHING_SAID = (6324, 4137)
"""Units that the authors' loop gives for an answer, or what is left of one, of fewer than two tokens."""
_CUTS, _SHORTEST_SEGMENT = frozenset({13, 30, 0, 11}), 50
"""Ids of . ? ! and , in the Llama 3 and the Qwen vocabulary; of whole answers, tokens that a segment has at least."""
_WHOLE_LIMIT_WITHOUT_LEVELS = 512


@dataclass(frozen=True)
class SpokenPart:
    """One call's outcome. text_ids: those whose rows it read; None: none. units: as drawn, special ids among them."""

    text_ids: tuple[int, ...] | None
    units: tuple[int, ...]
    num_codes: int
    is_last: bool = False

    @property
    def codes(self) -> tuple[int, ...]:
        """What the codec may be given."""
        return tuple(unit for unit in self.units if unit < self.num_codes)


@dataclass
class SpokenStream:
    """A streamed answer: rows go to the talker by chunks of C_t as they come."""

    rules: Speaking
    options: TalkerOptions
    _pending: list[tuple[int, Tensor]] = field(default_factory=list)
    _since_reset: int = 0

    def __post_init__(self) -> None:
        if self.options.contract == "reference" and self.options.penalty is None:
            self.options = replace(self.options, penalty=STREAM_PENALTY)
        self._answer = TalkerAnswer(self.rules.talker, self.options, streaming=True)
        self._first = True

    def say(self, event: TokenEvent) -> Iterator[Code]:
        """The next token of the thinker, with its hidden state -> the codes that it makes sayable."""
        parts = self.push(event.id, torch.as_tensor(event.hidden))
        if event.ends is StopReason.LENGTH:
            parts += self.end()
        return (code for part in parts for code in part.codes)

    def push(self, id: int, row: Tensor) -> list[SpokenPart]:
        """The next text token, and the hidden state (H,) that predicted it -> what it makes sayable."""
        if self.options.contract == "as_trained":
            return self._push_as_trained(id, row)
        rules, parts = self.rules, []
        self._pending.append((id, row))
        self._since_reset += 1
        text = rules.decode([each for each, _ in self._pending])
        if text.endswith(_SENTENCE_ENDS) and self._since_reset >= rules.reset_interval:
            parts.append(self._call(last=True, ends_answer=False))
            self._answer = TalkerAnswer(self.rules.talker, self.options, streaming=True)
            self._since_reset = 0
        elif len(self._pending) >= self.rules.talker.sizes.text_chunk:
            parts.append(self._call(last=False))
        if id != rules.end_id:
            return parts
        if self._pending and self._pending[0][0] != rules.end_id:
            return [*parts, self._call(last=True)]
        self._pending = []
        if self._since_reset < 2:
            return [*parts, SpokenPart(None, _NOTHING_SAID, self.rules.talker.sizes.num_units, is_last=True)]
        return [*parts, self._call(last=True)]

    def end(self) -> list[SpokenPart]:
        """Ends an answer that got too long: the end without a hidden state, for which the text-end row stands."""
        return self.push(self.rules.end_id, self.rules.text_end)

    def _push_as_trained(self, id: int, row: Tensor) -> list[SpokenPart]:
        ends, first, self._first = id == self.rules.end_id, self._first, False
        if (not first or ends) and (not ends or self.rules.end_row):
            self._pending.append((id, row))
        if ends:
            return [self._call(last=True)]
        return [self._call(last=False)] if len(self._pending) >= self.rules.talker.sizes.text_chunk else []

    def _call(self, *, last: bool, ends_answer: bool = True) -> SpokenPart:
        """All pending rows, and before the last units the text-end row if there are any."""
        ids = tuple(id for id, _ in self._pending)
        rows = [row for _, row in self._pending]
        self._pending = []
        as_trained = self.options.contract == "as_trained"
        if last and (rows or as_trained):
            rows.append(self.rules.text_end)
        units = self._answer.push(torch.stack(rows) if rows else None, last=last)
        if last and not as_trained:
            units = units[:-1]  # the EOS, or, at the limit, a code: the authors' loop cuts it all the same
        return SpokenPart(ids or None, tuple(units), self.rules.talker.sizes.num_units, last and ends_answer)


class FrameStream:
    """A streamed answer of VocalNet-M2: each token and the state that predicted it, the end's too, as they come."""

    def __init__(self, rules: FrameSpeaking, options: TalkerOptions) -> None:
        self._fuse, self._answer = rules.fuse, FrameAnswer(rules.talker, options.levels)

    def say(self, event: TokenEvent) -> Iterator[Code]:
        """As `SpokenStream.say`."""
        row = self._fuse(event.id, torch.as_tensor(event.hidden))
        return self._answer.push(row, last=event.ends is not None)


def speak_whole(rules: Speaking, options: TalkerOptions, ids: Sequence[int], rows: Sequence[Tensor]) -> tuple[int, ...]:
    """An answer's ids, its end among them, and the row that predicted each -> its units, which are all codes.

    The authors' loop speaks long answers in segments, each from nothing and with the text-end row, and cuts the last
    token of each, which is a code where a segment came to its limit.
    """
    if options.contract == "as_trained":
        last = len(rows) if rules.end_row else len(rows) - 1
        units = TalkerAnswer(rules.talker, options, streaming=False).whole(torch.stack([*rows[1:last], rules.text_end]))
        return tuple(unit for unit in units if unit < rules.talker.sizes.num_units)
    if options.levels == 0:
        options = replace(options, max_tokens=min(options.max_tokens, _WHOLE_LIMIT_WITHOUT_LEVELS))
    elif options.penalty is None:
        options = replace(options, penalty=WHOLE_PENALTY)
    found: list[int] = []
    for segment in _segments(ids):
        answer = TalkerAnswer(rules.talker, options, streaming=False)
        found += answer.whole(torch.stack([*rows[segment], rules.text_end]))[:-1]
    return tuple(unit for unit in found if unit < rules.talker.sizes.num_units)


def _segments(ids: Sequence[int]) -> list[slice]:
    """A cut behind each punctuation mark that is far enough from the last cut; not directly before the end."""
    cuts = [0]
    for index, id in enumerate(ids):
        if id in _CUTS and index - cuts[-1] > _SHORTEST_SEGMENT:
            cuts.append(index + 1)
    if cuts[-1] == len(ids) - 1:
        cuts.pop()
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], len(ids)], strict=True)]


def speak_events(
    events: Iterable[TokenEvent], rules: Speaking | FrameSpeaking, options: TalkerOptions
) -> Generator[TokenEvent, None, None]:
    """A thinker's tokens, with their hidden states, and among them the codes that say them.

    The token that ends the answer comes behind all of its sound. A generator of `events` is closed with this one.
    """
    stream = SpokenStream(rules, options) if isinstance(rules, Speaking) else FrameStream(rules, options)
    index = 0
    try:
        for event in events:
            if not event.ends:
                yield replace(event, index=index, hidden=None)
                index += 1
            for code in stream.say(event):
                yield TokenEvent(index, NO_ID, TokenKind.AUDIO, BACKBONE, code=code)
                index += 1
            if event.ends:
                yield replace(event, index=index, hidden=None)
    finally:
        if isinstance(events, Generator):
            events.close()
