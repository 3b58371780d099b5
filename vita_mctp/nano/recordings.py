"""How a question may be recorded: by telephone, in noise, in a room, faint, in low noise, or word by word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr

from vita_mctp.audio.vad import cut_to_speech
from vita_mctp.types import FloatArray, Wave

_RATE, _TELEPHONE_RATE = 16_000, 8_000
_LEVEL = 0.1
"""Root mean square of a spliced word, so that none is louder than its neighbours."""


def as_recorded(wave: Wave, rng: np.random.Generator) -> Wave:
    """A clean recording, disturbed as drawn, in int16's precision and cut to the speech in it, as a model hears it."""
    samples = _DISTURBANCES[int(rng.choice(len(_DISTURBANCES), p=_ODDS))](wave, rng)
    samples = (np.round(samples.clip(-1, 1) * 32767) / 32768).astype(np.float32)
    disturbed = Wave(samples, wave.sample_rate)
    return cut_to_speech(disturbed) or disturbed


def splice(words: Sequence[FloatArray], between: float, around: float = 0.3) -> Wave:
    """Words of 16 kHz, cut to their speech, all as loud, so many seconds of silence between, before and behind them."""
    gap, edge = (np.zeros(round(seconds * _RATE), np.float32) for seconds in (between, around))
    pieces = [edge]
    for samples in words:
        spoken = (cut_to_speech(Wave(samples, _RATE)) or Wave(samples, _RATE)).samples
        loud = np.flatnonzero(np.abs(spoken) > 0.02 * np.abs(spoken).max())
        word = spoken[max(0, loud[0] - _RATE // 100) : loud[-1] + _RATE // 33]
        pieces += [word * np.float32(_LEVEL / np.sqrt(np.square(word).mean())), gap]
    return Wave(np.concatenate([*pieces, edge]).clip(-1, 1).astype(np.float32), _RATE)


def _noise(count: int, rng: np.random.Generator) -> FloatArray:
    """Of power one, white or falling by up to 10 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    if rng.random() < 0.5:
        spectrum *= np.arange(1, len(spectrum) + 1) ** -rng.uniform(0, 1.6)
    noise = np.fft.irfft(spectrum, count)
    return (noise / max(1e-9, float(noise.std()))).astype(np.float32)


def _noisy(wave: Wave, rng: np.random.Generator, low: float = 6.0, high: float = 30.0) -> FloatArray:
    power = float(np.square(wave.samples).mean())
    level = np.sqrt(power) * 10 ** (-rng.uniform(low, high) / 20)
    return wave.samples + np.float32(level) * _noise(len(wave.samples), rng)


def telephone(wave: Wave, lowest: float, highest: float) -> FloatArray:
    """Between these frequencies in Hz alone, by way of 8,000 samples a second."""
    narrow = soxr.resample(wave.samples, wave.sample_rate, _TELEPHONE_RATE)
    spectrum, hertz = np.fft.rfft(narrow), np.fft.rfftfreq(len(narrow), 1 / _TELEPHONE_RATE)
    spectrum[(hertz < lowest) | (hertz > highest)] = 0
    narrow = np.fft.irfft(spectrum, len(narrow))
    return soxr.resample(narrow, _TELEPHONE_RATE, wave.sample_rate).astype(np.float32)


def _any_telephone(wave: Wave, rng: np.random.Generator) -> FloatArray:
    """Half of them with noise on the line."""
    samples = wave.samples if rng.random() < 0.5 else _noisy(wave, rng, 15.0, 40.0)
    return telephone(Wave(samples, wave.sample_rate), rng.uniform(150, 400), rng.uniform(3_200, 4_000))


def _in_a_room(wave: Wave, rng: np.random.Generator) -> FloatArray:
    decay = np.exp(-6.9 * np.arange(int(0.4 * wave.sample_rate)) / wave.sample_rate / rng.uniform(0.15, 0.6))
    echo = decay * rng.standard_normal(len(decay))
    echo *= 10 ** (rng.uniform(-14, -2) / 20) / np.sqrt(np.square(echo).sum())
    echo[0] = 1.0
    size = len(wave.samples) + len(echo)
    return np.fft.irfft(np.fft.rfft(wave.samples, size) * np.fft.rfft(echo, size), size).astype(np.float32)


def _surrounded(wave: Wave, rng: np.random.Generator) -> FloatArray:
    level = float(np.abs(wave.samples).max()) * 10 ** (-rng.uniform(35, 60) / 20)
    before, after = (
        np.float32(level) * rng.standard_normal(int(rng.uniform(0.1, 1.0) * wave.sample_rate)) for _ in range(2)
    )
    return np.concatenate([before, wave.samples, after]).astype(np.float32)


def _faint(wave: Wave, rng: np.random.Generator) -> FloatArray:
    return wave.samples * np.float32(10 ** (-rng.uniform(8, 28) / 20))


_DISTURBANCES = (lambda wave, _: wave.samples, _noisy, _any_telephone, _in_a_room, _surrounded, _faint)
_ODDS = (0.15, 0.28, 0.3, 0.07, 0.1, 0.1)
