"""What the papers claim, made again at small scale on a model at hand.

A study is one file with its loader, its loop and its table: a function `run(StudyOptions) -> Result`, whose answers are
counted in `SIZES`. Its facts, numbers with intervals, are what `claims` holds the papers' sentences against. Its page,
its JSON and its pictures are all made anew from what it found.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from vita_mctp.bench import Panel
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.environment import look_around, require, weights_hash
from vita_mctp.errors import CheckpointError
from vita_mctp.evaluation.metrics import Estimate
from vita_mctp.evaluation.report import table
from vita_mctp.files import write_output
from vita_mctp.schema import Schema

SIZES = {"attention": (100, 6), "masking": (80, 4), "blocks": (100, 6), "inputs": (100, 4), "stages": (100, 6)}
"""Of the studies of `study all`: answers, in full and to see that it works. One more is a file and a line here."""

Facts = dict[str, Estimate]
"""Numbers by name, with bootstrap 95 % intervals; an exact count is its own interval."""
Table = tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]
"""Heading, head and rows."""


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


class Findings(Schema):
    """What a study's JSON keeps. about: what was run (model, weights, n, seeds, command). tables: for its page."""

    study: str
    title: str
    about: dict[str, str | int]
    facts: Facts
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


@dataclass
class Result:
    """What a study found. pictures: by the end of their file's name. about: what it adds to what was run."""

    title: str
    notes: tuple[str, ...] = ()
    facts: Facts = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, Sequence[Panel | Heat]] = field(default_factory=dict)
    about: dict[str, str | int] = field(default_factory=dict)


def about(options: StudyOptions, name: str, **more: str | int) -> dict[str, str | int]:
    """What was run, on what."""
    words = ["vita-mctp", "study", name, "--model", options.model, "--n", str(options.n), "--seed", str(options.seed)]
    words += [] if options.runs is None else ["--runs", str(options.runs)]
    machine = look_around()
    return {
        "command": shlex.join(words),
        "model": options.model,
        "weights": weights_hash(find_model(options.model)),
        "n": options.n,
        "seed": options.seed,
        "runs": "" if options.runs is None else str(options.runs),
        **more,
        "date": machine.date,
        "commit": machine.commit,
        "versions": ", ".join(f"{package} {number}" for package, number in machine.versions.items()),
    }


def make(name: str, options: StudyOptions, page: Path) -> None:
    """Runs a study of `SIZES` and writes what it found. Raises as it, and as `write`."""
    require("a study", "bench", "matplotlib")  # before minutes of work, not after them
    write(import_module(f"{__name__}.{name}").run(options), name, options, page)


def write(result: Result, name: str, options: StudyOptions, page: Path) -> None:
    """The page; beside it its JSON and its pictures. Raises OutputError, MissingExtraError without the extra bench."""
    from vita_mctp.bench.render import draw_panels

    pictures = {end: page.with_name(f"{page.stem}{end}.svg") for end in result.pictures}
    for end, panels in result.pictures.items():
        draw_panels(result.title, panels, pictures[end])
    findings = Findings(
        study=name,
        title=result.title,
        about=about(options, name, **result.about),
        facts=result.facts,
        tables=tuple(result.tables),
        notes=result.notes,
    )
    write_output(page, markdown(findings, [path.name for path in pictures.values()]).encode())
    values = json.dumps(findings.to_json_values(), indent=1, ensure_ascii=False)
    write_output(page.with_suffix(".json"), (values + "\n").encode())


def markdown(findings: Findings, pictures: list[str]) -> str:
    parts = [f"# {findings.title}", f"    {findings.about['command']}"]
    parts += [f"![{findings.title}]({name})" for name in pictures]
    for heading, head, rows in findings.tables:
        parts += [f"## {heading}", table(head, rows)]
    parts.append("\n".join(f"- {note}" for note in findings.notes))
    parts.append(
        "Measured:\n\n" + "\n".join(f"- {name}: {fact}" for name, fact in findings.about.items() if fact != "")
    )
    return "\n\n".join(parts) + "\n"


def read(page: Path) -> Findings | None:
    """What was found before; None where there is nothing that can be read."""
    try:
        return Findings.read_json(page.with_suffix(".json"), CheckpointError)
    except CheckpointError:
        return None
