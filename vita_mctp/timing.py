"""The clock of one answer, started when the question is handed over."""

from __future__ import annotations

import time

from vita_mctp.types import Timings


class Stopwatch:
    """Notes when each part of an answer came for the first time, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Notes the moment if `name` was not noted before: "first_text", "first_audio_tokens" or "first_sound"."""
        self._marks.setdefault(name, time.perf_counter() - self._start)

    def timings(self, tokens: int, audio_seconds: float) -> Timings:
        """tokens: generated ones, markers and the end included; audio_seconds: length of the answer's wave."""
        total = time.perf_counter() - self._start
        return Timings(total=total, tokens=tokens, audio_seconds=audio_seconds, **self._marks)
