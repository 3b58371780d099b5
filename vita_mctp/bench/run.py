"""Running a study with all that is noted around it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from vita_mctp.bench.machine import Machine, measure_machine
from vita_mctp.bench.result import Result, Study
from vita_mctp.environment import look_around


def run_study(
    study: Callable[[Machine], Study],
    *,
    subject: str,
    is_random: bool,
    command: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Result:
    """Looks around, measures the machine, then runs; in this order, so that the load noted first is not its own."""
    around = look_around()
    machine = measure_machine(device, dtype)
    found = study(machine)
    return Result(found, command, subject, is_random, machine, around, os.getloadavg()[0])
