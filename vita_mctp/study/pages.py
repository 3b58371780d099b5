"""A study's page, its JSON and its pictures; all three are made anew from the findings alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from vita_mctp.checkpoints.opening import find_model
from vita_mctp.environment import look_around, weights_hash
from vita_mctp.errors import CheckpointError
from vita_mctp.evaluation.report import table
from vita_mctp.files import write_output
from vita_mctp.study import Findings, Result, StudyOptions


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


def write(result: Result, page: Path) -> None:
    """The page; beside it its JSON and its pictures. Raises OutputError, MissingExtraError without the extra bench."""
    from vita_mctp.bench.render import draw_panels

    findings = result.findings
    pictures = {name: page.with_name(f"{page.stem}{name}.svg") for name in result.pictures}
    for name, panels in result.pictures.items():
        draw_panels(findings.title, panels, pictures[name])
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
