"""What was said in a conversation, in order, and how much of each answer was heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from uuid import uuid4

from vita_mctp.errors import VitaError
from vita_mctp.text.vocabulary import Vocabulary
from vita_mctp.types import Role, TokenKind, Turn, Wave

TEXT_PER_SECOND = 4
"""Text tokens that a voice gets through in a second: where an answer's text ran ahead of its sound, more were not
heard."""


KEPT_WAVES = 32
"""Items whose recording is kept once the model has read it."""


class ConversationError(VitaError):
    """What was asked cannot be done in this conversation now. code: a name for it that programs understand."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def new_id(kind: str) -> str:
    return f"{kind}_{uuid4().hex[:24]}"


@dataclass
class Playback:
    """What a player that starts with the first sample and never pauses has played of what it was sent.

    now: seconds that only grow.
    """

    sample_rate: int
    now: Callable[[], float] = time.monotonic
    sent: int = 0
    _before: int = 0
    _since: float = 0.0

    def send(self, samples: int) -> None:
        self._before, self._since = self.played, self.now()
        self.sent += samples

    @property
    def played(self) -> int:
        return min(self.sent, self._before + int((self.now() - self._since) * self.sample_rate))


@dataclass(eq=False)
class Item:
    """One thing said. What is not known yet, or does not apply, is empty.

    text: as typed, or the transcript of the speech. wave: the user's speech. turn: as the model reads or wrote it; one
    without content is not shown to it.
    playback: of an answer's sound; heard: samples of it that were played, None for all.
    finished: the answer's end was generated.
    """

    role: Role
    text: str = ""
    wave: Wave | None = None
    turn: Turn | None = None
    playback: Playback | None = None
    heard: int | None = None
    finished: bool = True
    id: str = field(default_factory=lambda: new_id("item"))

    @property
    def heard_fraction(self) -> float:
        if self.heard is None or self.playback is None:
            return 1.0
        return min(1.0, self.heard / self.playback.sent) if self.playback.sent else 0.0

    @property
    def heard_text(self) -> str:
        """Words as far as their part of the sound was played."""
        words = self.text.split()
        return self.text if self.heard is None else " ".join(words[: round(len(words) * self.heard_fraction)])

    def heard_turn(self, vocabulary: Vocabulary, frame_rate: Fraction) -> Turn | None:
        """The turn without what nobody heard; None if nothing of it was. frame_rate: codes in a second of sound."""
        if self.turn is None or self.heard is None or self.playback is None:
            return self.turn
        heard, sent = (Fraction(n, self.playback.sample_rate) for n in (self.heard, self.playback.sent))
        most_text = None if self.finished else round(heard * TEXT_PER_SECOND)
        return cut_turn(self.turn, round(heard * frame_rate), round(sent * frame_rate), vocabulary, most_text)


def cut_turn(turn: Turn, codes: int, sent: int, vocabulary: Vocabulary, most_text: int | None = None) -> Turn | None:
    """A spoken answer cut off after so many codes; of its text stays the same fraction, `most_text` tokens at most.

    Text is spread over the sound evenly, since nothing says which code speaks which word. sent: codes of an answer
    whose sound was made elsewhere, and is not in the turn.
    """
    kinds = [vocabulary.kind(token) for token in turn.content]
    whole = kinds.count(TokenKind.AUDIO) or sent
    text = round(kinds.count(TokenKind.TEXT) * min(1, codes / whole)) if whole else 0
    left = {TokenKind.AUDIO: codes, TokenKind.TEXT: text if most_text is None else min(text, most_text)}
    kept: list[int] = []
    for token, kind in zip(turn.content, kinds, strict=True):
        if kind in left:
            left[kind] -= 1
            if left[kind] < 0:
                continue
        if kind is TokenKind.END and kept and kept[-1] == vocabulary.begin_of_audio:
            kept.pop()  # a segment of which nothing was heard
        else:
            kept.append(token)
    return Turn(turn.role, tuple(kept)) if kept else None


class History:
    """The items of one conversation; at most `longest` of them, the oldest are forgotten."""

    def __init__(self, longest: int = 1000) -> None:
        self._items: list[Item] = []
        self._longest = longest

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts an item behind another one, or "root" for the beginning; gives back the id of the one before it."""
        if any(known.id == item.id for known in self._items):
            raise ConversationError("item_id_taken", f"the item id {item.id} came twice; give a new one")
        index = len(self._items) if after is None else 0 if after == "root" else self._index(after) + 1
        self._items.insert(index, item)
        before = self._items[index - 1].id if index else None
        del self._items[: -self._longest]
        for old in self._items[:-KEPT_WAVES]:
            old.wave = None if old.turn is not None else old.wave
        return before

    def get(self, item_id: str) -> Item:
        return self._items[self._index(item_id)]

    def delete(self, item_id: str) -> None:
        del self._items[self._index(item_id)]

    @property
    def last_spoken(self) -> Item | None:
        """The last answer with sound."""
        return next((item for item in reversed(self._items) if item.playback is not None), None)

    def _index(self, item_id: str) -> int:
        for index, item in enumerate(self._items):
            if item.id == item_id:
                return index
        raise ConversationError("item_not_found", f"no item {item_id[:60]} is in this conversation; give an id that is")
