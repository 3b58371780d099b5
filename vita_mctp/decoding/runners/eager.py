"""The readable runner: any model with levels, one token a step, requests that share a level in one padded batch.

A step: take every request's next level; run the requests that share one as one padded batch, the backbone over every
token it has not seen, level k over every hidden state of level k - 1 that it has not seen; choose. VITA-Audio paper,
section 3.2. Nothing is stored on the model.

Legend: B requests, Q tokens of a forward, T keys it attends to, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.decoding.cache import BatchCache, CacheSpec, KvCache
from vita_mctp.decoding.modes import PlanCursor
from vita_mctp.decoding.request import Request, SequenceState
from vita_mctp.decoding.runners import Token
from vita_mctp.decoding.sampling import Scores
from vita_mctp.types import BACKBONE, HeardAudio

_FREE_PADDING = 32
"""Catch-ups below this many tokens share a forward whatever their lengths; longer ones within a factor of two."""


class LevelModel(Protocol):
    """What this runner needs of a model: a backbone (level 0), blocks (levels 1 to K), shared embeddings and head.

    config: vocab_size, max_position_embeddings, num_nextn_predict_layers (K), num_backbone_layers, num_attention_heads,
    num_key_value_heads, hidden_size, and perhaps head_dim, in transformers' meaning.
    """

    config: Any

    def parameters(self) -> Any: ...

    def embed(self, ids: Tensor) -> Tensor:
        """(B, Q) -> (B, Q, H)."""
        ...

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        """Embeddings with each row's recordings put in."""
        ...

    def backbone(self, embeds: Tensor, position_ids: Tensor, **cache_and_mask: Any) -> Tensor: ...

    def block(
        self, k: int, embeds: Tensor, previous: Tensor, position_ids: Tensor, **cache_and_mask: Any
    ) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, H) -> (B, V)."""
        ...


@dataclass(slots=True, eq=False)
class Memory:
    """What one request remembers: by level, its keys and values, and the hidden states it has not read yet.

    caches: their lengths differ by design. unseen: (tokens, H) pieces of the level before; none for the backbone.
    """

    caches: list[KvCache]
    unseen: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.unseen = [[] for _ in self.caches]

    def first_unread(self, level: int) -> int:
        """The position of the first token that `level` has not processed; level k starts at position k."""
        return self.caches[level].length + level

    def previous_hidden(self, level: int) -> Tensor:
        """The hidden states (tokens, H) of the level before, one position behind the tokens that `level` is to read."""
        pieces = self.unseen[level]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def record(self, level: int, reach: int, hidden: Tensor) -> None:
        """Counts a level's tokens as read; keeps its hidden states (tokens, H) if the plan can call the next level."""
        self.caches[level].length += len(hidden)
        self.unseen[level].clear()
        for deeper in range(reach + 1, len(self.unseen)):
            self.unseen[deeper].clear()
        if level < reach:
            self.unseen[level + 1].append(hidden)


