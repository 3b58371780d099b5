"""The folder of one training run: a log, the newest resumable checkpoint, and the finished model.

`NAME/step-00001000/` is the newest checkpoint, `NAME/final/` the finished model, `NAME/log.txt` the loss curve,
`NAME/curves.png` its picture, of the language model and of each block. Every checkpoint is written under another name
and then renamed, so that a killed run leaves a whole one behind.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field
from safetensors import SafetensorError

from vita_mctp.errors import CheckpointError, OutputError
from vita_mctp.files import cannot_write, write_output
from vita_mctp.schema import Schema

TRAINING_FILE = "training.json"
DATA_FILE = "data_position.json"

_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class TrainingRecord(Schema):
    """What a checkpoint says about its training. recipe: its JSON values."""

    name: str
    stage: int = Field(ge=1, le=4)
    parent: str | None
    recipe: dict[str, Any]
    versions: dict[str, str]
    step: _Count = 0
    tokens: _Count = 0


class RunFolder:
    """One run's checkpoints and log."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def final(self) -> Path:
        return self.root / "final"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Makes it; it is gone again where nothing came to be in it. Raises OutputError, before any work is spent."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error) from None
        try:
            yield
        finally:
            with suppress(OSError):  # it holds something
                self.root.rmdir()

    def step(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def newest(self) -> Path | None:
        """The newest whole checkpoint that training can resume from."""
        return max(self.root.glob("step-????????"), default=None)

    def clear(self) -> None:
        """Forget an earlier run of this name."""
        shutil.rmtree(self.root, ignore_errors=True)

    def keep_only(self, folder: Path) -> None:
        """Delete the other checkpoints that training could resume from."""
        for old in self.root.glob("step-????????"):
            if old != folder:
                shutil.rmtree(old)

    def cut_log(self, step: int) -> None:
        """Forget the lines of steps after `step`, which a resumed run makes again."""
        path = self.root / "log.txt"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(line for line in lines if _step_of(line) <= step), encoding="utf-8")

    def draw(self) -> None:
        """The log's loss curves as a picture, as far as they go."""
        draw_curves(self.root / "log.txt", self.root / CURVES_FILE)

    def log(self, line: str) -> None:
        """One line to the log file and to stderr."""
        with (self.root / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        sys.stderr.write(line + "\n")


def read_record(folder: Path) -> TrainingRecord:
    """Raises CheckpointError when the checkpoint says nothing of its training."""
    path = folder / TRAINING_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TRAINING_FILE}; wanted a checkpoint that training has finished")
    return TrainingRecord.read_json(path)


class Processes(Protocol):
    """The part of accelerate's Accelerator that writing together takes."""

    @property
    def is_main_process(self) -> bool: ...

    def wait_for_everyone(self) -> None: ...


@contextmanager
def replacing(folder: Path, processes: Processes, within: str = "") -> Iterator[Path]:
    """A folder to write into, all processes together, that appears under its name only when the block ends well.

    Args:
        within: the part of it that becomes `folder`; the rest is dropped.

    Raises:
        OutputError: the disk is full or not writable; what was there before stays.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if processes.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    processes.wait_for_everyone()
    try:
        yield partial
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(f"cannot write {folder}: {error}; mend that and resume") from error
    processes.wait_for_everyone()
    if processes.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        (partial / within).replace(folder)
        shutil.rmtree(partial, ignore_errors=True)
    processes.wait_for_everyone()


def _step_of(line: str) -> int:
    word, _, rest = line.partition(" ")
    number = rest.partition(" ")[0]
    return int(number) if word == "step" and number.isdecimal() else 0


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


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
    curves = read_curves(log.read_text(encoding="utf-8")) if log.is_file() else {}
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
