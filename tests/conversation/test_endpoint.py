"""Turns are found in any sound at any rate, however it is cut, and what is taken is what came."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_mctp.audio import read_wave, resample
from vita_mctp.audio.vad import EnergyDetector, SileroDetector, SpeechDetector, speech_detector
from vita_mctp.conversation.endpoint import EndPointer, InputBuffer, SpeechStarted, SpeechStopped, TurnDetection
from vita_mctp.errors import ConfigError
from vita_mctp.types import FloatArray

QUESTION = read_wave(Path(__file__).parents[2] / "demo" / "examples" / "question.wav")


def with_silence(rate: int) -> FloatArray:
    """A second of near silence, the question, two seconds of near silence."""
    noise = np.random.default_rng(0).normal(0, 1e-4, 3 * rate).astype(np.float32)
    return np.concatenate([noise[:rate], resample(QUESTION, rate).samples, noise[rate:]])


def turns_of(
    samples: FloatArray, rate: int, cuts: list[int], detector: SpeechDetector
) -> list[SpeechStarted | SpeechStopped]:
    pointer = EndPointer(detector, TurnDetection(), rate, longest=30 * rate)
    return [event for piece in np.split(samples, sorted(cuts)) for event in pointer.push(piece)]


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("detector", [speech_detector(), EnergyDetector()], ids=lambda one: type(one).__name__)
def test_the_question_is_one_turn_at_any_rate(rate: int, detector: SpeechDetector) -> None:
    samples = with_silence(rate)
    started, stopped = turns_of(samples, rate, [], detector)
    assert isinstance(started, SpeechStarted) and isinstance(stopped, SpeechStopped)
    assert 0.5 < started.start / rate < 1.3  # the question has a beginning of its own
    assert 0.5 < stopped.stop / rate - QUESTION.seconds < 2.2


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 60_000), max_size=30))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    samples = with_silence(24_000)
    whole = turns_of(samples, 24_000, [], EnergyDetector())
    assert turns_of(samples, 24_000, cuts, EnergyDetector()) == whole


def test_silero_comes_with_the_extra() -> None:
    detector = speech_detector()
    assert isinstance(detector, SileroDetector)
    probability, state = detector.push(np.zeros(512, np.float32), detector.start())
    assert probability < 0.1
    voiced = [probability]
    for frame in resample(QUESTION, 16_000).samples[: 512 * 40].reshape(-1, 512):
        probability, state = detector.push(frame, state)
        voiced.append(probability)
    assert max(voiced) > 0.9


def test_a_turn_without_end_is_ended() -> None:
    class Always:
        def start(self) -> None:
            return None

        def push(self, frame: FloatArray, state: None) -> tuple[float, None]:
            return 1.0, None

    pointer = EndPointer(Always(), TurnDetection(prefix_ms=0), 16_000, longest=16_000)
    events = list(pointer.push(np.zeros(40_000, np.float32)))
    assert [event.stop - event.start for event in events if isinstance(event, SpeechStopped)] == [16_000, 16_000]


def test_a_click_is_no_turn() -> None:
    click = np.zeros(16_000, np.float32)
    click[8_000:8_400] = 0.9
    assert turns_of(click, 16_000, [], EnergyDetector()) == []


def test_the_buffer_gives_what_came_and_keeps_no_more() -> None:
    buffer = InputBuffer()
    buffer.append(np.arange(10, dtype=np.float32))
    buffer.append(np.arange(10, 20, dtype=np.float32))
    buffer.forget(5)
    assert (buffer.start, buffer.end) == (5, 20)
    assert buffer.take(2, 12).tolist() == list(range(5, 12))
    assert buffer.take(12, 99).tolist() == list(range(12, 20)) and buffer.start == buffer.end == 20


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"stop_threshold": 0.9}, {"silence_ms": -1}])
def test_options_out_of_bounds_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="wanted"):
        TurnDetection(**wrong)  # type: ignore[arg-type]
