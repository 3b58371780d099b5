"""Decoding for a batch that requests join and leave at any time.

Nothing here knows how a model computes, nor imports torch: the scheduler says who runs, the runner says how. An engine
belongs to one thread; `EngineWorker` is that thread where several callers share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vita_mctp.decoding.kept import KeptMemories
from vita_mctp.decoding.request import Classify, Request, Result, SequenceState, all_text
from vita_mctp.decoding.runners import Runner
from vita_mctp.decoding.scheduler import Scheduler
from vita_mctp.errors import ConfigError
from vita_mctp.types import TokenEvent


class Engine:
    """Requests in, events out. classify: kind of a token, for its event.

    kept_tokens: of answers that are over, whose memories stay for requests that go on from them.
    """

    def __init__(
        self, runner: Runner, *, max_batch: int = 16, classify: Classify = all_text, kept_tokens: int = 0
    ) -> None:
        self.runner = runner
        self.classify = classify
        self._scheduler = Scheduler(max_batch)
        self._kept = KeptMemories(runner, kept_tokens)

    def __len__(self) -> int:
        """Requests that wait or run."""
        return len(self._scheduler)

    def budget(self, request: Request) -> int:
        """New tokens that `request` may have. Raises ConfigError for a prompt that is not for this model."""
        return request.token_budget(self.runner.vocab_size, self.runner.max_positions)

    def start(self, request: Request) -> SequenceState:
        """A fresh state for `request`, which is refused as by `budget`, for a caller that owns it."""
        state = self._waiting(request)
        state.memory = self.runner.open(request)
        return state

    def add(self, request: Request) -> None:
        """Queue a request; it joins the running ones at the next step that has room.

        Raises:
            ConfigError: its id is already queued or running, or `budget` refuses it.
        """
        if request.id in self._scheduler:
            raise ConfigError(f"request id {request.id!r} is already queued or running; wanted a new one")
        self._scheduler.add(self._waiting(request))

    def cancel(self, request_id: str) -> None:
        """Drop a queued or running request before the next step. Ids that are neither have ended already."""
        if (state := self._scheduler.drop(request_id)) is not None:
            self._kept.keep(state)

    def step(self) -> dict[str, list[TokenEvent]]:
        """The new tokens of every running request, by its id, each final; `ends` is set on a request's last."""
        states = self._scheduler.schedule(self._kept.open)
        events = dict(zip((state.request.id for state in states), self.advance(states), strict=True))
        for state in self._scheduler.retire():
            self._kept.keep(state)
        return events

    def advance(self, states: Sequence[SequenceState]) -> list[list[TokenEvent]]:
        """A step of unfinished states that the caller owns, made by `start`; their new events, in their order."""
        made = self.runner.run(states)
        return [state.record(tokens, self.classify) for state, tokens in zip(states, made, strict=True)]

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Run `requests` to their ends, apart from what is queued; results in their order."""
        apart = Engine(self.runner, max_batch=self._scheduler.max_batch, classify=self.classify)
        events: list[list[TokenEvent]] = [[] for _ in requests]
        for i, request in enumerate(requests):
            apart.add(replace(request, id=str(i)))
        while len(apart):
            for request_id, new in apart.step().items():
                events[int(request_id)] += new
        return [Result(request.id, tuple(new)) for request, new in zip(requests, events, strict=True)]

    def _waiting(self, request: Request) -> SequenceState:
        return SequenceState.start(request, self.runner.num_blocks, self.budget(request))
