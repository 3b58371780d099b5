"""Where a turn begins and ends in a stream of sound at any rate, in chunks of any size.

Positions are in samples since the stream began, as they came in: what is cut out is what the microphone gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vita_mctp.audio.resample import StreamResampler
from vita_mctp.audio.vad import FRAME, SAMPLE_RATE, SpeechDetector
from vita_mctp.errors import ConfigError
from vita_mctp.types import FloatArray


@dataclass(frozen=True)
class TurnDetection:
    """When somebody is taken to speak.

    threshold: probability from which speech begins; `stop_threshold`, 0.15 less unless given, below which it may end.
    silence_ms: without speech that end a turn. prefix_ms: of sound before its beginning that belong to it.
    speech_ms: that must lie above the threshold before it counts, so that a click is no turn.
    """

    threshold: float = 0.5
    stop_threshold: float | None = None
    silence_ms: int = 500
    prefix_ms: int = 300
    speech_ms: int = 96

    def __post_init__(self) -> None:
        if not 0 < self.lower <= self.threshold < 1:
            raise ConfigError(f"the thresholds {self.threshold} and {self.lower} came; wanted 0 < stop <= start < 1")
        if self.silence_ms < 0 or self.prefix_ms < 0 or self.speech_ms < 0:
            raise ConfigError("a negative time of turn detection came; wanted milliseconds from 0 on")

    @property
    def lower(self) -> float:
        return max(0.01, self.threshold - 0.15) if self.stop_threshold is None else self.stop_threshold


@dataclass(frozen=True)
class SpeechStarted:
    """start: the first sample of the turn, prefix included."""

    start: int


@dataclass(frozen=True)
class SpeechStopped:
    """A turn is over: samples [start, stop), the silence that ended it included."""

    start: int
    stop: int


class EndPointer:
    """Finds turns in one stream at `sample_rate`. longest: samples after which a turn is ended in any case.

    origin: position of the first sample that will come.
    """

    def __init__(
        self, detector: SpeechDetector, options: TurnDetection, sample_rate: int, longest: int, origin: int = 0
    ) -> None:
        self.options, self._detector = options, detector
        self._rate, self._longest, self._origin = sample_rate, longest, origin
        self._resampler = StreamResampler(sample_rate, SAMPLE_RATE)
        self._state = detector.start()
        self._rest = np.zeros(0, np.float32)
        self._frames = 0
        self._loud = self._quiet = 0
        self._earliest = origin  # a turn's prefix does not reach back into the turn before
        self._start: int | None = None

    @property
    def speaking(self) -> bool:
        return self._start is not None

    def push(self, samples: FloatArray) -> Iterator[SpeechStarted | SpeechStopped]:
        """What is known after these samples and was not before."""
        known = np.concatenate([self._rest, self._resampler.push(samples)])
        whole = len(known) // FRAME * FRAME
        self._rest = known[whole:]
        for frame in known[:whole].reshape(-1, FRAME):
            probability, self._state = self._detector.push(frame, self._state)
            self._frames += 1
            if (event := self._judge(probability)) is not None:
                yield event

    def end_turn(self, at: int) -> None:
        """What was spoken up to sample `at` is taken; whoever goes on speaking begins another turn."""
        self._start, self._loud, self._quiet, self._earliest = None, 0, 0, at

    def _judge(self, probability: float) -> SpeechStarted | SpeechStopped | None:
        options, now = self.options, self._samples(self._frames * FRAME)
        if self._start is None:
            self._loud = self._loud + 1 if probability >= options.threshold else 0
            if self._loud * FRAME * 1000 < max(1, options.speech_ms) * SAMPLE_RATE:
                return None
            began = self._samples((self._frames - self._loud) * FRAME)
            self._start, self._quiet = max(self._earliest, began - options.prefix_ms * self._rate // 1000), 0
            return SpeechStarted(self._start)
        self._quiet = self._quiet + 1 if probability < options.lower else 0
        silent = self._quiet * FRAME * 1000 >= max(1, options.silence_ms) * SAMPLE_RATE
        if not silent and now - self._start < self._longest:
            return None
        event = SpeechStopped(self._start, min(now, self._start + self._longest))
        self.end_turn(event.stop)
        return event

    def _samples(self, at_16k: int) -> int:
        return self._origin + at_16k * self._rate // SAMPLE_RATE


class InputBuffer:
    """Sound that came and was neither taken nor forgotten, by position in the stream."""

    def __init__(self, start: int = 0) -> None:
        self._samples = np.zeros(0, np.float32)
        self.start = start

    @property
    def end(self) -> int:
        return self.start + len(self._samples)

    def append(self, samples: FloatArray) -> None:
        self._samples = np.concatenate([self._samples, samples])

    def take(self, start: int, stop: int) -> FloatArray:
        """Samples [start, stop) as far as they are here; they and all before them are forgotten."""
        taken = self._samples[max(0, start - self.start) : max(0, stop - self.start)].copy()
        self.forget(stop)
        return taken

    def forget(self, before: int) -> None:
        """Drops what lies before a position."""
        dropped = min(max(0, before - self.start), len(self._samples))
        self._samples, self.start = self._samples[dropped:], self.start + dropped
