"""One row for each sample with its scores, the metrics over all rows, and how sure they are.

Intervals are bootstrap ones; whether two systems differ on the same samples is approximate randomisation's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vita_mctp.errors import DataError
from vita_mctp.evaluation.pool import Entry
from vita_mctp.schema import Schema

TEXT, SPEECH, SOUND = "text", "speech", "sound"
"""What was scored: what the system wrote, what a judge heard it say, or how it sounds."""

_DRAWS = 1_000
_INTERVAL = (2.5, 97.5)
_SHUFFLES = 10_000
_AT_ONCE = 100
"""Shuffles done in one step, so that memory stays small for data sets of any size."""

Numbers = Sequence[int] | Sequence[float]


class Score(Schema):
    """One rule's result for one sample. A metric is sum(part) / sum(whole) over its samples.

    part, whole: edits and reference length; a sample's own rate, and 1, for a rule that means rates; 1 or 0, and 1, for
    answers; the value, and 1, for sound. reference, hypothesis: the texts as compared. reason: an answer rule's, or why
    there was nothing to score.
    """

    rule: str
    on: str
    part: float
    whole: float
    reference: str
    hypothesis: str
    reason: str = ""


class AnswerEntry(Entry):
    """What a system answered. audio: a path in the run's folder; None where no sound came.

    mode: of decoding, where the system has such. Seconds count from the moment the question is handed over. failure:
    what went wrong, or None.
    """

    text: str
    audio: str | None
    audio_seconds: float
    mode: str | None
    tokens: int
    total_seconds: float
    first_sound_seconds: float | None
    failure: str | None


class ResultRow(AnswerEntry):
    """One sample, whatever came of it. transcripts: by judge.

    A failed sample is scored by what it brought: nothing at all is every word deleted, or a wrong answer.
    """

    prompt: str
    references: tuple[str, ...]
    tags: dict[str, str] = Field(default_factory=dict)
    transcripts: dict[str, str]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Metric:
    """One rule over all samples."""

    rule: str
    on: str
    estimate: Estimate


def metrics(rows: Sequence[ResultRow], seed: int = 0) -> list[Metric]:
    """Every rule's metric over all rows, in the order of the first row's scores."""
    return [Metric(*key, ratio(parts, wholes, seed)) for key, (parts, wholes) in counted(rows).items()]


def counted(rows: Sequence[ResultRow]) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """(rule, on) -> every sample's part, and every sample's whole, in the order of the rows."""
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for score in (score for row in rows for score in row.scores):
        parts, wholes = found.setdefault((score.rule, score.on), ([], []))
        parts.append(score.part)
        wholes.append(score.whole)
    return found


def by_tag(rows: Sequence[ResultRow], tag: str) -> dict[str, list[ResultRow]]:
    """The rows with each value of a tag, in order; rows without the tag are in none."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        if tag in row.tags:
            groups.setdefault(row.tags[tag], []).append(row)
    return groups


@dataclass(frozen=True)
class Estimate:
    """A metric over n samples with its bootstrap 95 % interval; value is None where nothing could be divided by."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def exact(cls, value: float, n: int) -> Estimate:
        """A count, which has itself as its interval."""
        return cls(value, value, value, n)


@dataclass(frozen=True)
class Comparison:
    """System b's metric less system a's, on the same samples; p_value: how often chance alone makes as much of it."""

    difference: Estimate
    p_value: float | None


def ratio(parts: Numbers, wholes: Numbers, seed: int = 0) -> Estimate:
    """sum(parts) / sum(wholes), and the percentiles of the same over 1,000 draws of the samples with replacement.

    Efron's percentile bootstrap; samples are drawn whole, so a long one keeps its weight (Bisani and Ney 2004,
    "Bootstrap estimates for confidence intervals in ASR performance evaluation").
    """
    if not sum(wholes):
        return Estimate(None, None, None, len(wholes))
    part, whole = np.array(parts, np.float64), np.array(wholes, np.float64)
    draws = _draws(len(part), seed)
    drawn = whole[draws].sum(1)
    low, high = np.percentile(part[draws].sum(1)[drawn > 0] / drawn[drawn > 0], _INTERVAL)
    return Estimate(float(part.sum() / whole.sum()), float(low), float(high), len(part))


def compare(a: tuple[Numbers, Numbers], b: tuple[Numbers, Numbers], seed: int = 0) -> Comparison:
    """Whether b's ratio differs from a's. a, b: (parts, wholes) of the same samples in the same order.

    The interval draws samples with replacement, the same ones for both systems (Bisani and Ney 2004, section 3). The
    two-sided p value is approximate randomisation: each sample's two results are swapped by a coin's toss, 10,000
    times; p = (1 + times the difference is no smaller) / (1 + times) (Noreen 1989; Riezler and Maxwell 2005).
    Raises DataError when the systems do not have the same number of samples.
    """
    lengths = {len(numbers) for numbers in (*a, *b)}
    if len(lengths) != 1:
        raise DataError(f"a paired comparison got {sorted(lengths)} samples; compare runs over the same samples")
    n = lengths.pop()
    if not (sum(a[1]) and sum(b[1])):
        return Comparison(Estimate(None, None, None, n), None)
    one, other = np.array(a, np.float64), np.array(b, np.float64)
    observed = float(_ratios(other) - _ratios(one))
    draws = _draws(n, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = _ratios(other[:, draws]) - _ratios(one[:, draws])
    low, high = np.percentile(spread[np.isfinite(spread)], _INTERVAL)
    return Comparison(Estimate(observed, float(low), float(high), n), _p_value(one, other, observed, seed))


def _p_value(one: NDArray[np.float64], other: NDArray[np.float64], observed: float, seed: int) -> float:
    """one, other: (parts, wholes) x samples."""
    generator, as_large = np.random.default_rng(seed), 0
    for _ in range(_SHUFFLES // _AT_ONCE):
        swapped = generator.random((_AT_ONCE, one.shape[1])) < 0.5
        a, b = (np.where(swapped, x[:, None], y[:, None]) for x, y in ((other, one), (one, other)))
        with np.errstate(invalid="ignore", divide="ignore"):
            as_large += int((np.abs(_ratios(b) - _ratios(a)) >= abs(observed) - 1e-12).sum())
    return (1 + as_large) / (1 + _SHUFFLES)


def _ratios(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """(parts, wholes) x ... x samples -> ..."""
    parts, wholes = numbers.sum(-1)
    return np.asarray(parts / wholes)


def _draws(n: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(n, size=(_DRAWS, n))
