"""Every problem of manifests, and what they hold."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vita_mctp.data.manifest import (
    MAX_SECONDS,
    GivenCodes,
    Line,
    ManifestSample,
    decode,
    parse_line,
    read_bytes,
    read_lines,
)
from vita_mctp.errors import DataError

USUAL_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000})
"""Hz; another rate is nearly always a damaged header."""
_PERCENTILES = {"shortest": 0, "p5": 5, "median": 50, "p95": 95, "longest": 100}


class ManifestCheck:
    """Reads manifests one after the other; ids may not repeat in any of them. Of a bad sample only the line counts."""

    def __init__(self, report: Callable[[str], None], max_seconds: float = MAX_SECONDS) -> None:
        """report: called with each problem, `file:line: what is wrong`."""
        self.lines = self.problems = 0
        self._report, self._max_seconds = report, max_seconds
        self._first_of: dict[str, str] = {}
        self._forms, self._rates, self._codecs = Counter[str](), Counter[int](), Counter[str]()
        self._seconds, self._characters = array("d"), array("q")

    def summary(self) -> dict[str, Any]:
        """JSON values; lengths as shortest, 5th percentile, median, 95th and longest."""
        return {
            "lines": self.lines,
            "problems": self.problems,
            "samples": dict(sorted(self._forms.items())),
            "hours": round(sum(self._seconds) / 3600, 4),
            "recordings": len(self._seconds),
            "sample_rates": {str(rate): count for rate, count in sorted(self._rates.items())},
            "given_codes": dict(sorted(self._codecs.items())),
            "seconds": _spread(self._seconds),
            "characters": _spread(self._characters),
        }

    def read(self, path: Path) -> None:
        """Check every line of `path`, and decode every recording."""
        try:
            for line in read_lines(path):
                self.lines += 1
                self._check(line, path)
        except DataError as error:
            self._complain(str(error))

    def _check(self, line: Line, path: Path) -> None:
        try:
            sample = parse_line(line.content, path, line.number)
        except DataError as error:
            self._complain(str(error))
            return
        problems = [*self._repeated_id(sample), *self._bad_audios(sample)]
        for problem in problems:
            self._complain(problem)
        if not problems:
            self._forms[sample.form.value] += 1
            self._characters.append(sum(len(message.content) for message in sample.messages))

    def _repeated_id(self, sample: ManifestSample) -> Iterator[str]:
        if sample.id in self._first_of:
            first = self._first_of[sample.id]
            yield f"{sample.where}: the id {sample.id!r} is that of {first} too; give each sample its own"
        elif sample.id is not None:
            self._first_of[sample.id] = sample.where

    def _bad_audios(self, sample: ManifestSample) -> Iterator[str]:
        for number, audio in enumerate(sample.audios):
            where = f"{sample.where}: audios[{number}]"
            if isinstance(audio, GivenCodes):
                self._codecs[audio.codec] += 1
                continue
            try:
                wave = decode(read_bytes(audio, where), where, self._max_seconds)
            except DataError as error:
                yield str(error)
                continue
            self._rates[wave.sample_rate] += 1
            self._seconds.append(wave.seconds)
            if wave.sample_rate not in USUAL_RATES:
                yield f"{where} has the unusual sample rate of {wave.sample_rate} Hz; see to its header"

    def _complain(self, problem: str) -> None:
        self.problems += 1
        self._report(problem)


def _spread(values: array[Any]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(np.frombuffer(values, dtype=values.typecode), list(_PERCENTILES.values()))
    return {name: round(float(value), 3) for name, value in zip(_PERCENTILES, found, strict=True)}
