"""Finished runs over the same samples side by side, and whether each differs from the first by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasPath, ConfigDict, Field

from vita_mctp.errors import DataError
from vita_mctp.evaluation.metrics import SOUND, Comparison, Estimate, ResultRow, compare, counted, ratio
from vita_mctp.evaluation.pool import read_lines
from vita_mctp.evaluation.run import ROWS, SUMMARY, RunResult
from vita_mctp.schema import Schema

_NOTE = """\
Metrics have bootstrap 95 % intervals over samples (1,000 draws). Those of text and speech are percent: error rates are
better when lower, rates of right answers when higher. Those of sound are on the rule's own scale. Failed samples are
in every metric, with 0 where a sound could not be scored. Differences are to the first run, on the same samples: the
interval draws samples for both runs together (Bisani and Ney 2004), p is two-sided approximate randomisation with
10,000 shuffles (Noreen 1989)."""


class _Summary(Schema):
    """Of summary.json, what this page needs; there is more in it."""

    model_config = ConfigDict(extra="ignore")

    task: str
    benchmark: str = Field(validation_alias=AliasPath("benchmark", "name"))
    samples: int | None = Field(validation_alias=AliasPath("benchmark", "samples"))
    model: str = Field(validation_alias=AliasPath("config", "system", "model"))
    seed: int = Field(validation_alias=AliasPath("config", "system", "seed"))
    weights: str
    mode: str | None
    judges: tuple[str, ...]
    rules: dict[str, str]
    whole_set: bool
    n_failed: int
    date: str = Field(validation_alias=AliasPath("environment", "date"))
    commit: str = Field(validation_alias=AliasPath("environment", "commit"))
    processor: str = Field(validation_alias=AliasPath("environment", "processor"))
    accelerators: tuple[str, ...] = Field(validation_alias=AliasPath("environment", "accelerators"))


@dataclass(frozen=True)
class FinishedRun:
    """A run's summary, and its rows by id."""

    name: str
    summary: _Summary
    rows: dict[str, ResultRow]

    @property
    def about(self) -> tuple[str, str]:
        """The model and its mode of decoding."""
        return self.summary.model, self.summary.mode or "-"


@dataclass(frozen=True)
class Side:
    """One run's metric under one rule; against is None for the first run."""

    run: FinishedRun
    rule: str
    on: str
    estimate: Estimate
    against: Comparison | None


def read_run(folder: Path) -> FinishedRun:
    """Raises DataError for a folder without a finished run."""
    rows = read_lines(folder / ROWS, ResultRow)
    summary = _Summary.read_json(folder / SUMMARY, DataError)
    return FinishedRun(folder.name, summary, {row.id: row for row in rows})


def compare_runs(runs: Sequence[FinishedRun]) -> list[Side]:
    """Every rule that all runs were scored by, each run's metric in turn.

    Raises DataError for runs over other samples, or heard by other judges or scored by other rules.
    """
    first = runs[0]
    for run in runs[1:]:
        _check_alike(first, run)
    ids = list(first.rows)
    scored = [counted([run.rows[each] for each in ids]) for run in runs]
    sides = []
    for (rule, on), base in scored[0].items():
        for run, found in zip(runs, scored, strict=True):
            against = None if run is first else compare(base, found[rule, on])
            sides.append(Side(run, rule, on, ratio(*found[rule, on]), against))
    return sides


def side_by_side(runs: Sequence[FinishedRun], sides: Sequence[Side]) -> str:
    """A Markdown page."""
    title = f"# {runs[0].summary.benchmark}: {len(runs)} runs over the same {len(runs[0].rows)} samples"
    part = "" if runs[0].summary.whole_set else f"\n\n{_partial(runs[0])}"
    head = ("run", "model", "mode", "n (failed)", "rule", "of", "metric", "difference", "p")
    return "\n\n".join([title + part, table(head, [_cells(side) for side in sides]), _NOTE, _made(runs)]) + "\n"


def shown(on: str, estimate: Estimate) -> str:
    """A metric in percent, or, of sound, as its rule has it."""
    return interval(estimate, 1, 3) if on == SOUND else percent(estimate)


def percent(estimate: Estimate) -> str:
    return interval(estimate, 100, 1)


def interval(estimate: Estimate, scale: float, digits: int) -> str:
    """The metric and its interval, scaled; "-" where there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    value, low, high = (f"{scale * each:.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def outcome(result: RunResult, folder: Path) -> str:
    """What a command says of a finished run: its metrics, one a line, and its folder."""
    lines = [
        f"{each.rule}, of {each.on}: {shown(each.on, each.estimate)}{'' if each.on == SOUND else ' %'}"
        for each in result.metrics
    ]
    lines.append(f"{result.summary['n_total']} samples, {result.summary['n_failed']} failed")
    return "\n".join([*lines, str(folder)]) + "\n"


def _check_alike(first: FinishedRun, run: FinishedRun) -> None:
    if lone := sorted(first.rows.keys() ^ run.rows.keys()):
        raise DataError(
            f"{first.name} and {run.name} differ in {len(lone)} samples, such as {lone[0]!r}; compare runs over the "
            "same samples"
        )
    for what in ("task", "judges", "rules"):
        one, other = getattr(first.summary, what), getattr(run.summary, what)
        if one != other:
            raise DataError(
                f"{first.name} and {run.name} differ in their {what}: {one} and {other}; "
                "their metrics cannot be compared"
            )


def _cells(side: Side) -> list[str]:
    failed = f"{len(side.run.rows)} ({side.run.summary.n_failed})"
    found = ["", ""]
    if side.against is not None:
        p = side.against.p_value
        found = [shown(side.on, side.against.difference), "-" if p is None else f"{p:.4f}"]
    return [side.run.name, *side.run.about, failed, side.rule, side.on, shown(side.on, side.estimate), *found]


def _partial(run: FinishedRun) -> str:
    whole = run.summary.samples
    size = "varies by release" if whole is None else f"has {whole} samples"
    return f"The whole set {size}: these metrics are not comparable with published ones."


def _made(runs: Sequence[FinishedRun]) -> str:
    lines = [f"- judge: {', '.join(runs[0].summary.judges) or 'none'}"]
    lines += [f"- rule {name}: {version}" for name, version in runs[0].summary.rules.items()]
    for run in runs:
        made = run.summary
        lines.append(
            f"- {run.name}: weights {made.weights}, seed {made.seed}, commit {made.commit}, "
            f"{', '.join(made.accelerators) or made.processor}, {made.date}"
        )
    return "\n".join(lines)
