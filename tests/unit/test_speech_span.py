"""Where in a recording somebody speaks."""

import numpy as np
import pytest

from vita_mctp.audio import cut_to_speech, speech_span
from vita_mctp.types import FloatArray, Wave

RATE = 16_000


def syllables(seconds: float) -> FloatArray:
    """A buzz whose loudness comes and goes four times a second, as speech's does."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 150 * time) * np.sin(2 * np.pi * 4 * time) ** 2).astype(np.float32)


def hiss(seconds: float, level: float) -> FloatArray:
    return (level * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("level", [0.0, 1e-4, 3e-3])
def test_silence_and_low_noise_around_speech_are_cut(level: float) -> None:
    samples = np.concatenate([hiss(1.0, level), syllables(1.5), hiss(2.0, level)])
    span = speech_span(Wave(samples, RATE))
    assert span is not None and all(type(end) is int for end in span)
    assert span.start / RATE == pytest.approx(0.75, abs=0.06)
    assert span.end / RATE == pytest.approx(2.75, abs=0.06)


def test_speech_without_silence_stays_whole() -> None:
    wave = Wave(syllables(1.0), RATE)
    cut = cut_to_speech(wave)
    assert cut is not None
    np.testing.assert_array_equal(cut.samples, wave.samples)


def test_a_pause_within_speech_stays() -> None:
    samples = np.concatenate([syllables(0.5), np.zeros(RATE, np.float32), syllables(0.5)])
    assert speech_span(Wave(samples, RATE)) == (0, len(samples))


@pytest.mark.parametrize("level", [1e-3, 0.1])
def test_steady_noise_holds_no_speech(level: float) -> None:
    assert cut_to_speech(Wave(hiss(2.0, level), RATE)) is None


def test_less_than_a_step_holds_no_speech() -> None:
    assert speech_span(Wave(np.ones(10, np.float32), RATE)) is None
