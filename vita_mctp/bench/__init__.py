"""Speed studies. Each is a function that measures and returns a `Study`; `render` makes a page, JSON and a plot of any.

Models are loaded as a user would, or drawn at random in a known shape (`models`); nothing is ever written to them.
Beside each measurement stands what the machine's memory or arithmetic, measured in the same run, would allow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from vita_mctp.environment import Environment, load_average, look_around

Cell = str | int | float | None
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Line:
    """One curve, cloud of points or group of bars. ys may hold None where nothing was measured.

    spread: the ends of each bar's interval.
    """

    label: str
    xs: Sequence[Cell]
    ys: Sequence[Cell]
    style: Literal["line", "points", "bars", "limit"] = "line"
    spread: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes. log: of the y axis."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log: bool = False


@dataclass(frozen=True)
class Study:
    """What was measured, as rows of the same columns. units: of those that have one."""

    name: str
    title: str
    rows: Sequence[Row]
    units: Mapping[str, str]
    panels: Sequence[Panel]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if list(row) != self.columns:
                raise ValueError(f"{self.name}: a row has {', '.join(row)}; wanted: {', '.join(self.columns)}")

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0])

    def column(self, name: str) -> list[Cell]:
        return [row[name] for row in self.rows]


@dataclass(frozen=True)
class Machine:
    """What a device can do at most. bytes_per_second counts reading and writing alike: a copy of n bytes moves 2 n."""

    device: str
    dtype: str
    bytes_per_second: float
    flops_per_second: float

    def seconds(self, moved_bytes: float, flops: float = 0.0) -> float:
        """The least time for a job that moves so many bytes and computes so much; it may do both at once."""
        return max(moved_bytes / self.bytes_per_second, flops / self.flops_per_second)


@dataclass(frozen=True)
class Result:
    """A study with everything that a reader needs to judge it. load_after: the machine's load average at the end."""

    study: Study
    command: str
    subject: str
    is_random: bool
    machine: Machine
    environment: Environment
    load_after: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        study = self.study
        return {
            "benchmark": study.name,
            "command": self.command,
            "subject": self.subject,
            "random_weights": self.is_random,
            "units": {name: study.units.get(name, "") for name in study.columns},
            "rows": [dict(row) for row in study.rows],
            "panels": [asdict(panel) for panel in study.panels],
            "notes": list(study.notes),
            "machine": asdict(self.machine),
            "environment": asdict(self.environment),
            "load_after": self.load_after,
        }


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
    environment = look_around()
    machine = measure_machine(device, dtype)
    found = study(machine)
    return Result(found, command, subject, is_random, machine, environment, load_average())


def now(device: torch.device) -> float:
    """`time.perf_counter`, in seconds, once the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def spent(device: torch.device) -> float:
    """Processor seconds of one thread on a CPU, which other work on the machine hardly changes; otherwise `now`."""
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else now(device)


_COPY_BYTES = 256 * 2**20
_SIDE = {"cpu": 1536, "cuda": 8192}
"""Of the square matrices, by kind of device."""
_RUNS = 7


def measure_machine(device: torch.device, dtype: torch.dtype, copy_bytes: int = _COPY_BYTES) -> Machine:
    """Bytes a second by a copy, multiplications by a square product; under a second on an idle machine."""
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), device)
    side = _SIDE.get(device.type, _SIDE["cpu"])
    left = torch.ones(side, side, dtype=dtype, device=device)
    multiplied = _fastest(lambda: left @ left, device)
    kind = str(dtype).removeprefix("torch.")
    return Machine(str(device), kind, 2 * copy_bytes / copied, 2 * side**3 / multiplied)


def _fastest(job: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs behind one that is not counted: other work can only slow one."""
    times = []
    for _ in range(_RUNS + 1):
        start = spent(device)
        job()
        times.append(spent(device) - start)
    return min(times[1:])
