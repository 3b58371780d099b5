"""Resampling: `resample` for any sound, and windowed sinc for models that were trained behind torchaudio's `Resample`.

The sinc kernel is torchaudio's default: Hann window, 6 zero crossings on each side, roll-off 0.99, computed in float64.
Only the taps that are not zero are kept, so that any pair of rates costs the same.

n samples in, ceil(n * new / old) out; with both rates divided by their greatest common divisor, output k is a sum over
the `2 * half_width` inputs around k * old / new.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vita_mctp.types import FloatArray, Wave

ZERO_CROSSINGS = 6
ROLL_OFF = 0.99


def resample(wave: Wave, sample_rate: int) -> Wave:
    """The same sound at another rate: band-limited, linear phase, about T * sample_rate / wave.sample_rate samples."""
    if wave.sample_rate == sample_rate:
        return wave
    import soxr

    samples = soxr.resample(wave.samples, wave.sample_rate, sample_rate, quality="HQ")
    return Wave(np.clip(samples, -1.0, 1.0).astype(np.float32), sample_rate)


class StreamResampler:
    """`resample` piece by piece: the same samples however they are cut, a few hundredths of a second later."""

    def __init__(self, old_rate: int, new_rate: int) -> None:
        import soxr

        same = old_rate == new_rate
        self._stream = None if same else soxr.ResampleStream(old_rate, new_rate, 1, dtype="float32", quality="HQ")

    def push(self, samples: FloatArray, is_last: bool = False) -> FloatArray:
        if self._stream is None:
            return samples
        made: FloatArray = self._stream.resample_chunk(samples, last=is_last)
        return made

    def finish(self) -> FloatArray:
        """What waited for more."""
        return self.push(np.zeros(0, np.float32), is_last=True)


def sinc_resample(samples: FloatArray, old_rate: int, new_rate: int) -> FloatArray:
    """(..., n) -> (..., ceil(n * new / old)), as torchaudio does it; rows, such as channels, do not mix."""
    divisor = gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    if old == new or not samples.shape[-1]:
        return samples
    kernel = _sinc_kernel(old, new)
    half_width, count = kernel.shape[1] // 2, -(-samples.shape[-1] * new // old)
    padded = np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(half_width - 1, half_width)])
    windows = sliding_window_view(padded, 2 * half_width, axis=-1)
    outputs = np.empty((*samples.shape[:-1], count), np.float32)
    for phase in range(min(new, count)):  # outputs of one phase lie `old` inputs apart
        rows = windows[..., phase * old // new :: old, :][..., : len(range(phase, count, new)), :]
        outputs[..., phase::new] = rows @ kernel[phase]
    return outputs


@lru_cache(maxsize=16)
def _sinc_kernel(old: int, new: int) -> FloatArray:
    """(new, 2 * half_width): the taps of each phase."""
    cutoff = min(old, new) * ROLL_OFF
    half_width, phases = ceil(ZERO_CROSSINGS * old / cutoff), np.arange(new)
    taps = (phases * old // new)[:, None] + np.arange(1 - half_width, half_width + 1)
    offsets = phases.astype(np.float32) / np.float32(new)  # torchaudio rounds these alone to float32
    crossings = (taps / old - offsets.astype(np.float64)[:, None]) * cutoff
    crossings = crossings.clip(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(crossings * np.pi / ZERO_CROSSINGS / 2) ** 2
    kernel: FloatArray = (np.sinc(crossings) * window * cutoff / old).astype(np.float32)
    return kernel
