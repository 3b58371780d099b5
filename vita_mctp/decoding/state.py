"""What a request asks, everything that its decoding remembers, and what comes out.

A `DecodeState` belongs to one request and holds all of its caches: two requests cannot mix, and to cancel one is to
drop it. Levels are numbered as in `TokenEvent.level`: the backbone is 0 and block k - 1 is k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vita_mctp.decoding.cache import KvCache
from vita_mctp.decoding.plan import Mode, PlanCursor
from vita_mctp.decoding.sampling import Sampler, SamplingParams
from vita_mctp.errors import ConfigError
from vita_mctp.types import HeardAudio, StopReason, TokenEvent, TokenKind

Classify = Callable[[int], TokenKind]


def all_text(token: int) -> TokenKind:
    """The classification of a model without audio: every token is text (a request's EOS is STOP in any case)."""
    return TokenKind.TEXT


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it. Any token of `eos_ids`, from the backbone or a block, ends the answer.

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

    def event(self, index: int, token: int, level: int, classify: Classify) -> TokenEvent:
        """The event of new token number `index`."""
        kind = TokenKind.STOP if token in self.eos_ids else classify(token)
        return TokenEvent(index, token, kind, level)

    def stop_reason(self, event: TokenEvent, budget: int) -> StopReason | None:
        """Whether the answer ends with this event."""
        if event.id in self.eos_ids:
            return StopReason.EOS
        return StopReason.LENGTH if event.index + 1 == budget else None


@dataclass(frozen=True, slots=True)
class Result:
    """A finished answer. `events` include the EOS token if there was one."""

    request_id: str
    events: tuple[TokenEvent, ...]
    reason: StopReason

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(event.id for event in self.events)


@dataclass(slots=True, eq=False)
class DecodeState:
    """One request on its way.

    Attributes:
        ids: prompt and generated tokens; the last one has been read by nobody yet.
        caches: keys and values of each level; their lengths differ by design.
        unseen: for each level, the hidden states (tokens, H) of the level before that it has not read yet; none for 0.
        budget: the number of new tokens at which the answer ends.
        reason: why the answer ended; None while it is going on.
    """

    request: Request
    ids: list[int]
    cursor: PlanCursor
    sampler: Sampler
    caches: list[KvCache]
    unseen: list[list[Tensor]]
    budget: int
    reason: StopReason | None = None

    def first_unread(self, level: int) -> int:
        """The position of the first token that `level` has not processed; level k starts at position k."""
        return self.caches[level].length + level

    def heard_from(self, start: int) -> tuple[HeardAudio, ...]:
        """The recordings in what the backbone reads from `start` on: the prompt is read at once, from 0."""
        return self.request.heard if start == 0 else ()

    def previous_hidden(self, level: int) -> Tensor:
        """The predecessor's hidden states (tokens, H), one position behind the tokens that the level is to read."""
        pieces = self.unseen[level]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def record_forward(self, level: int, cursor: PlanCursor, hidden: Tensor) -> None:
        """Count a level's tokens as read; keep its hidden states (tokens, H) if the plan can call the next level."""
        self.caches[level].length += len(hidden)
        self.unseen[level].clear()
        self.cursor = cursor
        for deeper in range(cursor.reach + 1, len(self.unseen)):
            self.unseen[deeper].clear()
        if level < cursor.reach:
            self.unseen[level + 1].append(hidden)

    def record_token(self, token: int, level: int, classify: Classify) -> TokenEvent:
        """Append a chosen token; end the answer if it is the last."""
        event = self.request.event(len(self.ids) - len(self.request.prompt_ids), token, level, classify)
        self.ids.append(token)
        self.reason = self.request.stop_reason(event, self.budget)
        return event
