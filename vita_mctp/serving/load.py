"""How fast answers are made while others are: what tells whether one more would make them stutter.

Answers stutter when they are made more slowly than they are played: at a real-time factor over 1. That is a straight
line in the number of answers made at once: so much for a step, so much more for each row of its batch. The line is
fitted to the answers that were made last, which are worth less the more sound came after them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from vita_mctp.answer import AnswerEvent
from vita_mctp.types import WaveChunk

_KEPT = 0.98
"""What a second of sound leaves of the weight of those before it: the last minute of sound counts."""
_TOO_ALIKE = 1e-6
"""Variance of the numbers at once below which a line has no slope that could be found."""


class Load:
    """Safe to call from any thread. now: seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._making, self._changed, self._answer_seconds = 0, 0.0, 0.0
        self._weight = self._at_once = self._factor = self._at_once_spread = self._spread = 0.0

    def measured(self, events: Iterator[AnswerEvent]) -> Iterator[AnswerEvent]:
        """The same events, of one answer."""
        began, before = self._change(1)
        sound = 0.0
        try:
            for event in events:
                if isinstance(event, WaveChunk):
                    sound += len(event.samples) / event.sample_rate
                yield event
        finally:
            ended, after = self._change(-1)
            if sound and ended > began:
                self._note(sound, (ended - began) / sound, (after - before) / (ended - began))

    def factor(self, answers: int) -> float:
        """Seconds that a second of sound takes with so many answers made at once; 0.0 while nobody knows."""
        with self._lock:
            known = self._at_once_spread > _TOO_ALIKE * self._weight
            slope = max(0.0, self._spread / self._at_once_spread) if known else 0.0
            return max(0.0, self._factor + slope * (answers - self._at_once))

    def _change(self, by: int) -> tuple[float, float]:
        """Now, and the seconds that all answers together have been made for."""
        with self._lock:
            now = self._now()
            self._answer_seconds += self._making * (now - self._changed)
            self._making, self._changed = self._making + by, now
            return now, self._answer_seconds

    def _note(self, sound: float, factor: float, at_once: float) -> None:
        """Weighted means and the spreads around them, updated as West does (1979)."""
        with self._lock:
            kept = _KEPT**sound
            self._weight = self._weight * kept + sound
            off_at_once, off_factor = at_once - self._at_once, factor - self._factor
            self._at_once += off_at_once * sound / self._weight
            self._factor += off_factor * sound / self._weight
            rest = sound * off_at_once
            self._at_once_spread = self._at_once_spread * kept + rest * (at_once - self._at_once)
            self._spread = self._spread * kept + rest * (factor - self._factor)
