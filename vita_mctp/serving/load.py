"""How fast answers are made while others are: what tells whether one more would make them stutter.

An answer stutters when its sound is made slower than it is played: at a real-time factor over 1. That of a batch is a
straight line in its size: so much for a step, so much more for each row of it. The line is fitted to the
sound that was made last, whose pieces are worth less the more came after them.
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
"""Variance of the sizes below which a line has no slope that could be told."""


class Load:
    """Safe to call from any thread. now: seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._making = 0
        self._weight = self._size = self._factor = self._size_spread = self._spread = 0.0

    def measured(self, events: Iterator[AnswerEvent]) -> Iterator[AnswerEvent]:
        """The same events. What comes before the first sound is waited for and makes no gap, so it is not counted."""
        with self._lock:
            self._making += 1
        last: float | None = None
        try:
            for event in events:
                if isinstance(event, WaveChunk) and len(event.samples):
                    now = self._now()
                    if last is not None:
                        self._note(len(event.samples) / event.sample_rate, now - last)
                    last = now
                yield event
        finally:
            with self._lock:
                self._making -= 1

    def factor(self, answers: int) -> float:
        """Seconds that a second of sound takes while so many answers are made at once; 0.0 while nobody knows."""
        with self._lock:
            known = self._size_spread > _TOO_ALIKE * self._weight
            slope = max(0.0, self._spread / self._size_spread) if known else 0.0
            return max(0.0, self._factor + slope * (answers - self._size))

    def _note(self, seconds: float, took: float) -> None:
        """Weighted means and the spreads around them, updated as West does (1979)."""
        with self._lock:
            kept = _KEPT**seconds
            self._weight = self._weight * kept + seconds
            off_size, off_factor = self._making - self._size, took / seconds - self._factor
            self._size += off_size * seconds / self._weight
            self._factor += off_factor * seconds / self._weight
            self._size_spread = self._size_spread * kept + seconds * off_size * (self._making - self._size)
            self._spread = self._spread * kept + seconds * off_size * (took / seconds - self._factor)
