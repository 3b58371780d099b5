"""Tokens made by the engine, or by its slow twin, with the moment that each of them came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vita_mctp.bench.subjects import Subject
from vita_mctp.bench.timing import Times, gaps, now
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.naive import generate_naive
from vita_mctp.decoding.plan import Mode
from vita_mctp.decoding.state import DecodeState, Request
from vita_mctp.errors import ConfigError
from vita_mctp.types import TokenEvent

PAPER_PREFILL, PAPER_TOKENS = 32, 4096
"""VITA-Audio paper, section 4.4."""


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
    def steps(self) -> Times:
        return gaps(0.0, self.moments)


def request_of(subject: Subject, mode: Mode, prefill: int, tokens: int, seed: int = 0) -> Request:
    """Random ids to go on from, greedily and without an end: content never influences the schedule.

    Raises:
        ConfigError: the model has no positions for so long a prompt.
    """
    positions = subject.model.config.max_position_embeddings
    if prefill >= positions:
        raise ConfigError(f"{subject.name} has {positions} positions, a prompt of {prefill} fills them; give --prefill")
    ids = np.random.default_rng(seed).integers(subject.model.config.vocab_size, size=prefill)
    return Request(tuple(ids.tolist()), mode, min(tokens, positions - prefill))


def fitting_note(subject: Subject, prefill: int, tokens: int) -> list[str]:
    """What to say when the model has no positions for all tokens asked for."""
    positions = subject.model.config.max_position_embeddings
    if prefill + tokens <= positions:
        return []
    return [f"{tokens:,} tokens were asked for; {positions - prefill:,} fill the model's {positions:,} positions."]


def generate(engine: Engine, request: Request) -> Generation:
    """One answer, a token at a time."""
    device = engine.model.device
    start = now(device)
    state = engine.start(request)
    events, moments = [], []
    while state.reason is None:
        events += engine.advance([state])
        moments.append(now(device) - start)
    return Generation(tuple(events), tuple(moments))


def generate_slowly(subject: Subject, request: Request) -> tuple[float, tuple[int, ...]]:
    """Seconds and ids of the naive twin, which computes everything anew for each token."""
    start = now(subject.device)
    ids = generate_naive(subject.model, request).ids
    return now(subject.device) - start, ids


def advance_all(engine: Engine, states: Sequence[DecodeState], tokens: int) -> Times:
    """Seconds of each of so many steps that all states take together."""
    device = engine.model.device
    start, moments = now(device), []
    for _ in range(tokens):
        engine.advance(states)
        moments.append(now(device))
    return gaps(start, moments)


def warm(engine: Engine, request: Request, tokens: int = 24) -> None:
    """A few tokens, so that what is built at first use is built: two cycles of every mode."""
    generate(engine, replace(request, max_new_tokens=min(tokens, request.max_new_tokens)))
