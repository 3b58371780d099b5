"""How loud the borders between chunks are: jumps of energy there, beside jumps at other places of the same wave.

T samples, N places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vita_mctp.types import FloatArray

WINDOW_SECONDS = 0.005
_SILENCE = 1e-9
"""Power added to both sides, about -90 dB, below which a change is not heard."""

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Seams:
    """Mean jumps, in dB, of `borders` borders. None where there is no place to look at.

    at_borders, inside: of the streamed wave, where two chunks meet, and on the same grid everywhere else.
    offline, offline_inside: of the wave decoded in one piece, at the same places.
    """

    borders: int = 0
    at_borders: float | None = None
    inside: float | None = None
    offline: float | None = None
    offline_inside: float | None = None


def energy_jumps(samples: FloatArray, places: Places, width: int) -> npt.NDArray[np.float64]:
    """|dB| (N,) between the power of the `width` samples behind each place and that of those before it."""
    power = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    after, before = power[places + width] - power[places], power[places] - power[places - width]
    return np.abs(10 * np.log10((after / width + _SILENCE) / (before / width + _SILENCE)))


def measure_seams(chunks: list[FloatArray], offline: FloatArray, sample_rate: int) -> Seams:
    """Seams of a wave that came in `chunks`.

    "Everywhere else" is the widest grid that all borders lie on, since a decoder's frames may jump by themselves.
    """
    width = round(WINDOW_SECONDS * sample_rate)
    wave = np.concatenate([np.zeros(0, np.float32), *chunks])
    ends = np.cumsum([len(chunk) for chunk in chunks if len(chunk)])
    borders = _within(ends[:-1].astype(np.int64), len(wave), width)
    if not len(borders):
        return Seams()
    grid = np.arange(0, len(wave), int(np.gcd.reduce(borders)), dtype=np.int64)
    elsewhere = grid[np.abs(grid[:, None] - borders).min(1) > 2 * width]
    jumps = (
        _mean(energy_jumps(samples, _within(places, len(samples), width), width))
        for samples in (wave, offline)
        for places in (borders, elsewhere)
    )
    return Seams(len(borders), *jumps)


def _within(places: Places, length: int, width: int) -> Places:
    return places[(places >= width) & (places + width <= length)]


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
