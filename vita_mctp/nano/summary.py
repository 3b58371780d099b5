"""Rows to figures: every group of rows with the same task, mode and group becomes one line of estimates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vita_mctp.evaluation.intervals import Estimate, share
from vita_mctp.evaluation.text_scores import text_rule
from vita_mctp.nano.rows import ANSWER, ASR, COPY, ORIGINAL, TTS, Row

Metric = Callable[[Sequence[Row], int], Estimate]


def _wer(reference: str, hypothesis: str) -> Metric:
    """Word error rate between two of a row's texts."""
    return lambda rows, seed: text_rule("plain").rate_of(
        ((getattr(row, reference), getattr(row, hypothesis)) for row in rows), seed
    )


def _share(verdict: str) -> Metric:
    return lambda rows, seed: share([getattr(row, verdict) for row in rows], seed)


_HEARD: Mapping[str, Metric] = {
    "heard_right": _share("heard_right"),
    "wer2": _wer("reference", "bigram"),
    "wer1": _wer("reference", "loop"),
}
METRICS: Mapping[str, Mapping[str, Metric]] = {
    ASR: {"wer": _wer("reference", "text")},
    ANSWER: {
        "text_right": _share("text_right"),
        **_HEARD,
        "own_wer2": _wer("text", "bigram"),
        "own_wer1": _wer("text", "loop"),
    },
    TTS: _HEARD,
    ORIGINAL: _HEARD,
    COPY: _HEARD,
}
"""By task. own_*: what is heard against what the model itself wrote."""


@dataclass(frozen=True)
class Line:
    """The figures of one task in one mode for one group of samples."""

    task: str
    mode: str
    group: str
    n: int
    failed: int
    figures: dict[str, Estimate]


@dataclass(frozen=True)
class Speed:
    """How fast one mode answered aloud, over all its answers; None where no answer had sound.

    first_sound_*: seconds from the end of the question. real_time_factor: all computing over all sound.
    """

    mode: str
    n: int
    tokens_per_second: float
    first_sound_p50: float | None
    first_sound_p95: float | None
    real_time_factor: float | None


@dataclass(frozen=True)
class Summary:
    lines: tuple[Line, ...]
    speeds: tuple[Speed, ...]

    def line(self, task: str, mode: str, group: str) -> Line:
        return next(line for line in self.lines if (line.task, line.mode, line.group) == (task, mode, group))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(rows: Sequence[Row], seed: int = 0) -> Summary:
    """Lines and speeds in the order in which their first rows come."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.mode, row.group), []).append(row)
    lines = []
    for key, members in groups.items():
        figures = {name: metric(members, seed) for name, metric in METRICS[key[0]].items()}
        failed = sum(row.failure is not None for row in members)
        lines.append(Line(*key, len(members), failed, figures))
    modes = dict.fromkeys(row.mode for row in rows if row.task == ANSWER)
    speeds = [_speed(mode, [row for row in rows if row.task == ANSWER and row.mode == mode]) for mode in modes]
    return Summary(tuple(lines), tuple(speeds))


def _speed(mode: str, rows: Sequence[Row]) -> Speed:
    seconds, audio = sum(row.total_seconds for row in rows), sum(row.audio_seconds for row in rows)
    firsts = [row.first_sound_seconds for row in rows if row.first_sound_seconds is not None]
    p50, p95 = (float(np.percentile(firsts, q)) if firsts else None for q in (50, 95))
    tokens = sum(row.tokens for row in rows)
    return Speed(mode, len(rows), tokens / seconds if seconds else 0.0, p50, p95, seconds / audio if audio else None)
