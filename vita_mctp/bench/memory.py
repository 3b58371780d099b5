"""`bench memory`: what weights and caches take, as computed and as measured."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from vita_mctp.bench.generation import PAPER_PREFILL, PAPER_TOKENS, fitting_note, request_of
from vita_mctp.bench.machine import Machine
from vita_mctp.bench.result import Cell, Column, Panel, Study, series
from vita_mctp.bench.subjects import Subject
from vita_mctp.bench.traffic import Traffic
from vita_mctp.checkpoints.placement import memory_needed
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import MODES, Mode
from vita_mctp.decoding.state import DecodeState
from vita_mctp.models.vita import is_mctp_parameter

COLUMNS = (
    Column("what"),
    Column("computed", "MiB", 1),
    Column("measured", "MiB", 1),
    Column("reading it once", "ms", 2),
)
_MIB = 2**20
_STATUS = Path("/proc/self/statm")
_NOTES = (
    "computed: from names, shapes and types. measured: of weights, the process's (or the GPU's) memory in use; of keys "
    "and values, what the caches hold, with the room that doubling leaves free; the peak is of the "
    "whole process, on a CPU with the 512 MiB that measure the bandwidth first.",
    "reading it once: at the measured bandwidth of a copy.",
)


@dataclass(frozen=True)
class MemoryOptions:
    mode: Mode = MODES["boost"]
    tokens: int = PAPER_TOKENS
    prefill: int = PAPER_PREFILL
    seed: int = 0


def bench_memory(subject: Subject, options: MemoryOptions, machine: Machine) -> Study:
    """Weights by part, and one answer's keys and values."""
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
    rows = [_row(f"weights, {part}", size, None, machine) for part, size in _weights(subject).items()]
    rows.append(_row("weights and program", sum(_weights(subject).values()), memory_in_use(subject.device), machine))
    state = _run(subject, options)
    traffic = Traffic.of(subject)
    held = [cache.length * size for cache, size in zip(state.caches, traffic.cache_per_token, strict=True)]
    buffers = [cache.buffer.nbytes for cache in state.caches]
    tokens = len(state.ids)
    rows.append(_row(f"keys and values of {tokens:,} tokens, backbone", held[0], buffers[0], machine))
    rows.append(_row(f"keys and values of {tokens:,} tokens, blocks", sum(held[1:]), sum(buffers[1:]), machine))
    everything = sum(held) + sum(_weights(subject).values())
    rows.append(_row("peak of all together", everything, peak_memory(subject.device), machine))
    notes = (*fitting_note(subject, options.prefill, options.tokens), *_NOTES)
    return Study("memory", "Memory", COLUMNS, tuple(rows), (_panel(rows),), notes)


def memory_in_use(device: torch.device) -> int:
    """Bytes: allocated on a GPU, or resident in this process, 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if not _STATUS.is_file():
        return 0
    return int(_STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(device: torch.device) -> int:
    """The most of it so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _weights(subject: Subject) -> dict[str, int]:
    config = subject.model.config
    parts: dict[str, dict[str, tuple[int, ...]]] = {"embeddings and head": {}, "backbone": {}, "blocks": {}}
    for name, weight in subject.model.named_parameters():
        of_ids = "embed_tokens" in name or "lm_head" in name
        part = "embeddings and head" if of_ids else "blocks" if is_mctp_parameter(config, name) else "backbone"
        parts[part][name] = tuple(weight.shape)
    return {part: memory_needed(found, subject.dtype, subject.quantize) for part, found in parts.items()}


def _run(subject: Subject, options: MemoryOptions) -> DecodeState:
    engine = Engine(subject.model)
    state = engine.start(request_of(subject, options.mode, options.prefill, options.tokens, options.seed))
    while state.reason is None:
        engine.advance([state])
    return state


def _row(what: str, computed: int, measured: int | None, machine: Machine) -> tuple[Cell, ...]:
    return (what, computed / _MIB, None if measured is None else measured / _MIB, 1e3 * machine.seconds(computed))


def _panel(rows: Iterable[tuple[Cell, ...]]) -> Panel:
    sizes = [(str(row[0]), value) for row in rows if isinstance(value := row[1], float)]
    bars = series("computed", [what.replace(", ", "\n") for what, _ in sizes], [size for _, size in sizes], "bars")
    return Panel("Memory", "", "MiB", (bars,))
