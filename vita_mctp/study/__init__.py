"""What the papers claim, made again at small scale on a model at hand.

A study is one file with its loader, its loop and its table: a function `run(StudyOptions) -> Findings`, named in
`registry.STUDIES`. Its facts, numbers with intervals, are what `claims` holds the papers' sentences against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vita_mctp.bench import Panel
from vita_mctp.evaluation.metrics import Comparison, Estimate
from vita_mctp.schema import Schema


@dataclass(frozen=True)
class StudyOptions:
    """What is studied. n: answers. folder: for speech and runs, where a killed study goes on.

    quick: a smaller study of the same kind, to see that it works. runs: the folder of a training run by stages, if any.
    """

    model: str
    n: int
    folder: Path
    seed: int = 0
    quick: bool = False
    runs: Path | None = None
    device: str = "cpu"
    dtype: str | None = None


Table = tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]
"""Heading, head and rows."""


class Fact(Schema):
    """A number with its bootstrap 95 % interval over n samples; all None where nothing could be divided by.

    An exact count has itself as its interval.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, measured: Estimate | Comparison) -> Fact:
        """A difference of two metrics is one of its own."""
        return cls(**asdict(measured.difference if isinstance(measured, Comparison) else measured))

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high, self.n)

    @classmethod
    def exact(cls, value: float, n: int) -> Fact:
        return cls(value=value, low=value, high=value, n=n)


class Findings(Schema):
    """What a study found. about: what was run (model, weights, n, seeds, command); facts: by name.

    tables: for its page.
    """

    study: str
    title: str
    about: dict[str, str | int]
    facts: dict[str, Fact]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Heat:
    """A map of values in [0, 1], rows x columns. marks: one row for each column, the true one, or -1 where none is."""

    title: str
    x: str
    y: str
    rows: Sequence[str]
    values: Any
    marks: Sequence[int] = ()

    def draw(self, axes: Any) -> None:
        axes.set(title=self.title, xlabel=self.x, ylabel=self.y)
        axes.imshow(self.values, aspect="auto", cmap="magma_r", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_yticks(range(len(self.rows)), list(self.rows))
        for column, row in enumerate(self.marks):
            if row >= 0:
                axes.add_patch(_outline(column, row))


def _outline(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#2da44e", linewidth=1.4)


@dataclass(frozen=True)
class Result:
    """Findings and the pictures that go with them, by the end of their file's name."""

    findings: Findings
    pictures: Mapping[str, Sequence[Panel | Heat]] = field(default_factory=dict)
