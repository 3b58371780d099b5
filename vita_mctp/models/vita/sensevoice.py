"""SenseVoice's audio encoder and the projector behind it, with the tensor names of the released VITA-Audio-Plus.

Self-attention with a memory: each layer adds a depthwise convolution of its values to what it attends to (SAN-M,
arXiv 2006.01713). There is no dropout here: the encoder is frozen in every stage, and the reference's random hearing of
the same recording teaches the language model nothing.

Legend: B recordings, T frames, S = 4 + T rows (queries first), D features of a frame, C channels of the encoder,
A heads, H hidden size of the language model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_mctp.errors import ConfigError

_QUERY_IDS = (0, 1, 2, 15)
"""Rows of `embed` put before the frames: any language, event, emotion, no text normalisation."""

NUM_QUERIES = len(_QUERY_IDS)

_NUM_QUERY_EMBEDDINGS = 16
_LONGEST_WAVE = 10_000.0


@dataclass(frozen=True)
class SenseVoiceSizes:
    """Sizes of an encoder, named as FunASR names them; defaults: SenseVoiceSmall."""

    input_size: int = 560
    output_size: int = 512
    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 50
    tp_blocks: int = 20
    kernel_size: int = 11
    ctc_size: int = 25055

    def __post_init__(self) -> None:
        if self.output_size % self.attention_heads:
            raise ConfigError(f"{self.attention_heads} attention heads do not divide {self.output_size} channels")
        if self.kernel_size % 2 == 0 or self.num_blocks < 1:
            raise ConfigError(
                f"an encoder wants an odd kernel and at least one block, got {self.kernel_size} and {self.num_blocks}"
            )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SenseVoiceSizes:
        """Raises ConfigError for a name that is no size."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"audio_config: {error}; known: {', '.join(cls.__dataclass_fields__)}") from None

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> SenseVoiceSizes:
        """The sizes of an encoder whose tensors, under this module's names, have these shapes.

        Released configs do not say them. The number of heads leaves no trace in a shape and is SenseVoiceSmall's.

        Raises:
            KeyError: a tensor that tells a size is missing.
        """
        first = "encoder.encoders0.0"
        return cls(
            input_size=shapes["embed.weight"][1],
            output_size=shapes[f"{first}.self_attn.linear_out.weight"][0],
            linear_units=shapes[f"{first}.feed_forward.w_1.weight"][0],
            num_blocks=1 + _num_layers(shapes, "encoder.encoders"),
            tp_blocks=_num_layers(shapes, "encoder.tp_encoders"),
            kernel_size=shapes[f"{first}.self_attn.fsmn_block.weight"][2],
            ctc_size=shapes["ctc.ctc_lo.weight"][0],
        )


def _num_layers(shapes: Mapping[str, Sequence[int]], stack: str) -> int:
    numbers = (re.match(rf"{re.escape(stack)}\.(\d+)\.", name) for name in shapes)
    return max((int(number.group(1)) + 1 for number in numbers if number), default=0)


