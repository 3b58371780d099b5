"""What befalls a recording on its way: silence and noise around it, noise in it, a telephone, a faint voice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr

from vita_mctp.audio import cut_to_speech
from vita_mctp.types import FloatArray, Wave

Condition = Callable[[Wave, np.random.Generator], FloatArray]
"""A recording of int16's precision -> its samples, changed."""

_HISS = 1e-3
"""-60 dB of full scale."""
_TELEPHONE_RATE, _TELEPHONE_LOWEST = 8_000, 300.0


def _hiss(wave: Wave, seconds: float, rng: np.random.Generator, level: float = _HISS) -> FloatArray:
    return (level * rng.standard_normal(round(seconds * wave.sample_rate))).astype(np.float32)


def _surrounded(before: float, after: float, level: float) -> Condition:
    def change(wave: Wave, rng: np.random.Generator) -> FloatArray:
        return np.concatenate([_hiss(wave, before, rng, level), wave.samples, _hiss(wave, after, rng, level)])

    return change


def _noisy(decibels: float) -> Condition:
    """White noise, so many decibels below the mean power of the part with speech."""

    def change(wave: Wave, rng: np.random.Generator) -> FloatArray:
        power = np.square((cut_to_speech(wave) or wave).samples).mean()
        return wave.samples + _hiss(wave, wave.seconds, rng, float(np.sqrt(power)) * 10 ** (-decibels / 20))

    return change


def _telephone(wave: Wave, rng: np.random.Generator) -> FloatArray:
    narrow = soxr.resample(wave.samples, wave.sample_rate, _TELEPHONE_RATE)
    spectrum = np.fft.rfft(narrow)
    spectrum[np.fft.rfftfreq(len(narrow), 1 / _TELEPHONE_RATE) < _TELEPHONE_LOWEST] = 0
    return soxr.resample(np.fft.irfft(spectrum, len(narrow)), _TELEPHONE_RATE, wave.sample_rate).astype(np.float32)


def _silences() -> dict[str, Condition]:
    found: dict[str, Condition] = {"as spoken": lambda wave, _: wave.samples}
    for what, level in (("digital silence", 0.0), ("low noise", _HISS)):
        found |= {f"{seconds:g} s of {what}": _surrounded(seconds, seconds, level) for seconds in (0.5, 1.0, 2.0)}
    return found


SILENCES = _silences()
"""Before and behind the question, so much each."""

CONDITIONS: dict[str, Condition] = {
    "as spoken": lambda wave, _: wave.samples,
    "a second of silence behind": _surrounded(0.5, 1.0, 0.0),
    "low noise, half a second before and two behind": _surrounded(0.5, 2.0, _HISS),
    "white noise, 20 dB": _noisy(20),
    "white noise, 10 dB": _noisy(10),
    "telephone, 300 Hz to 4 kHz": _telephone,
    "20 dB fainter": lambda wave, _: wave.samples * np.float32(0.1),
}
