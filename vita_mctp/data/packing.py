"""Packs samples into rows; positions restart at each sample, so that attention can be block-diagonal.

`fills` tells how full rows become by each way of packing, for given lengths of samples.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from vita_mctp.errors import ConfigError, DataError
from vita_mctp.text.chat import IGNORED, FeatureSpan, Sample
from vita_mctp.types import IntArray

BUFFER = 512
"""Samples looked at together; more fill rows better and lie further from their order of arrival."""

CHUNK = 2048
"""Samples that training packs and shuffles together."""


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
        self.tokens += _tokens(members)


def pack(
    samples: Iterable[Sample], max_length: int, buffer: int = BUFFER, report: PackingReport | None = None
) -> Iterator[PackedRow]:
    """Rows of at most `max_length` tokens holding every sample that fits one, each once; the last row too.

    Best fit, longest first, within `buffer` samples; the emptiest row's samples wait for the next buffer. Depends on
    the order of `samples` alone. `report` is brought up to date before each row; over-long samples are counted there.
    """
    if max_length < 1 or buffer < 1:
        raise ConfigError(f"packing wants a row length and a buffer of at least 1, got {max_length} and {buffer}")
    report = PackingReport() if report is None else report
    waiting: list[Sample] = []
    for sample in samples:
        if not report.admit(sample, max_length):
            continue
        waiting.append(sample)
        if len(waiting) >= buffer:
            bins = _bins(waiting, max_length)
            kept = min(bins, key=_tokens) if len(bins) > 1 else []
            bins = [members for members in bins if members is not kept]
            yield from _emit(bins, report)
            waiting = kept
    yield from _emit(_bins(waiting, max_length), report)


def join(samples: Sequence[Sample]) -> PackedRow:
    """The row of `samples` in their order, unpadded."""
    ends = tuple(accumulate(map(len, samples)))
    starts = (0, *ends[:-1])
    return PackedRow(
        input_ids=np.concatenate([np.asarray(sample.ids, dtype=np.int64) for sample in samples]),
        labels=np.concatenate([np.asarray(sample.labels, dtype=np.int64) for sample in samples]),
        position_ids=np.concatenate([np.arange(len(sample), dtype=np.int64) for sample in samples]),
        ends=ends,
        features=_shift_features(samples, starts),
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


def _bins(samples: Sequence[Sample], max_length: int) -> list[list[Sample]]:
    bins = best_fit_decreasing([len(sample) for sample in samples], max_length)
    return [[samples[index] for index in members] for members in bins]


def _tokens(members: Iterable[Sample]) -> int:
    return sum(map(len, members))


def _emit(bins: Iterable[list[Sample]], report: PackingReport) -> Iterator[PackedRow]:
    for members in bins:
        report.add_row(members)
        yield join(members)


def _shift_features(samples: Sequence[Sample], starts: Sequence[int]) -> tuple[FeatureSpan, ...]:
    """Spans within the row; clips are numbered through the row's spans, in order."""
    spans = [(start, span) for start, sample in zip(starts, samples, strict=True) for span in sample.features]
    return tuple(replace(span, clip=clip, start=start + span.start) for clip, (start, span) in enumerate(spans))


def read_lengths(path: Path) -> list[int]:
    """One length of a sample, in tokens, a line. Raises DataError with file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; give a file with one length a line") from error
    for number, line in enumerate(lines, 1):
        if not (line.isascii() and line.isdecimal() and int(line) > 0):
            raise DataError(f"{path}:{number}: got {line[:40]!r}; wanted a length of at least 1")
    if not lines:
        raise DataError(f"{path} is empty; wanted one length a line")
    return [int(line) for line in lines]


def fills(lengths: Sequence[int], row_length: int) -> dict[str, float]:
    """Fraction of the rows' positions that hold a token, samples longer than a row left out."""
    fitting = [length for length in lengths if length <= row_length]
    if not fitting:
        raise ConfigError(f"none of {len(lengths)} samples fits a row of {row_length}; give longer rows")
    chunks = [fitting[start : start + CHUNK] for start in range(0, len(fitting), CHUNK)]
    rows = {
        "reference, in order of arrival": _next_fit(fitting, row_length),
        f"first fit among {CHUNK}": sum(_first_fit(chunk, row_length) for chunk in chunks),
    }
    fills = {way: sum(fitting) / (count * row_length) for way, count in rows.items()}
    samples = [Sample((0,) * length, (0,) * length) for length in fitting]
    for buffer in (BUFFER, CHUNK):
        report = PackingReport()
        for _ in pack(samples, row_length, buffer, report):
            pass
        fills[f"best fit, longest first, among {buffer}"] = report.fill(row_length)
    return fills


def _next_fit(lengths: Sequence[int], row_length: int) -> int:
    """Rows used when a sample that does not fit behind the one before it begins the next row, as released."""
    rows, used = 1, 0
    for length in lengths:
        fits = used + length <= row_length
        rows, used = (rows, used + length) if fits else (rows + 1, length)
    return rows


def _first_fit(lengths: Sequence[int], row_length: int) -> int:
    """Rows used when each sample goes into the first row with room."""
    room: list[int] = []
    for length in lengths:
        row = next((number for number, free in enumerate(room) if free >= length), None)
        if row is None:
            room.append(row_length - length)
        else:
            room[row] -= length
    return len(room)
