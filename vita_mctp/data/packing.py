"""Packs samples into rows; positions restart at each sample, so that attention can be block-diagonal."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from vita_mctp.errors import ConfigError
from vita_mctp.text.chat import IGNORED, FeatureSpan, Sample
from vita_mctp.types import IntArray

CHUNK = 2048
"""Samples that training packs and shuffles together; more fill rows better and lie further from their order."""


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Samples one behind the other. input_ids, labels, position_ids: int64 (T,); `ends[i]` is where sample i stops."""

    input_ids: IntArray
    labels: IntArray
    position_ids: IntArray
    ends: tuple[int, ...]
    features: tuple[FeatureSpan, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    def padded(self, length: int, pad_id: int) -> PackedRow:
        """The row at `length`, padding being a segment of its own with no labels."""
        missing = length - len(self)
        if missing < 0:
            raise ConfigError(f"a row of {len(self)} tokens cannot be padded to {length}; pack with that length")
        if not missing:
            return self
        return replace(
            self,
            input_ids=np.concatenate([self.input_ids, np.full(missing, pad_id, dtype=np.int64)]),
            labels=np.concatenate([self.labels, np.full(missing, IGNORED, dtype=np.int64)]),
            position_ids=np.concatenate([self.position_ids, np.arange(missing, dtype=np.int64)]),
            ends=(*self.ends, length),
        )


@dataclass
class PackingReport:
    """Running counts of a packing."""

    samples: int = 0
    tokens: int = 0
    rows: int = 0
    over_long: int = 0
    """Samples longer than a row, left out."""
    longest: int = 0
    """Tokens of the longest sample met, left out or not."""

    def fill(self, max_length: int) -> float:
        """Fraction of the rows' positions that hold a token of a sample."""
        return self.tokens / (self.rows * max_length) if self.rows else 0.0

    def admit(self, sample: Sample, max_length: int) -> bool:
        """Whether the sample fits a row; one that does not is counted here and packed nowhere."""
        self.longest = max(self.longest, len(sample))
        self.over_long += len(sample) > max_length
        return len(sample) <= max_length

    def add_row(self, members: Sequence[Sample]) -> None:
        self.rows += 1
        self.samples += len(members)
        self.tokens += sum(map(len, members))


def join(samples: Sequence[Sample]) -> PackedRow:
    """The row of `samples` in their order, unpadded. Clips of features are numbered through the row."""
    ends = tuple(accumulate(map(len, samples)))
    spans = [(start, span) for start, sample in zip((0, *ends), samples, strict=False) for span in sample.features]
    return PackedRow(
        input_ids=np.concatenate([np.asarray(sample.ids, dtype=np.int64) for sample in samples]),
        labels=np.concatenate([np.asarray(sample.labels, dtype=np.int64) for sample in samples]),
        position_ids=np.concatenate([np.arange(len(sample), dtype=np.int64) for sample in samples]),
        ends=ends,
        features=tuple(replace(span, clip=clip, start=at + span.start) for clip, (at, span) in enumerate(spans)),
    )


def best_fit_decreasing(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Bins of indices into `lengths`: each, longest first, goes into the fullest bin with room for it.

    No length may exceed `max_length`. Bins and their members come back in order of arrival.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fullest = bisect_left(room, (length, 0))
        if fullest < len(room):
            free, number = room.pop(fullest)
            bins[number].append(index)
        else:
            free, number = max_length, len(bins)
            bins.append([index])
        insort(room, (free - length, number))
    return sorted(map(sorted, bins))
