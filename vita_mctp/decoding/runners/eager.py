"""The readable runner: any model with levels, one token a step, requests that share a level in one padded batch.

A step: take every request's next level; run the requests that share one as one padded batch, the backbone over every
token it has not seen, level k over every hidden state of level k - 1 that it has not seen; choose. VITA-Audio paper,
section 3.2. Nothing is stored on the model.

Legend: B requests, Q tokens of a forward, T keys it attends to, H hidden size, V vocabulary size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.decoding.cache import BatchCache, CacheSpec, KvCache
from vita_mctp.decoding.modes import PlanCursor
from vita_mctp.decoding.request import Request, SequenceState
from vita_mctp.decoding.runners import Token
from vita_mctp.decoding.sampling import Scores
from vita_mctp.types import BACKBONE, HeardAudio

if TYPE_CHECKING:
    from vita_mctp.models.registry import SpeechModel

_FREE_PADDING = 32
"""Catch-ups below this many tokens share a forward whatever their lengths; longer ones within a factor of two."""


@dataclass(slots=True, eq=False)
class Memory:
    """What one request remembers, by level: its keys and values, and the hidden states it is to read.

    Attributes:
        caches: their lengths differ by design.
        heard: recordings that the backbone reads with the prompt.
        unseen: hidden states (tokens, H) of the level before, each with the position of its first; none for level 0.
        reach: no deeper level than this is called any more, so that nothing is kept for it.
        confirmed: `truncate` never cuts below so many ids; what only a shorter past would need is not kept.
    """

    caches: list[KvCache]
    heard: tuple[HeardAudio, ...] = ()
    unseen: list[list[tuple[int, Tensor]]] = field(init=False)
    reach: int = field(init=False)
    confirmed: int = sys.maxsize

    def __post_init__(self) -> None:
        self.unseen = [[] for _ in self.caches]
        self.reach = len(self.caches) - 1

    def first_unread(self, level: int) -> int:
        """The position of the first token that `level` has not processed; level k starts at position k."""
        return self.caches[level].length + level

    def previous_hidden(self, level: int) -> Tensor:
        """The hidden states (tokens, H) of the level before, from one position before the first unread one on."""
        start = self.first_unread(level) - 1
        pieces = [rows[max(0, start - first) :] for first, rows in self.unseen[level] if first + len(rows) > start]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def record(self, level: int, hidden: Tensor) -> None:
        """Counts a level's tokens as read; keeps its hidden states (tokens, H) for the next level."""
        start = self.first_unread(level)
        self.caches[level].length += len(hidden)
        needed = min(start + len(hidden), self.confirmed) - 1
        self.unseen[level] = [piece for piece in self.unseen[level] if piece[0] + len(piece[1]) > needed]
        for deeper in range(self.reach + 1, len(self.unseen)):
            self.unseen[deeper].clear()
        if level < self.reach:
            self.unseen[level + 1].append((start, hidden))

    def truncate(self, length: int) -> None:
        """Forgets, in every level, all ids from position `length` on, as if they had never been read."""
        for level, cache in enumerate(self.caches):
            cache.truncate(max(0, length - level))
            self.unseen[level] = [
                (first, rows[: length - first]) for first, rows in self.unseen[level] if first < length
            ]


