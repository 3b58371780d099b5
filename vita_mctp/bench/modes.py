"""`bench modes` and `bench timeline`: tokens by decoding mode; the engine runs and byte counts that studies share; and
the plain loop that the engine is measured against.

VITA-Audio paper, table 8 and figure 5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from vita_mctp.bench import Cell, Line, Machine, Panel, Row, Study, spent
from vita_mctp.bench.models import LoadedModel
from vita_mctp.checkpoints.loading import memory_needed
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import Mode, PlanCursor
from vita_mctp.decoding.request import Request
from vita_mctp.errors import ConfigError
from vita_mctp.models.registry import family_of
from vita_mctp.progress import track
from vita_mctp.types import BACKBONE, TokenEvent

_PART = re.compile(r"model\.layers\.(?P<layer>\d+)\.|mtp_(?:projs|embed_norms|hidden_norms)\.(?P<block>\d+)\.")
"""Parameters of one level."""
_POINTS = 128
"""Of a curve."""
_WARM_TOKENS = 24
"""Two cycles of every mode."""
_TIMELINE_RUNS = 5
"""Of each mode; the fastest is drawn, since only other work on the machine makes one slower than another."""


@dataclass(frozen=True)
class Generation:
    """moments: seconds since the prompt was handed over, one for each event; the first includes reading the prompt."""

    events: tuple[TokenEvent, ...]
    moments: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return self.moments[-1]

    @property
    def tokens_per_second(self) -> float:
        return len(self.events) / self.seconds

    @property
    def steps(self) -> NDArray[np.float64]:
        """Seconds of each step of the engine; tokens of a step come together."""
        return np.diff((0.0, *dict.fromkeys(self.moments)))


def request_of(loaded: LoadedModel, mode: Mode, prefill: int, tokens: int, seed: int = 0) -> Request:
    """Random ids to go on from, greedily and without an end: content never influences the schedule.

    Raises:
        ConfigError: the model has no positions for so long a prompt.
    """
    positions = loaded.model.config.max_position_embeddings
    if prefill >= positions:
        raise ConfigError(f"{loaded.name} has {positions} positions, a prompt of {prefill} fills them; give --prefill")
    ids = np.random.default_rng(seed).integers(loaded.model.config.vocab_size, size=prefill)
    return Request(tuple(ids.tolist()), mode, min(tokens, positions - prefill))


def fitting_note(loaded: LoadedModel, prefill: int, tokens: int) -> list[str]:
    """What to say when the model has no positions for all tokens asked for."""
    positions = loaded.model.config.max_position_embeddings
    if prefill + tokens <= positions:
        return []
    return [f"{tokens:,} tokens were asked for; {positions - prefill:,} fill the model's {positions:,} positions."]


def generate(loaded: LoadedModel, request: Request) -> Generation:
    """One answer, as its tokens come."""
    engine, device = Engine(loaded.runner), loaded.device
    start = spent(device)
    events: list[TokenEvent] = []
    moments: list[float] = []
    engine.add(request)
    while len(engine):
        new = engine.step()[request.id]
        events += new
        moments += [spent(device) - start] * len(new)
    return Generation(tuple(events), tuple(moments))


def token_seconds(engine: Engine, device: torch.device, tokens: int) -> NDArray[np.float64]:
    """Seconds a token of each step, until every request that runs has made so many more."""
    found, made, start = [], 0, spent(device)
    while made < tokens and len(engine):
        new = max(len(events) for events in engine.step().values())
        end = spent(device)
        found.append((end - start) / new)
        made, start = made + new, end
    return np.array(found)


@dataclass(frozen=True)
class Traffic:
    """How many bytes decoding has to read: the floor under its time where nothing is computed twice or cached.

    A step of the backbone or of a block reads that part's weights, the shared head, and the keys and values of every
    token it has read before. Embedding rows, activations and what is written are left out; they are small beside it.

    weights, cache_per_token: bytes by level, backbone first, then each block.
    """

    weights: tuple[int, ...]
    cache_per_token: tuple[int, ...]

    @classmethod
    def of(cls, loaded: LoadedModel) -> Traffic:
        config = loaded.model.config
        blocks, depth = config.num_nextn_predict_layers, config.num_backbone_layers
        head = {"lm_head.weight": tuple(loaded.model.lm_head.weight.shape)}
        shrinks, parts = family_of(config.model_type).shrinks, _weights_by_level(loaded)
        weights = tuple(memory_needed(part | head, loaded.dtype, loaded.quantize, shrinks) for part in parts)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_layer = 2 * config.num_key_value_heads * size * loaded.dtype.itemsize
        return cls(weights, (depth * per_layer, *[per_layer] * blocks))

    def step(self, level: int, seen: int) -> int:
        """Bytes read by one step of `level` with `seen` tokens before the one it makes."""
        return self.weights[level] + max(0, seen - level) * self.cache_per_token[level]

    def run(self, mode: Mode, prefill: int, tokens: int) -> int:
        """Bytes read to make so many tokens behind so many."""
        total, cursor = 0, PlanCursor.start(mode, len(self.weights) - 1)
        for made in range(tokens):
            level, cursor = cursor.step()
            total += self.step(level, prefill + made)
        return total


def _weights_by_level(loaded: LoadedModel) -> list[dict[str, tuple[int, ...]]]:
    """Shapes by name: the backbone's, then each block's, without the head."""
    config = loaded.model.config
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(config.num_nextn_predict_layers + 1)]
    for name, weight in loaded.model.named_parameters():
        if found := _PART.match(name):
            layer = found["layer"]
            block = int(found["block"]) if layer is None else int(layer) - config.num_backbone_layers
            parts[max(0, block + 1)][name] = tuple(weight.shape)
    return parts


def flops(loaded: LoadedModel, mode: Mode, prefill: int, tokens: int) -> float:
    """Multiplications and additions for so many tokens behind so many: every level that the mode calls reads every
    token once, the head each token's row; attention to half of the tokens on average.
    """
    config, rows = loaded.model.config, prefill + tokens
    reach = PlanCursor.start(mode, config.num_nextn_predict_layers).reach
    products = [math.prod(shape) for part in _weights_by_level(loaded)[: reach + 1] for shape in part.values()]
    layers = config.num_backbone_layers + reach
    attention = 2 * layers * config.hidden_size * rows * rows
    return 2.0 * (sum(products) * rows + config.hidden_size * config.vocab_size * tokens) + attention


_MODES_UNITS = {"total": "s", "speed-up": "×", "step p50": "ms", "step p99": "ms", "limit": "tokens/s"}
_MODES_UNITS |= {"of the limit": "%", "plain loop": "tokens/s", "over the plain loop": "×"}
_MODES_NOTES = (
    "Times are processor seconds where one thread of a CPU computes, else seconds. The audio encoder and decoder are "
    "not in them, as in the paper.",
    "limit: what takes longer, the bytes of weights, keys and values that the mode's steps read, over the measured "
    "bandwidth of a copy, or its products, over the measured rate of a large one; a model that fits the processor's "
    "caches can pass the first, and so can a screened head, which is counted as if it were read whole. Verified has "
    "none: its passes depend on what is accepted.",
    "step: of the engine, a whole cycle: in Boost four passes of the backbone and ten blocks, in Vanilla four tokens.",
    "Of several runs, the one with the median total.",
)
_BASELINE_NOTE = (
    "plain loop: the same request in turns with the engine, one forward a token with transformers' growing caches; for "
    "verified it makes Vanilla's tokens. same ids: of the first tokens, as many as agree without a gap."
)


def bench_modes(
    loaded: LoadedModel,
    machine: Machine,
    *,
    modes: Sequence[Mode],
    tokens: int,
    prefill: int,
    runs: int = 1,
    baseline: bool = False,
    seed: int = 0,
) -> Study:
    """Tokens a second of each mode. The speed-up is over vanilla where it is among the modes, else over the first.

    runs: of each mode, in turns, so that the machine's other work falls on all. baseline: also time the plain loop.
    """
    requests = [request_of(loaded, mode, prefill, tokens, seed) for mode in modes]
    found, plain = _median_runs(loaded, requests, runs, baseline)
    base = next((run for run, mode in zip(found, modes, strict=True) if mode.name == "vanilla"), found[0])
    traffic = Traffic.of(loaded)
    rows: list[Row] = []
    for i, (request, run) in enumerate(zip(requests, found, strict=True)):
        made = len(run.events)
        least = machine.seconds(traffic.run(request.mode, prefill, made), flops(loaded, request.mode, prefill, made))
        row: dict[str, Cell] = {
            "mode": request.mode.name,
            "tokens": len(run.events),
            "total": run.seconds,
            "tokens a second": run.tokens_per_second,
            "speed-up": run.tokens_per_second / base.tokens_per_second,
            "step p50": 1e3 * float(np.median(run.steps)),
            "step p99": 1e3 * float(np.percentile(run.steps, 99)),
            "limit": None if request.mode.verified else len(run.events) / least,
            "of the limit": None if request.mode.verified else 100 * least / run.seconds,
        }
        if baseline:
            speed = made / plain[i].seconds
            row |= {"plain loop": speed, "over the plain loop": run.tokens_per_second / speed}
            row["same ids"] = _agreeing(run, plain[i].ids)
        rows.append(row)
    notes = (*fitting_note(loaded, prefill, tokens), *_MODES_NOTES, *([_BASELINE_NOTE] if baseline else []))
    return Study("modes", "Speed of the decoding modes", rows, _MODES_UNITS, _mode_panels(rows, found), notes)


@dataclass(frozen=True)
class _PlainRun:
    ids: Sequence[int]
    seconds: float


def _median_runs(
    loaded: LoadedModel, requests: Sequence[Request], runs: int, baseline: bool
) -> tuple[list[Generation], list[_PlainRun]]:
    """Of each request, the engine's runs and those of the plain loop, if it is wanted, in turns."""
    found: list[list[Generation]] = [[] for _ in requests]
    plain: list[list[_PlainRun]] = [[] for _ in requests if baseline]
    for request in requests:
        _warm(loaded, request)
    for _ in track(range(runs), "runs of each mode"):
        for i, request in enumerate(requests):
            found[i].append(generate(loaded, request))
            if baseline:
                start = spent(loaded.device)
                ids = generate_plain(loaded.model, request)
                plain[i].append(_PlainRun(ids, spent(loaded.device) - start))
    return [_middle(of_one) for of_one in found], [_middle(of_one) for of_one in plain]