class SenseVoice(nn.Module):
    """Frames (B, T, D) -> rows (B, 4 + T, C), all of them kept."""

    def __init__(self, sizes: SenseVoiceSizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(_NUM_QUERY_EMBEDDINGS, sizes.input_size)
        self.encoder = _Encoder(sizes)
        self.ctc = nn.ModuleDict({"ctc_lo": nn.Linear(sizes.output_size, sizes.ctc_size)})  # released and unused

    def forward(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """lengths: frames of each recording; rows behind 4 + length are meaningless."""
        queries = self.embed(torch.tensor(_QUERY_IDS, device=frames.device))
        rows = torch.cat([queries.expand(len(frames), -1, -1), frames.to(queries.dtype)], dim=1)
        return self.encoder(rows, _mask([length + NUM_QUERIES for length in lengths], rows))


class AudioProjection(nn.Module):
    """Encoder rows (..., C) -> rows (..., H) in the place of embeddings."""

    def __init__(self, encoder_size: int, hidden_size: int) -> None:
        super().__init__()
        self.pre_proj_layernorm = nn.LayerNorm(encoder_size)
        self.mlp = nn.Sequential(
            nn.Linear(encoder_size, hidden_size, bias=False),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size, bias=False),
        )

    def forward(self, rows: Tensor) -> Tensor:
        return self.mlp(self.pre_proj_layernorm(rows))


class _Encoder(nn.Module):
    def __init__(self, sizes: SenseVoiceSizes) -> None:
        super().__init__()
        width = sizes.output_size
        self.scale = width**0.5
        self.encoders0 = nn.ModuleList([_Layer(sizes.input_size, sizes)])
        self.encoders = nn.ModuleList(_Layer(width, sizes) for _ in range(sizes.num_blocks - 1))
        self.tp_encoders = nn.ModuleList(_Layer(width, sizes) for _ in range(sizes.tp_blocks))
        self.after_norm = nn.LayerNorm(width)
        self.tp_norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """rows (B, S, D) -> (B, S, C). mask (B, S): False behind a recording's end; None: nowhere."""
        rows = rows * self.scale + _sinusoids(rows)
        for layer in (*self.encoders0, *self.encoders):
            rows = layer(rows, mask)
        rows = self.after_norm(rows)
        for layer in self.tp_encoders:
            rows = layer(rows, mask)
        return self.tp_norm(rows)


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward; a layer that changes the width has no residual around its attention."""

    def __init__(self, input_size: int, sizes: SenseVoiceSizes) -> None:
        super().__init__()
        width = sizes.output_size
        self.norm1 = nn.LayerNorm(input_size)
        self.norm2 = nn.LayerNorm(width)
        self.self_attn = _MemoryAttention(input_size, sizes)
        self.feed_forward = nn.ModuleDict(
            {"w_1": nn.Linear(width, sizes.linear_units), "w_2": nn.Linear(sizes.linear_units, width)}
        )
        self.has_residual = input_size == width

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.self_attn(self.norm1(rows), mask)
        rows = rows + attended if self.has_residual else attended
        w_1, w_2 = self.feed_forward["w_1"], self.feed_forward["w_2"]
        return rows + w_2(F.relu(w_1(self.norm2(rows))))


class _MemoryAttention(nn.Module):
    def __init__(self, input_size: int, sizes: SenseVoiceSizes) -> None:
        super().__init__()
        width, kernel = sizes.output_size, sizes.kernel_size
        self.num_heads = sizes.attention_heads
        self.linear_q_k_v = nn.Linear(input_size, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.linear_q_k_v(rows).chunk(3, dim=-1)
        keys = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        attended = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v), attn_mask=keys)
        return self.linear_out(attended.transpose(1, 2).flatten(2)) + self._memory(v, mask)

    def _heads(self, rows: Tensor) -> Tensor:
        """(B, S, C) -> (B, A, S, C / A)."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _memory(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """values (B, S, C) and their neighbourhoods, as if nothing stood behind a recording's end."""
        present = 1 if mask is None else mask[..., None].to(values)
        values = values * present
        return (self.fsmn_block(values.transpose(1, 2)).transpose(1, 2) + values) * present


def _mask(lengths: Sequence[int], rows: Tensor) -> Tensor | None:
    """(B, S) bool, True where a recording has a row; None if all are as long as the longest."""
    if min(lengths) == rows.shape[1]:
        return None
    return torch.arange(rows.shape[1], device=rows.device) < torch.tensor(lengths, device=rows.device)[:, None]


def _sinusoids(rows: Tensor) -> Tensor:
    """(S, D) for rows (B, S, D): sines, then cosines, of positions counted from 1."""
    _, length, size = rows.shape
    step = math.log(_LONGEST_WAVE) / (size // 2 - 1)
    frequencies = torch.exp(torch.arange(size // 2, device=rows.device, dtype=torch.float32) * -step)
    angles = torch.arange(1, length + 1, device=rows.device, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(rows.dtype)
