"""A recipe in transformers' terms, what happens beside its steps, and where the processes of a run find each other."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.schema import read_json
from vita_mctp.training.recipe import Recipe

Evaluate = Callable[[Any, int], str]
"""(model, step) -> one line for the log."""

Log = Callable[[str], None]


def world_size() -> int:
    """Processes of this run, as torchrun, accelerate and deepspeed announce them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def accumulation_steps(recipe: Recipe, processes: int) -> int:
    """Forward passes of each process in one step. Raises ConfigError unless the step's tokens divide evenly."""
    tokens_at_once = recipe.data.row_length * recipe.data.rows_per_forward * processes
    if recipe.data.tokens_per_step % tokens_at_once:
        raise ConfigError(
            f"data.tokens_per_step {recipe.data.tokens_per_step} is no multiple of row_length * rows_per_forward * "
            f"{processes} processes = {tokens_at_once}; change one of them with --set"
        )
    return recipe.data.tokens_per_step // tokens_at_once


def training_arguments(recipe: Recipe, folder: Path, recipe_folder: Path) -> TrainingArguments:
    """The arguments of transformers' Trainer; joins the other processes.

    Args:
        folder: of the run.
        recipe_folder: what the recipe's paths are relative to.

    Raises:
        ConfigError: the tokens of a step do not divide, or the DeepSpeed file is missing or malformed.
        MissingExtraError: the packages of the extra `train`, or a tracker's, are not installed.
    """
    if find_spec("accelerate") is None or (recipe.deepspeed is not None and find_spec("deepspeed") is None):
        raise MissingExtraError('training needs accelerate, and deepspeed where named: pip install "vita-mctp[train]"')
    for tracker in recipe.report_to:
        if find_spec(tracker) is None:
            raise MissingExtraError(f"report_to names {tracker}, which is not installed: pip install {tracker}")
    accumulation = accumulation_steps(recipe, world_size())
    deepspeed = None
    if recipe.deepspeed is not None:
        deepspeed = read_deepspeed(recipe_folder / recipe.deepspeed)
        _announce_single_process()
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.num_steps,
        per_device_train_batch_size=recipe.data.rows_per_forward,
        gradient_accumulation_steps=accumulation,
        learning_rate=recipe.optimizer.lr,
        max_grad_norm=recipe.optimizer.grad_clip,
        bf16=recipe.precision == "bf16",
        use_cpu=not cuda,
        ddp_backend=None if world_size() == 1 else "nccl" if cuda else "gloo",
        ddp_find_unused_parameters=False,
        deepspeed=deepspeed,
        logging_strategy="steps" if recipe.log_interval else "no",
        logging_steps=max(1, recipe.log_interval),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.checkpoint_interval or recipe.num_steps,
        ignore_data_skip=True,  # the rows come from a saved position, not from replaying what was trained on
        seed=recipe.seed,
        report_to=list(recipe.report_to),
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
    )


def read_deepspeed(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration. Raises ConfigError unless it is a JSON object with a ZeRO stage."""
    values: dict[str, Any] = read_json(path, ConfigError)
    if not isinstance(values, dict) or zero_stage(values) not in (1, 2, 3):
        raise ConfigError(f"{path}: got {str(values)[:80]}; wanted an object with zero_optimization.stage 1, 2 or 3")
    return values


def zero_stage(deepspeed: dict[str, Any] | None) -> int:
    """0 without DeepSpeed."""
    section = (deepspeed or {}).get("zero_optimization")
    return section.get("stage", 0) if isinstance(section, dict) else 0


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """For libraries that print, and the compilers that they start; standard output is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _announce_single_process() -> None:
    """DeepSpeed asks MPI for these where no launcher has set them."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


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
    """Set by SIGTERM or Ctrl-C while the block runs; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False

    def __enter__(self) -> StopFlag:
        self._before = {number: signal.signal(number, self._set) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        os.write(2, b"stopping: this step is finished and saved first; Ctrl-C once more stops at once\n")
