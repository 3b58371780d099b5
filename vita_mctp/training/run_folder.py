"""The folder of one training run: a log, the newest resumable checkpoint, and the finished model. Nothing is pickled.

`NAME/step-00001000/` is the newest checkpoint, `NAME/final/` the finished model, `NAME/log.txt` the loss curve. Every
checkpoint is written beside its place and renamed into it, so that a killed run leaves a whole one behind.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_mctp.errors import CheckpointError, OutputError

TRAINING_FILE = "training.json"
_STATE_TENSORS, _STATE_VALUES = "trainer_state.safetensors", "trainer_state.json"


class SavesModel(Protocol):
    """Writes a folder that the model loader can read."""

    def __call__(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class TrainerState:
    """Everything besides the weights that the next step depends on."""

    step: int
    tokens: int
    data: dict[str, Any]
    """Position in the data, as plain JSON values."""
    tensors: dict[str, Tensor]
    """Optimizer states and the random generator's."""


class RunFolder:
    """Reads and writes one run's checkpoints."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def final(self) -> Path:
        return self.root / "final"

    def newest(self) -> Path | None:
        """The newest whole checkpoint that training can resume from."""
        return max(self.root.glob("step-????????"), default=None)

    def clear(self) -> None:
        """Forget an earlier run of this name."""
        shutil.rmtree(self.root, ignore_errors=True)

    def save(self, save_model: SavesModel, state: TrainerState, record: dict[str, Any]) -> Path:
        """Write a resumable checkpoint, then delete older ones."""
        folder = self.root / f"step-{state.step:08d}"
        with _Replacing(folder) as partial:
            save_model(partial)
            _write_json(partial / TRAINING_FILE, record)
            save_file({key: value.contiguous() for key, value in state.tensors.items()}, partial / _STATE_TENSORS)
            _write_json(partial / _STATE_VALUES, {"step": state.step, "tokens": state.tokens, "data": state.data})
        for old in self.root.glob("step-????????"):
            if old != folder:
                shutil.rmtree(old)
        return folder

    def save_final(self, save_model: SavesModel, record: dict[str, Any]) -> Path:
        """Write the finished model, without what only a resumed run needs."""
        with _Replacing(self.final) as partial:
            save_model(partial)
            _write_json(partial / TRAINING_FILE, record)
        return self.final

    @staticmethod
    def load_state(folder: Path) -> TrainerState:
        values = json.loads((folder / _STATE_VALUES).read_text())
        return TrainerState(values["step"], values["tokens"], values["data"], load_file(folder / _STATE_TENSORS))

    def log(self, line: str) -> None:
        """One line to the log file and to stderr."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "log.txt").open("a") as file:
            file.write(line + "\n")
        sys.stderr.write(line + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about its training. Raises CheckpointError when it says nothing."""
    path = folder / TRAINING_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TRAINING_FILE}; wanted a checkpoint that training has finished")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


class _Replacing:
    """A folder that appears under its name only when the block ends well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")

    def __enter__(self) -> Path:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        return self._partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise OutputError(f"cannot write {self._folder}: {error.strerror}; mend that and resume") from error
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.replace(self._folder)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
