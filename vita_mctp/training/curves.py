"""The loss curves of a run as a picture, read from its log: of the language model and of each block."""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from pathlib import Path

from vita_mctp.files import write_output

CURVES_FILE = "curves.png"

_LINE = re.compile(r"^step (\d+) tokens \d+ loss \S+ lm (\S+)(?: acc \S+)?(?: mctp ((?:[\d.]+ )+))?", re.MULTILINE)


def read_curves(log: str) -> dict[str, list[tuple[int, float]]]:
    """(step, nats a target) by level, from the text of a run's log."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, lm, blocks in _LINE.findall(log):
        levels = {"language model": lm} | {f"block {k}": loss for k, loss in enumerate(blocks.split())}
        for name, loss in levels.items():
            curves.setdefault(name, []).append((int(step), float(loss)))
    return curves


def draw_curves(log: Path, target: Path) -> None:
    """Nothing where matplotlib (extra bench) is not installed or the log has no curve. Raises OutputError."""
    curves = read_curves(log.read_text()) if log.is_file() else {}
    if find_spec("matplotlib") is None or not curves:
        return
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4), layout="constrained")
    axes = drawing.subplots()
    blocks = len(curves) - 1
    for k, (name, points) in enumerate(curves.items()):
        shown = k in (0, 1, blocks)  # between the first and the last block a colour says which
        colour = "black" if k == 0 else colormaps["viridis"](0.9 * (k - 1) / max(1, blocks - 1))
        axes.plot(
            *zip(*points, strict=True), color=colour, label=name if shown else None, linewidth=1.5 if k == 0 else 1
        )
    axes.set(xlabel="step", ylabel="loss (nats a target)", title=log.parent.name)
    axes.legend()
    picture = io.BytesIO()
    drawing.savefig(picture, format="png", dpi=120)
    write_output(target, picture.getvalue())
