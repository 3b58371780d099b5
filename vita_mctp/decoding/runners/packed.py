"""Levels of a Qwen2 model in bfloat16 on a CPU: every product by oneDNN, over weights that it packed for itself.

The products of torch's own linear layers read bfloat16 weights at less than half of the memory's rate. Query, key and
value are one product, gate and up another; caches are allocated once. Rows of all requests share the products.

Legend: N rows of all reads, Q rows of one, H hidden size, D head size, G key/value heads, T keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vita_mctp.decoding.runners.cycles import Made, Read
from vita_mctp.decoding.runners.eager import TorchLevels
from vita_mctp.decoding.runners.onnx import level_shape

_ROWS = 1
"""Rows that weights are packed for; any other number can be computed with them, 11 as fast as if packed for 16."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A decoder layer; all but norms and bias are packed."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class PackedLevels(TorchLevels):
    """A slot is the keys and values (2, G, capacity, D) of each layer.

    config: config.json's values. weights: by the checkpoint's names; the packed ones are a second copy.

    Raises:
        ConfigError: something that this does not compute.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        shape = self.shape = level_shape(config)
        self.vocab_size, self.max_positions, self.num_blocks = shape.vocab_size, shape.max_positions, shape.blocks
        self.segments = tuple((k, k + 1) for k in range(shape.blocks))
        self._embeddings, self._norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self._head = _pack(weights.get("lm_head.weight", self._embeddings))
        self._layers = [_layer(weights, i) for i in range(shape.backbone_layers + shape.blocks)]
        names = ("mtp_embed_norms", "mtp_hidden_norms", "mtp_projs")
        blocks = [[weights[f"{name}.{k}.weight"] for name in names] for k in range(shape.blocks)]
        self._blocks = [(embed_norm, hidden_norm, _pack(proj)) for embed_norm, hidden_norm, proj in blocks]
        self._cos, self._sin = self._rotary_tables()

    def open(self, capacity: int) -> list[Tensor]:
        shape = self.shape
        size = (2, shape.kv_heads, capacity, shape.head_size)
        return [torch.empty(size, dtype=self._norm.dtype) for _ in self._layers]

    @torch.inference_mode()
    def backbone(self, reads: Sequence[Read]) -> list[Made]:
        x = F.embedding(torch.cat([torch.from_numpy(read.ids) for read in reads]), self._embeddings)
        hidden = self._run(range(self.shape.backbone_layers), x, reads, 0)
        judged = [rows[len(rows) - read.judged :] for read, rows in zip(reads, hidden, strict=True)]
        logits = _linear(torch.cat(judged), self._head).split([read.judged for read in reads])
        return [Made(rows, scores.argmax(-1).tolist(), scores) for rows, scores in zip(hidden, logits, strict=True)]

    @torch.inference_mode()
    def chain(self, first: int, last: int, reads: Sequence[Read]) -> list[Made]:
        """Of one block: last is first + 1."""
        embed_norm, hidden_norm, proj = self._blocks[first]
        embeds = F.embedding(torch.cat([torch.from_numpy(read.ids) for read in reads]), self._embeddings)
        previous = torch.cat([read.hidden for read in reads])
        x = _linear(torch.cat([self._rms(embeds, embed_norm), self._rms(previous, hidden_norm)], -1), proj)
        layer = self.shape.backbone_layers + first
        hidden = self._run(range(layer, layer + 1), x, reads, first + 1)
        return self._drafted(hidden, _linear(torch.stack([rows[-1] for rows in hidden]), self._head))

    def _run(self, layers: range, x: Tensor, reads: Sequence[Read], level: int) -> tuple[Tensor, ...]:
        """Decoder layers and the final norm over x (N, H), the reads' rows behind each other."""
        shape, counts = self.shape, [len(read.ids) for read in reads]
        positions = torch.cat(
            [torch.arange(read.start, read.start + n) + level for read, n in zip(reads, counts, strict=True)]
        )
        cos, sin = self._cos[positions], self._sin[positions]
        masks = [self._mask(read.start, n) for read, n in zip(reads, counts, strict=True)]
        turned = shape.heads + shape.kv_heads
        for i in layers:
            layer = self._layers[i]
            qkv = _linear(self._rms(x, layer.input_norm), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(len(x), -1, shape.head_size)
            qk = qkv[:, :turned]
            qk = qk * cos + qk.roll(shape.head_size // 2, -1) * sin
            pieces = zip(reads, qk.split(counts), qkv[:, turned:].split(counts), masks, strict=True)
            attended = [self._attend(read.slot[i], read.start, *piece) for read, *piece in pieces]
            x = x + _linear(torch.cat(attended), layer.out)
            gate, up = _linear(self._rms(x, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            x = x + _linear(F.silu(gate) * up, layer.down)
        return self._rms(x, self._norm).split(counts)

    def _attend(self, cache: Tensor, start: int, qk: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention (Q, heads x D) of one read; query heads that share keys are rows beside each other."""
        heads, end = self.shape.heads, start + len(v)
        cache[0, :, start:end] = qk[:, heads:].transpose(0, 1)
        cache[1, :, start:end] = v.transpose(0, 1)
        keys, values = cache[:, None, :, :end]
        queries = qk[:, :heads].transpose(0, 1).reshape(1, self.shape.kv_heads, -1, self.shape.head_size)
        out = F.scaled_dot_product_attention(queries, keys, values, mask)
        return out.view(heads, len(v), -1).transpose(0, 1).reshape(len(v), -1)

    def _mask(self, start: int, rows: int) -> Tensor | None:
        """Which keys (T) each query head's row of a group sees."""
        if rows == 1:
            return None
        seen = torch.ones(rows, start + rows, dtype=torch.bool).tril(start)
        return seen.repeat(self.shape.heads // self.shape.kv_heads, 1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.shape.rms_eps)

    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine (positions, 1, D); the sine's sign is that of the half it turns."""
        shape, dtype = self.shape, self._norm.dtype
        exponents = torch.arange(0, shape.head_size, 2, dtype=torch.int64).float() / shape.head_size
        angles = torch.arange(shape.max_positions + shape.blocks)[:, None] * (1.0 / shape.rope_theta**exponents)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def _layer(weights: Mapping[str, Tensor], index: int) -> _Layer:
    def part(name: str) -> Tensor:
        return weights[f"model.layers.{index}.{name}"]

    return _Layer(
        input_norm=part("input_layernorm.weight"),
        qkv=_pack(torch.cat([part(f"self_attn.{name}_proj.weight") for name in "qkv"])),
        qkv_bias=torch.cat([part(f"self_attn.{name}_proj.bias") for name in "qkv"]),
        out=_pack(part("self_attn.o_proj.weight")),
        mlp_norm=part("post_attention_layernorm.weight"),
        gate_up=_pack(torch.cat([part(f"mlp.{name}_proj.weight") for name in ("gate", "up")])),
        down=_pack(part("mlp.down_proj.weight")),
    )


def _pack(weight: Tensor) -> Tensor:
    """weight (out, in) in the order that oneDNN's product reads it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