class EagerRunner:
    """Runs a `LevelModel` by its own forward.

    prefill_chunk: tokens of a prompt that the backbone reads in one step, so that a long prompt does not hold up the
    others; None reads it at once. A prompt with recordings is read at once in any case.
    """

    def __init__(self, model: LevelModel, prefill_chunk: int | None = None) -> None:
        config = model.config
        self.model = model
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self.num_blocks: int = config.num_nextn_predict_layers
        self.prefill_chunk = prefill_chunk
        self._cache_specs = _cache_specs(model)
        self._is_flash = "flash_attention" in config._attn_implementation  # takes no mask: equal pasts only

    @property
    def device(self) -> torch.device:
        return self._cache_specs[0].device

    def open(self, request: Request) -> Memory:
        return Memory([KvCache(spec) for spec in self._cache_specs])

    @torch.inference_mode()
    def run(self, states: Sequence[SequenceState]) -> list[list[Token]]:
        """One token for each, whatever their plans and lengths."""
        plans = [state.cursor.step() for state in states]
        tokens: list[list[Token]] = [[] for _ in states]
        ready = [i for i, (level, _) in enumerate(plans) if level != BACKBONE or not self._read_ahead(states[i])]
        for (level, _), members in self._groups([(i, states[i], plans[i][0]) for i in ready]).items():
            group = [states[i] for i in members]
            logits = self._forward(level, group, [plans[i][1] for i in members])
            for i, token in zip(members, _choose_each(logits, group), strict=True):
                tokens[i].append((token, level))
        return tokens

    def _read_ahead(self, state: SequenceState) -> bool:
        """Reads a piece of a long prompt; False when the rest is to be read with the step."""
        start, chunk = state.memory.first_unread(BACKBONE), self.prefill_chunk
        if chunk is None or state.request.heard or len(state.ids) - start <= chunk:
            return False
        self._read(BACKBONE, [state], [start], [chunk], [state.cursor])
        return True

    def _groups(self, members: Sequence[tuple[int, SequenceState, int]]) -> dict[tuple[int, int], list[int]]:
        """Of (index, state, level), the indices that share a forward, by level and a class of lengths."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, state, level in members:
            if self._is_flash:
                length_class = state.memory.caches[level].length
            else:
                length_class = ((len(state.ids) - state.memory.first_unread(level)) // _FREE_PADDING).bit_length()
            groups.setdefault((level, length_class), []).append(i)
        return groups

    def _forward(self, level: int, states: Sequence[SequenceState], cursors: Sequence[PlanCursor]) -> Tensor:
        """Run `level` over what it has not seen of each state; return the logits (B, V) behind each last token."""
        starts = [state.memory.first_unread(level) for state in states]
        counts = [len(state.ids) - start for state, start in zip(states, starts, strict=True)]
        hidden = self._read(level, states, starts, counts, cursors)
        return self.model.logits(torch.stack([row[count - 1] for row, count in zip(hidden, counts, strict=True)]))

    def _read(
        self,
        level: int,
        states: Sequence[SequenceState],
        starts: list[int],
        counts: list[int],
        cursors: Sequence[PlanCursor],
    ) -> Tensor:
        """The level's hidden states (B, Q, H) over so many tokens of each state, all of it recorded."""
        caches = [state.memory.caches[level] for state in states]
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        hidden = self._hidden(level, states, starts, counts, caches)
        for row, state, cursor, count in zip(hidden, states, cursors, counts, strict=True):
            state.memory.record(level, cursor.reach, row[:count])
            state.cursor = cursor
        return hidden

    def _hidden(
        self, level: int, states: Sequence[SequenceState], starts: list[int], counts: list[int], caches: list[KvCache]
    ) -> Tensor:
        """The level's hidden states (B, Q, H) over its unread tokens, right-padded; the caches keep the new keys."""
        device, q = self.device, max(counts)
        ids = [
            state.ids[start : start + count] + [0] * (q - count)
            for state, start, count in zip(states, starts, counts, strict=True)
        ]
        embeds = self.model.embed(torch.tensor(ids, device=device))
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(q, device=device)
        mask = self._mask([cache.length for cache in caches], q)
        cache = caches[0] if len(caches) == 1 else BatchCache(caches, q)
        if level == BACKBONE:
            heard = [state.request.heard if start == 0 else () for state, start in zip(states, starts, strict=True)]
            embeds = self.model.listen(embeds, heard)
            hidden = self.model.backbone(embeds, positions, attention_mask=mask, cache=cache)
        else:
            previous = pad_sequence([state.memory.previous_hidden(level) for state in states], batch_first=True)
            hidden = self.model.block(level - 1, embeds, previous, positions, attention_mask=mask, cache=cache)
        if isinstance(cache, BatchCache):
            cache.write_back(counts)
        return hidden

    def _mask(self, past: list[int], q: int) -> Tensor | None:
        """Causal mask (B, 1, Q, T), True = attend, aligned to each request's own past; None if all pasts are equal."""
        if min(past) == max(past):
            return None
        ends = torch.tensor(past, device=self.device)[:, None] + torch.arange(q, device=self.device)  # (B, Q)
        return torch.arange(max(past) + q, device=self.device) <= ends[:, None, :, None]


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


def _cache_specs(model: LevelModel) -> list[CacheSpec]:
    """The caches a request needs: the backbone's, then one per block."""
    config, weight = model.config, next(iter(model.parameters()))
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    backbone = config.num_backbone_layers
    stacks = [(0, backbone)] + [(backbone + k, 1) for k in range(config.num_nextn_predict_layers)]
    return [CacheSpec(first, n, heads, size, weight.dtype, weight.device) for first, n in stacks]