class EagerRunner:
    """Runs a model by its own forward.

    prefill_chunk: tokens of a prompt that the backbone reads in one step, so that a long prompt does not hold up the
    others; None reads it at once. A prompt with recordings is read at once in any case.
    """

    def __init__(self, model: SpeechModel, prefill_chunk: int | None = None) -> None:
        config = model.config
        self.model = model
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self.num_blocks: int = config.num_nextn_predict_layers
        self.prefill_chunk = prefill_chunk
        self._cache_specs = _cache_specs(model)
        self._device = self._cache_specs[0].device
        self._is_flash = "flash_attention" in config._attn_implementation  # takes no mask: equal pasts only

    def open(self, request: Request) -> Memory:
        return Memory([KvCache(spec) for spec in self._cache_specs], request.heard)

    @torch.inference_mode()
    def run(self, states: Sequence[SequenceState]) -> list[list[Token]]:
        """One token for each, whatever their plans and lengths; none for one that has more of its prompt to read."""
        plans = [self._plan(state) for state in states]
        tokens: list[list[Token]] = [[] for _ in states]
        for (level, _), members in self._groups(states, plans).items():
            for i in members:
                states[i].memory.reach = plans[i][2].reach
            hidden = self.read(level, [states[i].memory for i in members], [plans[i][1] for i in members])
            ready = [(b, i) for b, i in enumerate(members) if plans[i][2] is not states[i].cursor]
            if ready:
                last = torch.stack([hidden[b, len(plans[i][1]) - 1] for b, i in ready])
                choices = _choose_each(self.model.logits(last), [states[i] for _, i in ready])
                for (_, i), token in zip(ready, choices, strict=True):
                    states[i].cursor = plans[i][2]
                    tokens[i].append((token, level))
        return tokens

    @torch.inference_mode()
    def read(self, level: int, memories: Sequence[Memory], ids: Sequence[Sequence[int]]) -> Tensor:
        """The level's hidden states (B, Q, H) over the next ids of each request, right-padded; all of it is recorded.

        ids: from `first_unread(level)` on; they need not be final (`Memory.confirmed`).
        """
        counts, caches = [len(row) for row in ids], [memory.caches[level] for memory in memories]
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        hidden = self._hidden(level, memories, ids, caches)
        for memory, row, count in zip(memories, hidden, counts, strict=True):
            memory.record(level, row[:count])
        return hidden

    def _plan(self, state: SequenceState) -> tuple[int, list[int], PlanCursor]:
        """The level of the next step, the ids it reads, and the cursor behind it: the same one where no token comes."""
        level, cursor = state.cursor.step()
        ids, chunk = state.ids[state.memory.first_unread(level) :], self.prefill_chunk
        if level == BACKBONE and chunk is not None and len(ids) > chunk and not state.memory.heard:
            return level, ids[:chunk], state.cursor
        return level, ids, cursor

    def _groups(
        self, states: Sequence[SequenceState], plans: Sequence[tuple[int, list[int], PlanCursor]]
    ) -> dict[tuple[int, int], list[int]]:
        """Indices of the states that share a forward, by level and a class of lengths."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (level, ids, _) in enumerate(plans):
            past = states[i].memory.caches[level].length
            length_class = past if self._is_flash else (len(ids) // _FREE_PADDING).bit_length()
            groups.setdefault((level, length_class), []).append(i)
        return groups

    def _hidden(
        self, level: int, memories: Sequence[Memory], ids: Sequence[Sequence[int]], caches: list[KvCache]
    ) -> Tensor:
        """As `read`; the caches keep the new keys, their lengths stay."""
        device, q = self._device, max(map(len, ids))
        starts = [memory.first_unread(level) for memory in memories]
        embeds = self.model.embed(torch.tensor([[*row, *[0] * (q - len(row))] for row in ids], device=device))
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(q, device=device)
        mask = self._mask([cache.length for cache in caches], q)
        cache = caches[0] if len(caches) == 1 else BatchCache(caches, q)
        if level == BACKBONE:
            heard = [memory.heard if start == 0 else () for memory, start in zip(memories, starts, strict=True)]
            embeds = self.model.listen(embeds, heard)
            hidden = self.model.backbone(embeds, positions, attention_mask=mask, cache=cache)
        else:
            previous = pad_sequence(
                [memory.previous_hidden(level)[: len(row)] for memory, row in zip(memories, ids, strict=True)],
                batch_first=True,
            )
            hidden = self.model.block(level - 1, embeds, previous, positions, attention_mask=mask, cache=cache)
        if isinstance(cache, BatchCache):
            cache.write_back([len(row) for row in ids])
        return hidden

    def _mask(self, past: list[int], q: int) -> Tensor | None:
        """Causal mask (B, 1, Q, T), True = attend, aligned to each request's own past; None if all pasts are equal."""
        if min(past) == max(past):
            return None
        ends = torch.tensor(past, device=self._device)[:, None] + torch.arange(q, device=self._device)  # (B, Q)
        return torch.arange(max(past) + q, device=self._device) <= ends[:, None, :, None]


def as_numpy(logits: Tensor) -> Scores:
    """Logits to choose from, in float32 or float64."""
    scores = logits.float() if logits.element_size() < 4 else logits
    array: Scores = scores.cpu().numpy()
    return array


def _choose_each(logits: Tensor, states: Sequence[SequenceState]) -> list[int]:
    """Next tokens from logits (B, V), row by row; a batch of plain greedy requests costs one argmax."""
    if all(state.request.sampling.is_argmax for state in states):
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [state.sampler.choose(row, state.ids) for state, row in zip(states, as_numpy(logits), strict=True)]


def _cache_specs(model: SpeechModel) -> list[CacheSpec]:
    """The caches a request needs: the backbone's, then one per block."""
    config, weight = model.config, next(iter(model.parameters()))
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    backbone = config.num_backbone_layers
    stacks = [(0, backbone)] + [(backbone + k, 1) for k in range(config.num_nextn_predict_layers)]
    return [CacheSpec(first, n, heads, size, weight.dtype, weight.device) for first, n in stacks]
