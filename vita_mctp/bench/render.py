"""A result as a page for reading, as JSON for programs, and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vita_mctp.bench import Cell, Line, Panel, Result, Study
from vita_mctp.environment import Environment, load_in_words, require
from vita_mctp.errors import ConfigError
from vita_mctp.files import check_output, write_output

PICTURES = (".svg", ".png")
_PANEL_INCHES = (7.0, 4.2)
_INK, _INKS = "#1f2328", ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_SCHEMES = (
    b"<style>@media(prefers-color-scheme:dark){"
    b'[style*="fill: #ffffff"]{fill:#0d1117!important}[style*="fill: #1f2328"]{fill:#e6edf3!important}'
    b'[style*="stroke: #1f2328"]{stroke:#e6edf3!important}}</style>'
)
"""In the dark, paper and ink change."""
_RANDOM = "**Weights are random**: times are those of the shape, sounds and words mean nothing."


def to_markdown(result: Result) -> str:
    """Title, command, table, notes and where it was measured."""
    study = result.study
    notes = "\n".join(f"- {note}" for note in study.notes)
    warning = [_RANDOM] if result.is_random else []
    parts = [f"## {study.title}: {result.subject}", f"    {result.command}", *warning, _table(study), notes]
    return "\n\n".join([*parts, "Measured:\n\n" + _measured(result)]) + "\n"


def to_json(result: Result) -> str:
    return json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n"


def check_targets(json_file: Path | None, plot: Path | None) -> None:
    """Before hours of work, not after them. Raises OutputError for a target that cannot be written to."""
    for target in filter(None, (json_file, plot)):
        check_output(target)
    if plot is not None and plot.suffix not in PICTURES:
        raise ConfigError(f"a plot is written as {' or '.join(PICTURES)}, got {plot}; name such a file")
    if plot is not None:
        _matplotlib_drawing()


def draw(result: Result, target: Path) -> None:
    """The panels below each other, in an SVG or PNG whose bytes depend on the result alone."""
    weights = ", random weights" if result.is_random else ""
    device = _device(result.environment, result.machine.device)
    draw_panels(f"{result.study.title}{weights}\n{device}", result.study.panels, target)


def draw_panels(title: str, panels: Sequence[Any], target: Path) -> None:
    """As `draw`, of panels alone. What is no `Panel` draws itself. An SVG is light or dark, as its reader likes it."""
    from io import BytesIO

    new_drawing = _matplotlib_drawing()
    width, height = _PANEL_INCHES
    drawing = new_drawing(figsize=(width, height * len(panels)), layout="constrained")
    drawing.suptitle(title, fontsize=9)
    first = None
    for number, panel in enumerate(panels, start=1):
        shared = first if panel.x == panels[0].x else None
        axes = drawing.add_subplot(len(panels), 1, number, sharex=shared)
        first = first or axes
        if isinstance(panel, Panel):
            _draw_panel(axes, panel)
        else:
            panel.draw(axes)
    picture = BytesIO()
    kind = target.suffix.removeprefix(".")
    drawing.savefig(picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_output(target, picture.getvalue().replace(b"<defs>", _SCHEMES + b"<defs>", 1))


def _matplotlib_drawing() -> Any:
    """matplotlib's Figure alone: its pyplot keeps state and looks for a screen."""
    require("--plot", "bench", "matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": "vita-mctp", "svg.fonttype": "none"}
    matplotlib.rcParams |= dict.fromkeys(_INKS, _INK)
    return Figure


def _draw_panel(axes: Any, panel: Panel) -> None:
    axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    if panel.log:
        axes.set_yscale("log")
    bars = [line for line in panel.lines if line.style == "bars"]
    for number, line in enumerate(bars):
        _draw_bars(axes, line, number, len(bars))
    colours: dict[str, Any] = {}
    for line in panel.lines:
        if line.style != "bars" and line.ys:
            _draw_line(axes, line, colours)
    axes.grid(alpha=0.3)
    if len(panel.lines) > 1:
        axes.legend(fontsize=7)


def _draw_bars(axes: Any, line: Line, number: int, groups: int) -> None:
    width = 0.8 / groups
    at = [x + (number - (groups - 1) / 2) * width for x in range(len(line.xs))]
    axes.bar(at, [y or 0.0 for y in line.ys], width, label=line.label)
    if line.spread:
        axes.vlines(at, *zip(*line.spread, strict=True), colors=_INK, linewidth=1)
    axes.set_xticks(range(len(line.xs)), [str(x) for x in line.xs], fontsize=8)


def _draw_line(axes: Any, line: Line, colours: dict[str, Any]) -> None:
    """A limit is dashed in the colour of the line that it belongs to, the one named before its colon."""
    style = {"line": "-", "points": "none", "limit": "--"}[line.style]
    colour = colours.get(line.label.partition(":")[0]) if line.style == "limit" else None
    marker = "" if line.style == "limit" or (len(line.xs) > 40 and line.style == "line") else "."
    ys = [float("nan") if y is None else y for y in line.ys]
    [drawn] = axes.plot(line.xs, ys, linestyle=style, marker=marker, label=line.label, color=colour)
    colours[line.label] = drawn.get_color()


def _table(study: Study) -> str:
    titles = [", ".join(filter(None, (name, study.units.get(name)))) for name in study.columns]
    lines = [titles, ["---"] * len(titles), *([_cell(value) for value in row.values()] for row in study.rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: Cell) -> str:
    """Three significant digits of a fraction; JSON keeps all."""
    if value is None:
        return "-"
    if isinstance(value, float):
        magnitude = math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{min(3, max(0, 2 - magnitude))}f}"
    return value if isinstance(value, str) else f"{value:,}"


def _measured(result: Result) -> str:
    environment, machine = result.environment, result.machine
    before, after = load_in_words(environment.load), load_in_words(result.load_after)
    facts = {
        "date": environment.date,
        "commit": environment.commit,
        "device": _device(environment, machine.device),
        "clock": f"{environment.clock_mhz:.0f} MHz at the start" if environment.clock_mhz else "not told by the system",
        "load average": f"{before} at the start, {after} at the end (this run included)",
        "memory": f"a copy moves {machine.bytes_per_second / 1e9:.1f} GB/s (read and written)",
        "arithmetic": f"a square product in {machine.dtype} makes {machine.flops_per_second / 1e9:,.0f} GFLOP/s",
        "versions": ", ".join(f"{name} {number}" for name, number in environment.versions.items()),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _device(environment: Environment, device: str) -> str:
    if device.startswith("cuda"):
        return f"{device} of {', '.join(environment.accelerators)}"
    return f"{environment.processor}, {environment.cores} cores, {environment.threads} threads used"
