"""VITA-Audio-Plus: SenseVoice's audio encoder, a projector, and the language model that they splice recordings into.

An encoder and a projector turn a recording's N frames into N + 4 rows, which overwrite the embeddings of as many
placeholder ids on their way into the backbone. MCTP blocks see the placeholders' own embeddings, in training as in
decoding: sound reaches them through the backbone's hidden states alone. It speaks audio codes, as VITA-Audio does.

The encoder's self-attention has a memory: each layer adds a depthwise convolution of its values to what it attends to
(SAN-M, arXiv 2006.01713). There is no dropout: the encoder is frozen in every stage.

B rows or recordings, T positions of a row, S = 4 + N rows of a recording (queries first), D features of a frame,
C channels and A heads of the encoder, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Model

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.strict import make_known
from vita_mctp.models.vita.configuration import VitaMctpPlusConfig
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM
from vita_mctp.models.vita.values import ENCODER_PREFIX, SenseVoiceSizes
from vita_mctp.types import AudioFeatures, HeardAudio

_HOW = "download model.pt of FunAudioLLM/SenseVoiceSmall"

_QUERY_IDS = (0, 1, 2, 15)
"""Rows of `embed` put before the frames: any language, event, emotion, no text normalisation."""

NUM_QUERIES = len(_QUERY_IDS)

_NUM_QUERY_EMBEDDINGS = 16
_LONGEST_WAVE = 10_000.0


class _AudioBackbone(Qwen2Model):
    def __init__(self, config: VitaMctpPlusConfig) -> None:
        super().__init__(config)
        sizes = config.audio_sizes
        self.audio_model = nn.ModuleDict({"model": SenseVoice(sizes)})
        self.audio_projection = AudioProjection(sizes.output_size, config.hidden_size)
        self.post_init()


class VitaMctpPlusForCausalLM(VitaMctpForCausalLM):
    """`VitaMctpForCausalLM` whose backbone also hears recordings, with the released checkpoints' parameter names."""

    config: VitaMctpPlusConfig
    config_class = VitaMctpPlusConfig
    backbone_class = _AudioBackbone
    default_detach = "always"

    def encode(self, recordings: Sequence[AudioFeatures]) -> list[Tensor]:
        """For each recording of T frames its rows (T + 4, H), whatever it is encoded together with.

        Raises:
            ConfigError: frames of another size than the encoder's.
        """
        size, weight = self.config.audio_sizes.input_size, self.lm_head.weight
        for recording in recordings:
            if recording.frames.shape[1] != size:
                raise ConfigError(f"the audio encoder wants frames of {size} numbers, got {recording.frames.shape[1]}")
            if recording.positions != len(recording.frames) + NUM_QUERIES:
                raise ConfigError(
                    f"the audio encoder gives {NUM_QUERIES} rows more than frames; take its own extractor"
                )
        dtype = getattr(torch, self.config.audio_feature_dtype)
        frames = [torch.tensor(recording.frames, device=weight.device, dtype=dtype) for recording in recordings]
        encoded = self.model.audio_model["model"](pad_sequence(frames, batch_first=True), [len(f) for f in frames])
        rows = self.model.audio_projection(encoded)
        return [row[: recording.positions] for row, recording in zip(rows, recordings, strict=True)]

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        """embeds (B, T, H) with the rows of each row's recordings at their positions.

        Raises:
            ValueError: a recording that reaches over the end of its row.
            ConfigError: as `encode`.
        """
        recordings = [(row, audio) for row, audios in enumerate(heard) for audio in audios]
        if not recordings:
            return embeds + self._silence() if torch.is_grad_enabled() and self._encoder_trains() else embeds
        if max(audio.end for _, audio in recordings) > embeds.shape[1]:
            raise ValueError(f"a recording ends behind the last of {embeds.shape[1]} positions")
        spliced = embeds.clone()
        encoded = self.encode([audio.features for _, audio in recordings])
        for (row, audio), rows in zip(recordings, encoded, strict=True):
            spliced[row, audio.start : audio.end] = rows.to(spliced.dtype)
        return spliced

    def _encoder_trains(self) -> bool:
        parts = (self.model.audio_model, self.model.audio_projection)
        return any(weight.requires_grad for part in parts for weight in part.parameters())

    def _silence(self) -> Tensor:
        """A zero that all parameters of encoder and projector are part of: distributed training waits for each."""
        frame = np.ones((1, self.config.audio_sizes.input_size), np.float32)
        return self.encode([AudioFeatures(frame, 1 + NUM_QUERIES)])[0].sum() * 0.0


make_known(VitaMctpPlusForCausalLM)


def join_encoder(backbone: Any, encoder: Mapping[str, Tensor], source: Path, seed: int) -> VitaMctpPlusForCausalLM:
    """A VITA-Audio without blocks, SenseVoiceSmall's tensors, and a projector drawn as transformers draws layers.

    source: the file that the tensors come from, for errors. Raises CheckpointError for tensors that are no encoder.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.items()}
    try:
        sizes = SenseVoiceSizes.from_shapes(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{source} holds no SenseVoice encoder ({error!r}); {_HOW}") from error
    own = ("model_type", "mtp_loss_weight", "speech_token_offset")
    kept = {name: value for name, value in backbone.config.to_dict().items() if name not in own}
    config = VitaMctpPlusConfig(**kept, audio_config=sizes.model_dump())
    with torch.device("meta"):
        model = VitaMctpPlusForCausalLM(config)
    names = model.model.audio_model["model"].state_dict()
    for name, tensor in names.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise CheckpointError(f"{source} lacks {name} of shape {tuple(tensor.shape)}; {_HOW}")
    weights = {ENCODER_PREFIX + name: encoder[name].to(backbone.dtype) for name in names}
    weights |= backbone.state_dict()
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = backbone.generation_config
    projector = model.model.audio_projection.to_empty(device="cpu").to(backbone.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
    return model


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
    """Encoder rows (..., C) -> rows (..., H) that stand for embeddings."""

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
