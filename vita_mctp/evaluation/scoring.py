"""Word errors and rates over all samples, with their intervals. A failed sample is one with nothing right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from vita_mctp.errors import MissingExtraError

_DRAWS = 1_000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class WordErrors:
    """The edits that turn a reference into a hypothesis (Levenshtein, words), and the reference's number of words."""

    substitutions: int
    deletions: int
    insertions: int
    reference_words: int

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Estimate:
    """A figure over n samples with its bootstrap 95 % interval; value is None where nothing could be divided by."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def require_jiwer() -> None:
    """Raises MissingExtraError where jiwer is not installed."""
    if find_spec("jiwer") is None:
        raise MissingExtraError("scoring needs jiwer, which is missing: pip install 'vita-mctp[eval]'")


def normalise(text: str) -> str:
    """Lower-case words apart by single blanks, without punctuation."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def same_text(reference: str, hypothesis: str) -> bool:
    """Whether two texts are the same words in the same order; an empty hypothesis is never right."""
    return normalise(hypothesis) != "" and normalise(reference) == normalise(hypothesis)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """The word errors of one sample, both texts normalised; with an empty reference each word heard is inserted."""
    import jiwer

    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return WordErrors(0, 0, len(hypothesis.split()), 0)
    edits = jiwer.process_words(reference, hypothesis)
    return WordErrors(edits.substitutions, edits.deletions, edits.insertions, len(reference.split()))


def word_error_rate(pairs: Iterable[tuple[str, str]], seed: int = 0) -> Estimate:
    """Word errors of all (reference, hypothesis) pairs over all words of the references."""
    errors = [word_errors(reference, hypothesis) for reference, hypothesis in pairs]
    return ratio([error.total for error in errors], [error.reference_words for error in errors], seed)


def share(hits: Sequence[bool], seed: int = 0) -> Estimate:
    """How many samples are right, of all."""
    return ratio([int(hit) for hit in hits], [1] * len(hits), seed)


def ratio(parts: Sequence[int], wholes: Sequence[int], seed: int = 0) -> Estimate:
    """sum(parts) / sum(wholes), and the percentiles of the same over 1,000 draws of the samples with replacement.

    Efron's percentile bootstrap; samples are drawn whole, so a long one keeps its weight.
    """
    if not sum(wholes):
        return Estimate(None, None, None, len(wholes))
    part, whole = np.array(parts, np.float64), np.array(wholes, np.float64)
    draws = np.random.default_rng(seed).integers(len(part), size=(_DRAWS, len(part)))
    drawn = whole[draws].sum(1)
    low, high = np.percentile(part[draws].sum(1)[drawn > 0] / drawn[drawn > 0], _INTERVAL)
    return Estimate(float(part.sum() / whole.sum()), float(low), float(high), len(part))