def _middle(runs: Sequence[Any]) -> Any:
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def _agreeing(run: Generation, ids: Sequence[int]) -> int:
    return int(sum(np.cumprod([event.id == other for event, other in zip(run.events, ids, strict=True)])))


def _warm(loaded: LoadedModel, request: Request) -> None:
    """So that what is built at first use is built."""
    generate(loaded, replace(request, max_new_tokens=min(_WARM_TOKENS, request.max_new_tokens)))


def _mode_panels(rows: Sequence[Row], found: Sequence[Generation]) -> list[Panel]:
    names = [row["mode"] for row in rows]
    columns = {"measured": "tokens a second", "limit by bytes": "limit"}
    bars = [Line(label, names, [row[column] for row in rows], "bars") for label, column in columns.items()]
    curves = [Line(str(name), *_curve(run)) for name, run in zip(names, found, strict=True)]
    return [
        Panel("Tokens per second", "", "tokens/s", bars),
        Panel("Tokens made", "seconds since the prompt", "tokens", curves),
    ]


def _curve(run: Generation) -> tuple[list[float], list[int]]:
    """Moments and tokens made until then, thinned out."""
    step = max(1, len(run.events) // _POINTS)
    return list(run.moments[::step]), list(range(1, len(run.events) + 1, step))


def bench_timeline(
    loaded: LoadedModel, machine: Machine, *, modes: Sequence[Mode], tokens: int, prefill: int, seed: int = 0
) -> Study:
    """When each token of each mode came, and from the backbone or which block."""
    traffic = Traffic.of(loaded)
    rows: list[Row] = []
    panels = []
    for mode in modes:
        request = request_of(loaded, mode, prefill, tokens, seed)
        _warm(loaded, request)
        run = min((generate(loaded, request) for _ in range(_TIMELINE_RUNS)), key=lambda run: run.seconds)
        rows += _timeline_rows(mode, run, prefill, traffic, machine)
        lines = [_points(label, run, of_blocks) for label, of_blocks in (("backbone", False), ("blocks", True))]
        panels.append(Panel(mode.name, "ms since the prompt", "token", lines))
    units = {"came after": "ms", "least": "ms"}
    notes = (
        f"The fastest of {_TIMELINE_RUNS} runs of each mode.",
        "least: bytes read up to each token, over the measured bandwidth of a copy.",
    )
    return Study("timeline", "When each token came", rows, units, panels, notes)


def _timeline_rows(mode: Mode, run: Generation, prefill: int, traffic: Traffic, machine: Machine) -> Iterator[Row]:
    least = 0.0
    for event, moment in zip(run.events, run.moments, strict=True):
        least += machine.seconds(traffic.step(event.level, prefill + event.index))
        yield {
            "mode": mode.name,
            "token": event.index + 1,
            "source": "backbone" if event.level == BACKBONE else f"block {event.level - 1}",
            "came after": 1e3 * moment,
            "least": 1e3 * least,
        }


def _points(label: str, run: Generation, of_blocks: bool) -> Line:
    pairs = zip(run.events, run.moments, strict=True)
    chosen = [(1e3 * moment, event.index + 1) for event, moment in pairs if (event.level != BACKBONE) == of_blocks]
    return Line(label, [moment for moment, _ in chosen], [number for _, number in chosen], "points")


@torch.inference_mode()
def generate_plain(model: Any, request: Request) -> list[int]:
    """The greedy answer of `max_new_tokens` ids where nothing is done for speed: a forward a token, growing caches.

    For each token the level that makes it reads, by the model's own forward, what it has not read yet. Unlike the slow
    twin it computes nothing twice.
    """
    mode, blocks = request.mode, model.config.num_nextn_predict_layers
    cursor = PlanCursor.start(Mode("1,0", (1, 0)) if mode.verified else mode, blocks)
    ids, cache = list(request.prompt_ids), DynamicCache(config=model.config)
    unread: list[list[torch.Tensor]] = [[] for _ in range(blocks + 1)]  # hidden rows that the next level has not read
    read = [0] * (blocks + 1)
    for _ in range(request.max_new_tokens):
        level, cursor = cursor.step()
        first = level + read[level]
        embeds = model.embed(torch.tensor([ids[first:]], device=model.device))
        positions = torch.arange(first, len(ids), device=model.device)[None]
        if level == BACKBONE:
            hidden = model.backbone(embeds, positions, cache=cache)
        else:
            previous, unread[level - 1] = torch.cat(unread[level - 1], 1), []
            hidden = model.block(level - 1, embeds, previous, positions, cache=cache)
        read[level] = len(ids) - level
        if level < cursor.reach:
            unread[level].append(hidden)
        ids.append(int(model.logits(hidden[:, -1]).argmax(-1)))
    return ids[len(request.prompt_ids) :]
