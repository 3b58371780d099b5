"""The clock of all benchmarks, and the statistics of what it read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Times:
    """Seconds, one for each run."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("statistics want at least one time")

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Times:
        return cls(tuple(seconds))

    @property
    def total(self) -> float:
        return sum(self.seconds)

    @property
    def mean(self) -> float:
        return self.total / len(self.seconds)

    def percentile(self, q: float) -> float:
        """Linear between the two nearest runs, as numpy's default."""
        return float(np.percentile(self.seconds, q))

    @property
    def median(self) -> float:
        return self.percentile(50)


def now(device: torch.device) -> float:
    """`time.perf_counter` once the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_runs(run: Callable[[], object], device: torch.device, runs: int, warm_up: int = 1) -> Times:
    """How long `run` takes, each time; the warm-up's runs are not counted."""
    for _ in range(warm_up):
        run()
    return Times.of(_timed(run, device) for _ in range(runs))


def gaps(start: float, moments: Sequence[float]) -> Times:
    """The time from each moment to the next, the first from `start`."""
    return Times.of(after - before for before, after in zip((start, *moments), moments, strict=False))


def _timed(run: Callable[[], object], device: torch.device) -> float:
    start = now(device)
    run()
    return now(device) - start
