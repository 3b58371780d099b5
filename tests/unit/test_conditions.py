"""What befalls a recording."""

import numpy as np
import pytest

from vita_mctp.nano.cases import CONDITIONS
from vita_mctp.types import FloatArray, Wave

TIME = np.arange(16_000, dtype=np.float32) / 16_000
WAVE = Wave((0.3 * np.sin(2 * np.pi * 150 * TIME) + 0.1 * np.sin(2 * np.pi * 1000 * TIME)).astype(np.float32), 16_000)


def changed(name: str) -> FloatArray:
    return CONDITIONS[name](WAVE, np.random.default_rng(0))


def test_a_recording_as_spoken_stays() -> None:
    np.testing.assert_array_equal(changed("as spoken"), WAVE.samples)


def test_what_stands_around_is_as_long_as_said() -> None:
    assert len(changed("a second of silence behind")) == 16_000 * 2.5
    assert len(changed("low noise, half a second before and two behind")) == 16_000 * 3.5


@pytest.mark.parametrize("decibels", [10, 20])
def test_noise_lies_so_many_decibels_below(decibels: int) -> None:
    noise = changed(f"white noise, {decibels} dB") - WAVE.samples
    ratio = np.square(WAVE.samples).mean() / np.square(noise).mean()
    assert 10 * np.log10(ratio) == pytest.approx(decibels, abs=0.3)


def test_a_telephone_passes_the_middle_alone() -> None:
    spectrum = np.abs(np.fft.rfft(changed("telephone, 300 Hz to 4 kHz"))) / 8_000
    assert spectrum[150] < 0.01 and spectrum[1000] == pytest.approx(0.1, abs=0.01)
