"""How questions by natural voices are recorded before an encoder learns from them."""

import numpy as np
import pytest

from vita_mctp.nano import recordings
from vita_mctp.types import FloatArray, Wave

RATE = 16_000


@pytest.fixture
def wave() -> Wave:
    """A second of buzz between two half seconds of silence."""
    time = np.arange(RATE) / RATE
    buzz = sum(np.sin(2 * np.pi * 110 * tone * time) / tone for tone in range(1, 70))
    silence = np.zeros(RATE // 2)
    return Wave(np.concatenate([silence, 0.2 * buzz, silence]).astype(np.float32), RATE)


def power(samples: FloatArray, low: float, high: float) -> float:
    spectrum = np.square(np.abs(np.fft.rfft(samples)))
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(spectrum[(hertz >= low) & (hertz < high)].sum())


def test_a_recording_is_drawn_from_its_seed_and_cut_to_its_speech(wave: Wave) -> None:
    one, again = (recordings.as_recorded(wave, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one.samples, again.samples)
    found = [recordings.as_recorded(wave, np.random.default_rng(seed)).samples for seed in range(12)]
    assert len({each.tobytes() for each in found}) > 6
    for each in found:
        assert np.isfinite(each).all() and np.abs(each).max() <= 1
        assert np.array_equal(each * 32768, np.round(each * 32768)), "a sound card has 16 bits"
        assert 0.9 * RATE <= len(each) <= 2.2 * RATE


def test_a_telephone_has_a_band(wave: Wave) -> None:
    for seed in range(4):
        heard = recordings._any_telephone(wave, np.random.default_rng(seed))
        inside = power(heard, 450, 3_100)
        assert power(heard, 0, 140) < 1e-3 * inside
        assert power(heard, 4_200, 8_000) < 1e-3 * inside
        assert inside == pytest.approx(power(wave.samples, 450, 3_100), rel=0.1)


def test_noise_around_leaves_the_speech_as_it_is(wave: Wave) -> None:
    heard = recordings._surrounded(wave, np.random.default_rng(0))
    assert len(heard) > len(wave.samples)
    starts = [s for s in range(len(heard) - len(wave.samples) + 1) if heard[s] == 0][:1]
    assert np.array_equal(heard[starts[0] : starts[0] + len(wave.samples)], wave.samples)
