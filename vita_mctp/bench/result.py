"""What a benchmark found, as data: a table, lines to draw, and where it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vita_mctp.bench.machine import Machine
from vita_mctp.environment import Environment

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """digits: behind the point, in tables; JSON keeps all."""

    name: str
    unit: str = ""
    digits: int = 2

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name


@dataclass(frozen=True)
class Line:
    """One curve, cloud of points or group of bars. ys may hold None where nothing was measured."""

    label: str
    xs: tuple[Cell, ...]
    ys: tuple[float | None, ...]
    style: Literal["line", "points", "bars", "limit"] = "line"


@dataclass(frozen=True)
class Panel:
    """One pair of axes. log: of the y axis."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log: bool = False


@dataclass(frozen=True)
class Study:
    """Figures alone, before it is known on what they were measured."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: a row of {len(row)} cells under {len(self.columns)} columns")

    def column(self, name: str) -> list[Cell]:
        place = [column.name for column in self.columns].index(name)
        return [row[place] for row in self.rows]


@dataclass(frozen=True)
class Result:
    """A study with everything that a reader needs to judge it. load_after: the machine's load average at the end."""

    study: Study
    command: str
    subject: str
    is_random: bool
    machine: Machine
    environment: Environment
    load_after: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON: rows by column name, everything else by its own."""
        study = self.study
        names = [column.name for column in study.columns]
        return {
            "benchmark": study.name,
            "command": self.command,
            "subject": self.subject,
            "random_weights": self.is_random,
            "units": {column.name: column.unit for column in study.columns},
            "rows": [dict(zip(names, row, strict=True)) for row in study.rows],
            "panels": [asdict(panel) for panel in study.panels],
            "notes": list(study.notes),
            "machine": asdict(self.machine),
            "environment": asdict(self.environment),
            "load_after": self.load_after,
        }


def series(label: str, xs: Sequence[Cell], ys: Sequence[float | None], style: Any = "line") -> Line:
    return Line(label, tuple(xs), tuple(ys), style)
