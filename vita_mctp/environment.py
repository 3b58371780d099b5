"""What a result was measured on, and what a command costs when it is started cold."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from vita_mctp import __version__
from vita_mctp.errors import MissingExtraError

ABSENT = "not installed"
_READ_BYTES = 1 << 24
_PACKAGES = ("torch", "transformers", "numpy", "pocketsphinx", "jiwer")


@dataclass(frozen=True)
class Environment:
    """load: as `load_average`, at the start. accelerators: names of GPUs.

    clock_mhz: the fastest core's at the start; None where the system does not tell.
    """

    date: str
    commit: str
    processor: str
    cores: int
    threads: int
    load: float | None
    versions: dict[str, str]
    clock_mhz: float | None = None
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True)
class CommandCost:
    """From the start of a process to its end, and the most memory it held."""

    seconds: float
    peak_bytes: int
    exit_code: int


def look_around() -> Environment:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    versions = {"vita-mctp": __version__, "python": platform.python_version()} | {
        name: installed_version(name) for name in _PACKAGES
    }
    load, cores = load_average(), os.cpu_count() or 1
    chips = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    threads = torch.get_num_threads()
    return Environment(now, _commit(), _processor(), cores, threads, load, versions, _clock(), chips)


def load_average() -> float | None:
    """The machine's mean number of running processes in the last minute, ours included; None: the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def load_in_words(load: float | None) -> str:
    return "not told by the system" if load is None else f"{load:.1f}"


def weights_hash(folder: Path) -> str:
    """The first 12 digits of SHA-256 over the folder's safetensors files, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
    return digest.hexdigest()[:12]


def require(purpose: str, extra: str, *modules: str) -> None:
    """Raises MissingExtraError naming those of the top-level modules that are not installed."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise MissingExtraError(
            f"{purpose} needs {', '.join(missing)}, not installed here: pip install 'vita-mctp[{extra}]'"
        )


def versions(*packages: str) -> str:
    """Installed packages as "jiwer 4.0.0, zhon 2.1.1": what a metric made with them depends on."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def quiet_libraries() -> None:
    """Standard error is for errors: transformers' bars and warnings are kept off it, once downloads are over."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


_METER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
"""A process of its own, because Linux counts a parent's memory as its child's until the child has become a program."""


def measure_command(arguments: Sequence[str]) -> CommandCost:
    """Runs a command to its end; what it prints is dropped."""
    meter = subprocess.run((sys.executable, "-ISc", _METER, *arguments), capture_output=True, text=True, check=True)
    seconds, peak, exit_code = json.loads(meter.stdout)
    return CommandCost(seconds, peak * (1 if platform.system() == "Darwin" else 1024), exit_code)


def _commit() -> str:
    """The checkout's commit, with "+" when files differ from it."""
    here = Path(__file__).parent
    git = ("git", "-C", str(here))
    try:
        head = subprocess.run((*git, "rev-parse", "--short=12", "HEAD"), capture_output=True, text=True, check=True)
        changed = subprocess.run((*git, "status", "--porcelain", "-uno", "."), capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
    return head.stdout.strip() + ("+" if changed.stdout else "")


def _processor() -> str:
    """The CPU's name where the system tells it, else its architecture."""
    names = _cpu_facts("model name")
    return names[0] if names else platform.machine()


def _clock() -> float | None:
    return max(map(float, _cpu_facts("cpu MHz")), default=None)


def _cpu_facts(name: str) -> list[str]:
    """What Linux tells under this name, one for each core; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]


def installed_version(package: str) -> str:
    """Its version, or ABSENT."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT
