"""Decoding with caches, for one request or a batch that requests join and leave at any time.

A step: take every request's next level; run the requests that share one as one padded batch, the backbone over
every token it has not seen, level k over every hidden state of level k - 1 that it has not seen; choose;
append; emit. VITA-Audio paper, section 3.2. Nothing is stored on the model.

Legend: B requests, Q tokens of a forward, T keys it attends to, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.decoding.cache import BatchCache, CacheSpec, KvCache
from vita_mctp.decoding.plan import PlanCursor
from vita_mctp.decoding.sampling import Sampler, choose_each
from vita_mctp.decoding.state import Classify, DecodeState, Request, Result, all_text
from vita_mctp.errors import ConfigError
from vita_mctp.types import BACKBONE, StopReason, TokenEvent

if TYPE_CHECKING:
    from vita_mctp.models.registry import SpeechModel

_FREE_PADDING = 32
"""Catch-ups below this many tokens share a forward whatever their lengths; longer ones within a factor of two."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One new token of one request; `reason` is set on a request's last."""

    request_id: str
    event: TokenEvent
    reason: StopReason | None


class Engine:
    """Decodes requests on one model.

    `start` and `advance` are the whole of decoding, on states that the caller owns. `generate` and `stream` wrap them
    for a list and for one request; `add`, `step`, `cancel` and `run` keep a queue from which up to `max_batch` requests
    run together. All of them may be used side by side; the queue belongs to one thread.
    """

    def __init__(self, model: SpeechModel, *, max_batch: int = 16, classify: Classify = all_text) -> None:
        if max_batch < 1:
            raise ConfigError(f"max_batch {max_batch} given; wanted at least 1")
        self.model = model
        self.max_batch = max_batch
        self.classify = classify
        self._cache_specs = _cache_specs(model)
        self._is_flash = "flash_attention" in model.config._attn_implementation  # takes no mask: equal pasts only
        self._waiting: deque[DecodeState] = deque()
        self._active: list[DecodeState] = []

    def start(self, request: Request) -> DecodeState:
        """A fresh state for `request`; its caches are allocated by its first steps.

        Raises:
            ConfigError: a prompt id outside the vocabulary, or a prompt too long for the model.
        """
        config = self.model.config
        budget = request.token_budget(config.vocab_size, config.max_position_embeddings)
        blocks = config.num_nextn_predict_layers
        return DecodeState(
            request=request,
            ids=list(request.prompt_ids),
            cursor=PlanCursor.start(request.mode, blocks),
            sampler=Sampler(request.sampling, request.prompt_ids, config.vocab_size, self._cache_specs[0].device),
            caches=[KvCache(spec) for spec in self._cache_specs],
            unseen=[[] for _ in range(blocks + 1)],
            budget=budget,
        )

    @torch.inference_mode()
    def advance(self, states: Sequence[DecodeState]) -> list[TokenEvent]:
        """One new token for each unfinished state, whatever their plans and lengths; events in the states' order."""
        plans = [state.cursor.step() for state in states]
        events: dict[int, TokenEvent] = {}
        for (level, _), members in self._groups(states, [level for level, _ in plans]).items():
            group = [states[i] for i in members]
            logits = self._forward(level, group, [plans[i][1] for i in members])
            for i, token in zip(members, choose_each(logits, [state.sampler for state in group]), strict=True):
                events[i] = states[i].record_token(token, level, self.classify)
        return [events[i] for i in range(len(states))]

    def stream(self, request: Request) -> Iterator[TokenEvent]:
        """The events of one request as they form; `start`'s errors come at once. Drop the iterator to cancel."""
        return self._events(self.start(request))

    def _events(self, state: DecodeState) -> Iterator[TokenEvent]:
        while state.reason is None:
            yield from self.advance([state])

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Run `requests` to their ends, up to `max_batch` of them together; results in their order."""
        worker = Engine(self.model, max_batch=self.max_batch, classify=self.classify)
        for i, request in enumerate(requests):
            worker.add(replace(request, id=str(i)))
        events: list[list[TokenEvent]] = [[] for _ in requests]
        reasons = [StopReason.LENGTH] * len(requests)
        for output in worker.run():
            i = int(output.request_id)
            events[i].append(output.event)
            reasons[i] = output.reason or reasons[i]
        return [Result(r.id, tuple(e), why) for r, e, why in zip(requests, events, reasons, strict=True)]

    def add(self, request: Request) -> None:
        """Queue a request; it joins the running ones at the next step that has room.

        Raises:
            ConfigError: its id is already queued or running, or `start` refuses it.
        """
        if any(state.request.id == request.id for state in (*self._waiting, *self._active)):
            raise ConfigError(f"request id {request.id!r} is already queued or running; wanted a new one")
        self._waiting.append(self.start(request))

    def cancel(self, request_id: str) -> None:
        """Drop a queued or running request before the next step. Ids that are neither have ended already."""
        self._waiting = deque(state for state in self._waiting if state.request.id != request_id)
        self._active = [state for state in self._active if state.request.id != request_id]

    def step(self) -> list[StepOutput]:
        """Admit what there is room for, then make one token for every running request."""
        while self._waiting and len(self._active) < self.max_batch:
            self._active.append(self._waiting.popleft())
        running = self._active
        events = self.advance(running)
        self._active = [state for state in running if state.reason is None]
        return [StepOutput(s.request.id, event, s.reason) for s, event in zip(running, events, strict=True)]

    def run(self) -> Iterator[StepOutput]:
        """Step until the queue is empty; requests may be added meanwhile."""
        while self._waiting or self._active:
            yield from self.step()

    def _groups(self, states: Sequence[DecodeState], levels: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        """Indices of the states that share a forward, by level and a class of lengths."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (state, level) in enumerate(zip(states, levels, strict=True)):
            if self._is_flash:
                length_class = state.caches[level].length
            else:
                length_class = ((len(state.ids) - state.first_unread(level)) // _FREE_PADDING).bit_length()
            groups.setdefault((level, length_class), []).append(i)
        return groups

    def _forward(self, level: int, states: Sequence[DecodeState], cursors: Sequence[PlanCursor]) -> Tensor:
        """Run `level` over what it has not seen of each state; return the logits (B, V) behind each last token."""
        starts = [state.first_unread(level) for state in states]
        counts = [len(state.ids) - start for state, start in zip(states, starts, strict=True)]
        caches = [state.caches[level] for state in states]
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        hidden = self._hidden(level, states, starts, counts, caches)
        for row, state, cursor, count in zip(hidden, states, cursors, counts, strict=True):
            state.record_forward(level, cursor, row[:count])
        last = torch.stack([row[count - 1] for row, count in zip(hidden, counts, strict=True)])
        logits: Tensor = self.model.logits(last)
        return logits

    def _hidden(
        self, level: int, states: Sequence[DecodeState], starts: list[int], counts: list[int], caches: list[KvCache]
    ) -> Tensor:
        """The level's hidden states (B, Q, H) over its unread tokens, right-padded; the caches keep the new keys."""
        device, q = self._cache_specs[0].device, max(counts)
        ids = [
            state.ids[start:] + [0] * (q - count) for state, start, count in zip(states, starts, counts, strict=True)
        ]
        embeds = self.model.embed(torch.tensor(ids, device=device))
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(q, device=device)
        mask = self._mask([cache.length for cache in caches], q)
        cache = caches[0] if len(caches) == 1 else BatchCache(caches, q)
        hidden: Tensor
        if level == BACKBONE:
            embeds = self.model.listen(
                embeds, [state.heard_from(start) for state, start in zip(states, starts, strict=True)]
            )
            hidden = self.model.backbone(embeds, positions, attention_mask=mask, cache=cache)
        else:
            previous = pad_sequence([state.previous_hidden(level) for state in states], batch_first=True)
            hidden = self.model.block(level - 1, embeds, previous, positions, attention_mask=mask, cache=cache)
        if isinstance(cache, BatchCache):
            cache.write_back(counts)
        return hidden

    def _mask(self, past: list[int], q: int) -> Tensor | None:
        """Causal mask (B, 1, Q, T), True = attend, aligned to each request's own past; None if all pasts are equal."""
        if min(past) == max(past):
            return None
        device = self._cache_specs[0].device
        ends = torch.tensor(past, device=device)[:, None] + torch.arange(q, device=device)  # (B, Q)
        return torch.arange(max(past) + q, device=device) <= ends[:, None, :, None]


def _cache_specs(model: SpeechModel) -> list[CacheSpec]:
    """The caches a request needs: the backbone's, then one per block."""
    config, weight = model.config, next(model.parameters())
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    backbone = config.num_backbone_layers
    stacks = [(0, backbone)] + [(backbone + k, 1) for k in range(config.num_nextn_predict_layers)]
    return [CacheSpec(first, n, heads, size, weight.dtype, weight.device) for first, n in stacks]
