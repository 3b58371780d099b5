"""The readable levels: any model, by its own forward; requests that read alike share one padded batch.

Legend: B requests, Q tokens of a forward, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.decoding.cache import BatchCache, CacheSpec, KvCache
from vita_mctp.decoding.runners.cycles import CycleRunner, Made, Read
from vita_mctp.decoding.sampling import Scores
from vita_mctp.types import BACKBONE

if TYPE_CHECKING:
    from vita_mctp.models.registry import SpeechModel

_FREE_PADDING = 32
"""Reads below this many tokens share a forward whatever their lengths; longer ones within a factor of two."""


class TorchLevels:
    """What levels whose rows are tensors have in common."""

    def scores(self, logits: Tensor) -> Scores:
        return as_numpy(logits)

    def concatenate(self, rows: list[Tensor]) -> Tensor:
        return torch.cat(rows)

    @staticmethod
    def _drafted(hidden: Sequence[Tensor], logits: Tensor) -> list[Made]:
        """One draft of a block for each read: hidden B rows (Q, H), logits (B, V)."""
        top = logits.float().softmax(-1).max(-1)
        drafts, probabilities = top.indices[:, None].tolist(), top.values[:, None].tolist()
        return [Made(*row) for row in zip(hidden, drafts, logits[:, None], probabilities, strict=True)]


class EagerLevels(TorchLevels):
    """A slot is one cache a level, which grows as it is filled."""

    def __init__(self, model: SpeechModel) -> None:
        config = model.config
        self.model = model
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self.num_blocks: int = config.num_nextn_predict_layers
        self.segments = tuple((k, k + 1) for k in range(self.num_blocks))
        self._cache_specs = _cache_specs(model)
        self._device = self._cache_specs[0].device
        self._is_flash = "flash_attention" in config._attn_implementation  # takes no mask: equal pasts only

    def open(self, capacity: int) -> list[KvCache]:
        return [KvCache(spec) for spec in self._cache_specs]

    @torch.inference_mode()
    def backbone(self, reads: Sequence[Read]) -> list[Made]:
        hidden = self._read(BACKBONE, reads)
        judged = [rows[len(rows) - read.judged :] for read, rows in zip(reads, hidden, strict=True)]
        logits = self.model.logits(torch.cat(judged)).split([read.judged for read in reads])
        tokens = [rows.argmax(-1).tolist() for rows in logits]
        return [Made(*row) for row in zip(hidden, tokens, logits, strict=True)]

    @torch.inference_mode()
    def chain(self, first: int, last: int, reads: Sequence[Read]) -> list[Made]:
        """Of one block: last is first + 1."""
        hidden = self._read(first + 1, reads)
        return self._drafted(hidden, self.model.logits(torch.stack([rows[-1] for rows in hidden])))

    def _read(self, level: int, reads: Sequence[Read]) -> list[Tensor]:
        """Each read's hidden states (Q, H); its slot's cache keeps the new keys and values."""
        hidden: dict[int, Tensor] = {}
        for members in self._groups(reads):
            rows = self._forward(level, [reads[i] for i in members])
            hidden.update((i, row[: len(reads[i].ids)]) for i, row in zip(members, rows, strict=True))
        return [hidden[i] for i in range(len(reads))]

    def _groups(self, reads: Sequence[Read]) -> list[list[int]]:
        """Indices of the reads that share a forward, by a class of lengths."""
        groups: dict[int, list[int]] = {}
        for i, read in enumerate(reads):
            length_class = read.start if self._is_flash else (len(read.ids) // _FREE_PADDING).bit_length()
            groups.setdefault(length_class, []).append(i)
        return list(groups.values())

    def _forward(self, level: int, reads: Sequence[Read]) -> Tensor:
        """Hidden states (B, Q, H), right-padded."""
        device, counts, past = self._device, [len(read.ids) for read in reads], [read.start for read in reads]
        caches, q = [read.slot[level] for read in reads], max(counts)
        for cache, start, count in zip(caches, past, counts, strict=True):
            cache.truncate(start)
            cache.reserve(count)
        ids = pad_sequence([torch.from_numpy(read.ids) for read in reads], batch_first=True).to(device)
        embeds = self.model.embed(ids)
        positions = torch.tensor(past, device=device)[:, None] + torch.arange(level, level + q, device=device)
        cache = caches[0] if len(caches) == 1 else BatchCache(caches, q)
        extra: dict[str, Any] = {"attention_mask": self._mask(past, q), "cache": cache}
        if level == BACKBONE:
            embeds = self.model.listen(embeds, [read.heard for read in reads])
            hidden = self.model.backbone(embeds, positions, **extra)
        else:
            previous = pad_sequence([read.hidden for read in reads], batch_first=True)
            hidden = self.model.block(level - 1, embeds, previous, positions, **extra)
        if isinstance(cache, BatchCache):
            cache.write_back(counts)
        for cache, start, count in zip(caches, past, counts, strict=True):
            cache.length = start + count
        return hidden

    def _mask(self, past: list[int], q: int) -> Tensor | None:
        """Causal mask (B, 1, Q, T), True = attend, aligned to each request's own past; None if all pasts are equal."""
        if min(past) == max(past):
            return None
        ends = torch.tensor(past, device=self._device)[:, None] + torch.arange(q, device=self._device)  # (B, Q)
        return torch.arange(max(past) + q, device=self._device) <= ends[:, None, :, None]


class EagerRunner(CycleRunner):
    """Cycles of a model's own forward."""

    def __init__(self, model: SpeechModel, prefill_chunk: int | None = None) -> None:
        super().__init__(EagerLevels(model), prefill_chunk)


def as_numpy(logits: Tensor) -> Scores:
    """Logits to choose from, in float32 or float64."""
    scores = logits.float() if logits.element_size() < 4 else logits
    array: Scores = scores.cpu().numpy()
    return array


def _cache_specs(model: SpeechModel) -> list[CacheSpec]:
    """The caches a slot needs: the backbone's, then one per block."""
    config, weight = model.config, next(iter(model.parameters()))
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    backbone = config.num_backbone_layers
    stacks = [(0, backbone)] + [(backbone + k, 1) for k in range(config.num_nextn_predict_layers)]
    return [CacheSpec(first, n, heads, size, weight.dtype, weight.device) for first, n in stacks]
