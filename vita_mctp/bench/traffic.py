"""How many bytes decoding has to read: the floor under its time where nothing is computed twice and nothing is cached.

A step of the backbone or of a block reads that part's weights, the shared head, and the keys and values of every token
it has read before. Embedding rows, activations and what is written are left out; they are small beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vita_mctp.bench.subjects import Subject
from vita_mctp.checkpoints.placement import memory_needed
from vita_mctp.checkpoints.quantization import Quantization
from vita_mctp.decoding.plan import Mode, PlanCursor

_PART = re.compile(r"model\.layers\.(?P<layer>\d+)\.|mtp_(?:projs|embed_norms|hidden_norms)\.(?P<block>\d+)\.")


@dataclass(frozen=True)
class Traffic:
    """weights, cache_per_token: bytes by item + 1, backbone first, then each block."""

    weights: tuple[int, ...]
    cache_per_token: tuple[int, ...]

    @classmethod
    def of(cls, subject: Subject) -> Traffic:
        config = subject.model.config
        blocks, depth = config.num_nextn_predict_layers, config.num_backbone_layers
        parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(blocks + 1)]
        for name, weight in subject.model.named_parameters():
            if found := _PART.match(name):
                layer = found["layer"]
                level = int(found["block"]) + 1 if layer is None else max(0, int(layer) - depth + 1)
                parts[level][name] = tuple(weight.shape)
        shared = {"lm_head.weight": tuple(subject.model.lm_head.weight.shape)}
        weights = tuple(_bytes(part | shared, subject, subject.quantize) for part in parts)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_layer = 2 * config.num_key_value_heads * size * subject.dtype.itemsize
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


def _bytes(shapes: Mapping[str, tuple[int, ...]], subject: Subject, quantize: Quantization | None) -> int:
    return memory_needed(dict(shapes), subject.dtype, quantize)
