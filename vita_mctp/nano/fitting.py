"""One training loop for the codec and its vocoder: schedule, log, checkpoints; killed, it goes on from the last one."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from vita_mctp.errors import ConfigError
from vita_mctp.progress import track
from vita_mctp.schema import Schema

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.pt"


class Schedule(Schema):
    """How long and how fast to learn.

    bf16: matrix products in bfloat16, several times faster where the processor has such units, slower elsewhere.
    """

    steps: int = Field(default=4000, gt=0)
    learning_rate: float = Field(default=2e-3, gt=0)
    warmup: int = Field(default=200, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    bf16: bool = True
    log_every: int = Field(default=50, gt=0)
    save_every: int = Field(default=500, gt=0)

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 2 % of the learning rate."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    folder: Path,
    step: int,
    losses: Callable[[int], Mapping[str, Tensor]],
    test: Callable[[int], None] = lambda step: None,
) -> None:
    """Steps from `step` to the schedule's end; `folder` gets checkpoints, and log.jsonl the curves.

    losses: by name, of a step; `total` is what is minimised. test: called before each checkpoint with the steps done.
    """
    started = time.perf_counter()
    for step in track(range(step, schedule.steps), f"training {folder.name}"):  # noqa: B020
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step) * group.get("scale", 1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bf16):
            found = losses(step)
        found["total"].backward()
        trained = (weight for group in optimizer.param_groups for weight in group["params"])
        nn.utils.clip_grad_norm_(trained, schedule.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % schedule.log_every == 0:
            values = {name: round(loss.item(), 4) for name, loss in found.items()}
            write_log(folder, {"step": step, **values, "seconds": round(time.perf_counter() - started, 1)})
        if step % schedule.save_every == 0 or step == schedule.steps:
            test(step)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, folder / "checkpoint.part")
            (folder / "checkpoint.part").replace(folder / CHECKPOINT)


def write_log(folder: Path, row: dict[str, object]) -> None:
    """A line of log.jsonl."""
    line = json.dumps(row)
    log.info(line)
    with (folder / "log.jsonl").open("a") as sink:
        sink.write(line + "\n")


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Loads the checkpoint in `folder`, if there is one; the number of steps done."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CHECKPOINT).is_file():
        return 0
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Of the checkpoint in `folder`. Raises ConfigError where its training has not begun."""
    if not (folder / CHECKPOINT).is_file():
        raise ConfigError(f"no {CHECKPOINT} in {folder}; wanted: what training leaves; train the {folder.name} first")
    weights: dict[str, Tensor] = torch.load(folder / CHECKPOINT, weights_only=True)["model"]
    return weights
