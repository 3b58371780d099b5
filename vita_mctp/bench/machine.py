"""What a device can do at most, measured: bytes moved by a copy, and multiplications by a square product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vita_mctp.bench.timing import time_runs

_COPY_BYTES = 256 * 2**20
_SIDE = {"cpu": 1536, "cuda": 8192}
_RUNS = 7


@dataclass(frozen=True)
class Machine:
    """bytes_per_second counts reading and writing alike, so a copy of n bytes moves 2 n."""

    device: str
    dtype: str
    bytes_per_second: float
    flops_per_second: float

    def seconds(self, moved_bytes: float, flops: float = 0.0) -> float:
        """The least time for a job that moves so many bytes and computes so much; it may do both at once."""
        return max(moved_bytes / self.bytes_per_second, flops / self.flops_per_second)


def measure_machine(device: torch.device, dtype: torch.dtype, copy_bytes: int = _COPY_BYTES) -> Machine:
    """Well under a second on an idle machine. The best of a few runs counts, since other work can only slow one."""
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = min(time_runs(lambda: target.copy_(source), device, _RUNS).seconds)
    side = _SIDE.get(device.type, _SIDE["cpu"])
    left = torch.ones(side, side, dtype=dtype, device=device)
    multiplied = min(time_runs(lambda: left @ left, device, _RUNS).seconds)
    kind = str(dtype).removeprefix("torch.")
    return Machine(str(device), kind, 2 * copy_bytes / copied, 2 * side**3 / multiplied)
