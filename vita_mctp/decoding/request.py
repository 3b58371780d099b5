"""What a request asks, what its decoding remembers, and what comes out.

A `SequenceState` belongs to one request: two requests cannot mix, and to cancel one is to drop its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vita_mctp.decoding.modes import Mode, PlanCursor
from vita_mctp.decoding.sampling import Sampler, SamplingParams
from vita_mctp.errors import ConfigError
from vita_mctp.types import HeardAudio, StopReason, TokenEvent, TokenKind

Classify = Callable[[int], TokenKind]


def all_text(token: int) -> TokenKind:
    """The classification of a model without audio: every token is text (a request's EOS is STOP in any case)."""
    return TokenKind.TEXT


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it. Any token of `eos_ids`, from whatever level, ends the answer.

    keeps_hidden: whether events carry the hidden state that predicted them; of models without blocks.
    heard: recordings in the prompt, for a model that hears features; the backbone reads them in place of what
    `prompt_ids` hold there, the blocks do not.
    """

    prompt_ids: tuple[int, ...]
    mode: Mode
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos_ids: frozenset[int] = frozenset()
    id: str = ""
    heard: tuple[HeardAudio, ...] = ()
    keeps_hidden: bool = False

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ConfigError(f"request {self.id!r} has an empty prompt; wanted at least one token")
        if self.max_new_tokens < 1:
            raise ConfigError(f"request {self.id!r} has max_new_tokens {self.max_new_tokens}; wanted at least 1")
        for audio in self.heard:
            if audio.start < 0 or audio.end > len(self.prompt_ids):
                raise ConfigError(
                    f"request {self.id!r} has a recording at positions [{audio.start}, {audio.end}); "
                    f"wanted it inside the prompt's {len(self.prompt_ids)} tokens"
                )

    def token_budget(self, vocab_size: int, max_positions: int) -> int:
        """New tokens that this request may have in a model of these sizes.

        Raises:
            ConfigError: a prompt id outside the vocabulary, or a prompt that fills all of the model's positions.
        """
        low, high = min(self.prompt_ids), max(self.prompt_ids)
        if low < 0 or high >= vocab_size:
            raise ConfigError(f"request {self.id!r} has prompt ids {low}..{high}; wanted ids in [0, {vocab_size})")
        room = max_positions - len(self.prompt_ids)
        if room < 1:
            raise ConfigError(
                f"request {self.id!r} has a prompt of {len(self.prompt_ids)} tokens; "
                f"wanted fewer than the model's {max_positions} positions: shorten the prompt"
            )
        return min(self.max_new_tokens, room)


@dataclass(frozen=True, slots=True)
class Result:
    """A finished answer. `events` include the EOS token if there was one."""

    request_id: str
    events: tuple[TokenEvent, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(event.id for event in self.events)

    @property
    def reason(self) -> StopReason | None:
        return self.events[-1].ends if self.events else None


@dataclass(slots=True, eq=False)
class SequenceState:
    """One request on its way.

    Attributes:
        ids: prompt and generated tokens; the last one has been read by nobody yet.
        cursor: where the mode's schedule stands.
        budget: the number of new tokens at which the answer ends.
        memory: the runner's own, such as caches; nobody else looks into it.
        reason: why the answer ended; None while it is going on.
        hidden: of tokens that the runner made and nobody has recorded yet, where the request keeps it.
    """

    request: Request
    ids: list[int]
    cursor: PlanCursor
    sampler: Sampler
    budget: int
    memory: Any = None
    reason: StopReason | None = None
    hidden: list[Any] = field(default_factory=list)

    @classmethod
    def start(cls, request: Request, num_blocks: int, budget: int) -> SequenceState:
        """Without memory, which is allocated when it is to run."""
        sampler = Sampler(request.sampling, len(request.prompt_ids))
        return cls(request, list(request.prompt_ids), PlanCursor.start(request.mode, num_blocks), sampler, budget)

    def record(self, tokens: Iterable[tuple[int, int]], classify: Classify) -> list[TokenEvent]:
        """Appends (id, level) pairs as final; what comes behind the answer's end is dropped."""
        events: list[TokenEvent] = []
        for token, level in tokens:
            if self.reason is not None:
                break
            index = len(self.ids) - len(self.request.prompt_ids)
            self.ids.append(token)
            if token in self.request.eos_ids:
                self.reason = StopReason.EOS
            elif index + 1 == self.budget:
                self.reason = StopReason.LENGTH
            kind = TokenKind.STOP if token in self.request.eos_ids else classify(token)
            hidden = self.hidden.pop(0) if self.request.keeps_hidden else None
            events.append(TokenEvent(index, token, kind, level, self.reason, hidden=hidden))
        return events
