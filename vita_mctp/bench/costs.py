"""`bench scaling` and `bench memory`: costs of a token, of weights and of caches."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vita_mctp.bench import Line, Machine, Panel, Row, Study
from vita_mctp.bench.models import LoadedModel
from vita_mctp.bench.modes import Traffic, fitting_note, request_of, token_seconds
from vita_mctp.checkpoints.loading import memory_needed
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import Mode
from vita_mctp.decoding.request import SequenceState
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.errors import ConfigError
from vita_mctp.models.registry import family_of

HISTORY, BATCH, BLOCKS = "history length", "batch size", "blocks in a cycle"

_SCALING_UNITS = {"token": "ms", "least": "ms", "of the limit": "%"}
_SCALING_NOTES = (
    "token: mean time of a step of all requests in a cycle of the mode, the median of the cycles after the first one, "
    "in which the blocks read the prompt.",
    "least: bytes that the step reads, weights once for the batch and each request's own keys and values, over the "
    "measured bandwidth of a copy.",
)

_LONGEST_CYCLE = 64
"""Tokens. A mode without a rhythm, such as vanilla, is counted token by token."""
_SPARE = 8
"""Tokens beyond those measured: a step may make some more than were asked for."""


@dataclass(frozen=True)
class _Case:
    study: str
    value: int
    mode: Mode
    history: int
    batch: int

    @property
    def cycle(self) -> int:
        """Tokens."""
        return sum(self.mode.counts) if sum(self.mode.counts) <= _LONGEST_CYCLE else 1

    def counted(self, tokens: int) -> int:
        """So many tokens or a few more, in whole cycles."""
        return -(-tokens // self.cycle) * self.cycle


def bench_scaling(
    loaded: LoadedModel,
    machine: Machine,
    *,
    mode: Mode,
    tokens: int,
    histories: Sequence[int],
    batches: Sequence[int],
    prefill: int,
    seed: int = 0,
) -> Study:
    """Three studies in one table; histories that the model has no positions for are left out, and said.

    mode: of histories and batches, one pair of counts. tokens: timed for each row, in whole cycles.

    Raises:
        ConfigError: a mode that begins otherwise than it goes on.
    """
    if len(mode.counts) != 2:
        raise ConfigError(f"mode {mode.name} begins otherwise than it goes on; wanted: one pair of counts")
    cases = list(_cases(mode, histories, batches, prefill, loaded.model.config.num_nextn_predict_layers))
    room = loaded.model.config.max_position_embeddings - cases[0].cycle - cases[0].counted(tokens)
    rows = [_measure(loaded, case, tokens, seed, machine) for case in cases if case.history <= room]
    left_out = [f"{case.value:,}" for case in cases if case.history > room]
    notes = list(_SCALING_NOTES)
    if left_out:
        notes.append(f"Left out, for want of positions: a history of {', '.join(left_out)}.")
    panels = [_scaling_panel(study, rows) for study in dict.fromkeys(str(row["study"]) for row in rows)]
    return Study("scaling", "What a token costs", rows, _SCALING_UNITS, panels, notes)


def _cases(
    mode: Mode, histories: Sequence[int], batches: Sequence[int], prefill: int, num_blocks: int
) -> Iterator[_Case]:
    for history in histories:
        yield _Case(HISTORY, history, mode, history, 1)
    for batch in batches:
        yield _Case(BATCH, batch, mode, prefill, batch)
    for blocks in range(num_blocks + 1):
        yield _Case(BLOCKS, blocks, Mode(f"1,{blocks}", (1, blocks)), prefill, 1)


def _measure(loaded: LoadedModel, case: _Case, tokens: int, seed: int, machine: Machine) -> Row:
    engine, counted = Engine(loaded.runner, max_batch=case.batch), case.counted(tokens)
    total = case.cycle + counted
    for i in range(case.batch):
        engine.add(replace(request_of(loaded, case.mode, case.history, total + _SPARE, seed + i), id=str(i)))
    token_seconds(engine, loaded.device, case.cycle)  # in which every block reads the prompt
    typical = float(np.median(token_seconds(engine, loaded.device, counted)))
    least = machine.seconds(_moved(Traffic.of(loaded), case, total) / counted)
    return {
        "study": case.study,
        "value": case.value,
        "token": 1e3 * typical,
        "tokens a second, all requests": case.batch / typical,
        "least": 1e3 * least,
        "of the limit": 100 * least / typical,
    }


def _moved(traffic: Traffic, case: _Case, end: int) -> int:
    """Bytes of new tokens case.cycle..end-1: weights once, keys and values of each request."""
    nothing = (0,) * len(traffic.weights)
    weights, caches = Traffic(traffic.weights, nothing), Traffic(nothing, traffic.cache_per_token)

    def behind_first(part: Traffic) -> int:
        return part.run(case.mode, case.history, end) - part.run(case.mode, case.history, case.cycle)

    return behind_first(weights) + case.batch * behind_first(caches)


def _scaling_panel(study: str, rows: Sequence[Row]) -> Panel:
    mine = [row for row in rows if row["study"] == study]
    xs = [row["value"] for row in mine]
    measured = Line("measured", xs, [row["token"] for row in mine])
    limit = Line("measured: limit by bytes", xs, [row["least"] for row in mine], "limit")
    return Panel(f"Cost of a step by {study}", study, "ms", (measured, limit))


_MEMORY_UNITS = {"computed": "MiB", "measured": "MiB", "reading it once": "ms"}
_MIB = 2**20
_STATUS = Path("/proc/self/statm")
_MEMORY_NOTES = (
    "computed: from names, shapes and types. measured: of weights, the process's (or the GPU's) memory in use; of keys "
    "and values, what the caches hold, with the room that doubling leaves free; the peak is of the "
    "whole process, on a CPU with the 512 MiB that measure the bandwidth first.",
    "reading it once: at the measured bandwidth of a copy.",
)


def bench_memory(
    loaded: LoadedModel, machine: Machine, *, mode: Mode, tokens: int, prefill: int, seed: int = 0
) -> Study:
    """Weights by part, and one answer's keys and values."""
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loaded.device)
    weights = _weights(loaded)
    in_use = memory_in_use(loaded.device)
    state = _run(loaded, mode, prefill, tokens, seed)
    sizes = Traffic.of(loaded).cache_per_token
    held = [cache.length * size for cache, size in zip(state.memory.slot, sizes, strict=True)]
    buffers = [cache.buffer.nbytes for cache in state.memory.slot]
    cached = f"keys and values of {len(state.ids):,} tokens"
    found: list[tuple[str, int, int | None]] = [
        *((f"weights, {part}", size, None) for part, size in weights.items()),
        ("weights and program", sum(weights.values()), in_use),
        (f"{cached}, backbone", held[0], buffers[0]),
        (f"{cached}, blocks", sum(held[1:]), sum(buffers[1:])),
        ("peak of all together", sum(held) + sum(weights.values()), peak_memory(loaded.device)),
    ]
    rows: list[Row] = [
        {
            "what": what,
            "computed": computed / _MIB,
            "measured": None if measured is None else measured / _MIB,
            "reading it once": 1e3 * machine.seconds(computed),
        }
        for what, computed, measured in found
    ]
    names = [str(row["what"]).replace(", ", "\n") for row in rows]
    bars = Line("computed", names, [row["computed"] for row in rows], "bars")
    notes = (*fitting_note(loaded, prefill, tokens), *_MEMORY_NOTES)
    return Study("memory", "Memory", rows, _MEMORY_UNITS, (Panel("Memory", "", "MiB", (bars,)),), notes)


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


def _weights(loaded: LoadedModel) -> dict[str, int]:
    """Bytes by part."""
    config = loaded.model.config
    family = family_of(config.model_type)
    parts: dict[str, dict[str, tuple[int, ...]]] = {"embeddings and head": {}, "backbone": {}, "blocks": {}}
    for name, weight in loaded.model.named_parameters():
        of_ids = "embed_tokens" in name or "lm_head" in name
        part = "embeddings and head" if of_ids else "blocks" if family.is_block_parameter(config, name) else "backbone"
        parts[part][name] = tuple(weight.shape)
    return {part: memory_needed(found, loaded.dtype, loaded.quantize, family.shrinks) for part, found in parts.items()}


def _run(loaded: LoadedModel, mode: Mode, prefill: int, tokens: int, seed: int) -> SequenceState:
    """A finished answer, with its caches."""
    engine = Engine(EagerRunner(loaded.model))
    state = engine.start(request_of(loaded, mode, prefill, tokens, seed))
    while state.reason is None:
        engine.advance([state])
    return state
