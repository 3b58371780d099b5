"""What happens beside the steps of a run: the text log, the progress bar, quick evaluations, stopping on SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Evaluate = Callable[[Any, int], str]
"""(model, step) -> one line for the log."""

Log = Callable[[str], None]


class Bar(ProgressCallback):
    """The progress bar alone; the metrics go to the log."""

    def on_log(self, *_: Any, **__: Any) -> None:
        return None


def tensorboard(folder: Path, step: int) -> list[TrainerCallback]:
    """Writes every metric of the log for tensorboard, from `step` on; nothing where tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(folder), purge_step=step + 1))]


class EvaluateSometimes(TrainerCallback):
    """Calls `evaluate` in the leading process every `interval` steps (0: never) and at the end."""

    def __init__(self, evaluate: Evaluate, interval: int, log: Log) -> None:
        self._evaluate, self._interval, self._log = evaluate, interval, log

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        due = self._interval > 0 and state.global_step % self._interval == 0
        if (due or last) and state.is_world_process_zero:
            self._run(kwargs["model"], state.global_step)

    def _run(self, model: nn.Module, step: int) -> None:
        model.eval()
        with torch.random.fork_rng():  # what is sampled here leaves the training as it was
            line = self._evaluate(model, step)
        model.train()
        self._log(f"step {step} eval {line}")


class StopWhen(TrainerCallback):
    """Ends the run, saving, after the step in which `stopped` turns true."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._stopped():
            control.should_save = control.should_training_stop = True


class StopFlag:
    """Set by a SIGTERM while the block runs."""

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> StopFlag:
        self._before = signal.signal(signal.SIGTERM, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True
