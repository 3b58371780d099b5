"""Learning-rate multipliers over a run."""

from __future__ import annotations

import math

from vita_mctp.training.recipe import ScheduleRecipe


def lr_factor(step: int, max_steps: int, schedule: ScheduleRecipe) -> float:
    """What every group's rate is multiplied with at `step` (0-based) of `max_steps`; in (0, 1] until the end."""
    warmup = max(1, math.ceil(schedule.warmup_ratio * max_steps))
    if step < warmup:
        return (step + 1) / warmup
    shape = _cosine(step, warmup, max_steps) if schedule.kind == "cosine" else _plateau(step, max_steps, schedule)
    return schedule.final_lr_fraction + (1 - schedule.final_lr_fraction) * shape


def _cosine(step: int, warmup: int, max_steps: int) -> float:
    progress = (step - warmup) / max(1, max_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _plateau(step: int, max_steps: int, schedule: ScheduleRecipe) -> float:
    decay = max(1, round((schedule.decay_fraction or 0.0) * max_steps))
    return min(1.0, max(0.0, (max_steps - step) / decay))
