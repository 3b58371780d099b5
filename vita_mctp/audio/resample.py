"""Resampling: `resample` for any sound, and windowed sinc for models that were trained behind torchaudio's `Resample`.

The sinc kernel is torchaudio's default: Hann window, 6 zero crossings on each side, roll-off 0.99, computed in float64.
Only the taps that are not zero are kept, so that any pair of rates costs the same and a stream keeps few samples.

n samples in, ceil(n * new / old) out; with both rates divided by their greatest common divisor, output k is a sum over
the `2 * half_width` inputs around k * old / new.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class ResamplerState:
    """Inputs that later outputs still need, how many came in, and how many outputs went out."""

    tail: FloatArray
    consumed: int = 0
    produced: int = 0


class SincResampler:
    """Resamples whole waves, or a stream piece by piece with the same result; `sinc_resampler` makes one per pair."""

    def __init__(self, old_rate: int, new_rate: int) -> None:
        divisor = gcd(old_rate, new_rate)
        self.old, self.new = old_rate // divisor, new_rate // divisor
        cutoff = min(self.old, self.new) * ROLL_OFF
        self.half_width = ceil(ZERO_CROSSINGS * self.old / cutoff)
        phases = np.arange(self.new)
        taps = (phases * self.old // self.new)[:, None] + np.arange(1 - self.half_width, self.half_width + 1)
        offsets = phases.astype(np.float32) / np.float32(self.new)  # torchaudio rounds these alone to float32
        crossings = (taps / self.old - offsets.astype(np.float64)[:, None]) * cutoff
        crossings = crossings.clip(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = np.cos(crossings * np.pi / ZERO_CROSSINGS / 2) ** 2
        self.kernel: FloatArray = (np.sinc(crossings) * window * cutoff / self.old).astype(np.float32)
        """(new, 2 * half_width): the taps of each phase."""

    @property
    def gain(self) -> float:
        """The largest output that inputs in [-1, 1] can make."""
        return 1.0 if self.old == self.new else float(np.abs(self.kernel).sum(axis=1).max())

    def __call__(self, samples: FloatArray) -> FloatArray:
        """(..., n) -> (..., ceil(n * new / old)); rows, such as channels, do not mix."""
        if self.old == self.new:
            return samples
        margins = [(0, 0)] * (samples.ndim - 1) + [(self.half_width - 1, self.half_width)]
        return self._outputs(np.pad(samples, margins), 0, self._count(samples.shape[-1]))

    def start(self) -> ResamplerState:
        return ResamplerState(np.zeros(0 if self.old == self.new else self.half_width - 1, np.float32))

    def push(self, samples: FloatArray, state: ResamplerState) -> tuple[FloatArray, ResamplerState]:
        """The outputs that no later input can change."""
        if self.old == self.new:
            return samples, state
        consumed = state.consumed + len(samples)
        ready = max(self._count(consumed - self.half_width), state.produced)
        known = np.concatenate([state.tail, samples])
        outputs = self._outputs(known, state.produced, ready)
        passed = ready * self.old // self.new - state.produced * self.old // self.new
        return outputs, ResamplerState(known[passed:].copy(), consumed, ready)

    def finish(self, state: ResamplerState) -> FloatArray:
        """The outputs that waited for more; what follows the end counts as zeros."""
        if self.old == self.new:
            return state.tail
        known = np.concatenate([state.tail, np.zeros(self.half_width, np.float32)])
        return self._outputs(known, state.produced, self._count(state.consumed))

    def _count(self, num_inputs: int) -> int:
        return -(-num_inputs * self.new // self.old)

    def _outputs(self, known: FloatArray, first: int, stop: int) -> FloatArray:
        """Outputs first..stop-1 of inputs whose first one is the first that output `first` needs."""
        outputs = np.empty((*known.shape[:-1], stop - first), np.float32)
        if stop == first:
            return outputs
        windows = sliding_window_view(known, 2 * self.half_width, axis=-1)
        origin = first * self.old // self.new
        for output in range(first, min(first + self.new, stop)):  # outputs of one phase lie `old` inputs apart
            count = len(range(output, stop, self.new))
            begin = output * self.old // self.new - origin
            rows = windows[..., begin : begin + (count - 1) * self.old + 1 : self.old, :]
            outputs[..., output - first :: self.new] = rows @ self.kernel[output % self.new]
        return outputs


@lru_cache(maxsize=16)
def sinc_resampler(old_rate: int, new_rate: int) -> SincResampler:
    """The resampler of a pair of rates, in Hz."""
    return SincResampler(old_rate, new_rate)
