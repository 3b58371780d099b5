"""Where in a recording somebody speaks, by level alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vita_mctp.errors import NoSpeechError
from vita_mctp.types import Wave

BELOW_PEAK_DB, ABOVE_FLOOR_DB = 35.0, 10.0
MARGIN_SECONDS = 0.25
_STEP_SECONDS = 0.02


class Span(NamedTuple):
    """Samples [start, end) of a recording."""

    start: int
    end: int


def speech_span(wave: Wave) -> Span | None:
    """From the first to the last 20 ms that are loud, and a quarter of a second on either side; None: there are none.

    Loud is within 35 dB of the loudest step and 10 dB above the floor, which a tenth of the steps lie below. A steady
    sound, such as hiss or hum, therefore holds no speech; levels alone do not tell every other noise apart.
    """
    step = max(1, round(_STEP_SECONDS * wave.sample_rate))
    samples = wave.samples[: len(wave.samples) // step * step].reshape(-1, step)
    if not len(samples):
        return None
    centred = samples - wave.samples.mean()
    levels = 10 * np.log10(np.square(centred, dtype=np.float64).mean(axis=1) + 1e-12)
    floor = np.quantile(levels, 0.1)
    loud = np.flatnonzero((levels >= levels.max() - BELOW_PEAK_DB) & (levels >= floor + ABOVE_FLOOR_DB))
    if not len(loud):
        return None
    margin = round(MARGIN_SECONDS * wave.sample_rate)
    first, last = int(loud[0]), int(loud[-1])
    return Span(max(0, first * step - margin), min(len(wave.samples), (last + 1) * step + margin))


def cut_to_speech(wave: Wave) -> Wave | None:
    """The part of a recording in which somebody speaks; None: nobody does."""
    span = speech_span(wave)
    return None if span is None else Wave(wave.samples[span.start : span.end], wave.sample_rate)


def cut_question(wave: Wave) -> tuple[Wave, tuple[float, float]]:
    """`cut_to_speech`, and the seconds left out on each side. Raises NoSpeechError where nobody speaks."""
    span = speech_span(wave)
    if span is None:
        raise NoSpeechError(
            f"no speech heard in {wave.seconds:.1f} s of sound; wanted: a question, louder than the noise around it; "
            "record it again"
        )
    left_out = span.start / wave.sample_rate, wave.seconds - span.end / wave.sample_rate
    return Wave(wave.samples[span.start : span.end], wave.sample_rate), left_out
