"""The S3 speech tokenizer v2 of CosyVoice2: any voice at any rate -> codes, 25 per second.

Whisper's features of 30 s at most, two convolutions that halve their rate, transformer layers with rotary positions and
a memory of neighbouring values, then finite scalar quantisation: eight numbers of three levels.

B pieces, T samples, M mel bands, F log-mel frames, N = ceil(F / 4) codes, D width, K digits of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.audio.mel import HOP, SAMPLE_RATE, whisper_log_mel
from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.base import encode_pieces
from vita_mctp.codecs.flow_decoder.layers import length_mask, masked, named, ragged_lengths
from vita_mctp.codecs.released import read_tensors, shapes_of, without_memory
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema, read_json
from vita_mctp.types import AudioCodes, FloatArray, IntArray, Wave

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
REMEDY = (
    "save the state dict of `s3tokenizer.load_model('speech_tokenizer_v2_25hz')` (PyPI s3tokenizer, Apache-2.0) there"
)
FRAMES_PER_CODE = 4
PIECE_FRAMES = 3000
"""Log-mel frames of a piece; VocalNet cuts longer recordings into pieces that know nothing of each other."""
BATCH_SIZE = 16
LEVELS, DIGITS = 3, 8
_LARGEST = 0.999
"""Of what is rounded to a level, so that it never reaches a fourth one."""


class S3Config(Schema):
    """Sizes; the defaults are those of the released model."""

    n_mels: Annotated[int, Field(ge=1, le=1 << 10)] = 128
    n_audio_state: Annotated[int, Field(ge=2, le=1 << 14)] = 1280
    n_audio_head: Annotated[int, Field(ge=1, le=256)] = 20
    n_audio_layer: Annotated[int, Field(ge=1, le=64)] = 6
    n_codebook_size: Literal[6561] = 6561
    fsmn_kernel: Annotated[int, Field(ge=1, le=1 << 10)] = 31
    rope_theta: Annotated[float, Field(ge=1)] = 10_000.0

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.n_audio_state % (2 * self.n_audio_head) or self.fsmn_kernel % 2 == 0:
            raise ValueError(
                f"got n_audio_state {self.n_audio_state}, n_audio_head {self.n_audio_head}, fsmn_kernel "
                f"{self.fsmn_kernel}; wanted heads of an even width and an odd kernel"
            )
        return self


class MemoryAttention(nn.Module):
    """Attention with rotary positions, beside it a convolution over each channel of the values."""

    def __init__(self, config: S3Config) -> None:
        super().__init__()
        width, kernel = config.n_audio_state, config.fsmn_kernel
        self.heads, self.theta = config.n_audio_head, config.rope_theta
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, D) with (B, 1, N) -> (B, N, D)."""
        value = self.value(x)
        rows = (row.unflatten(2, (self.heads, -1)) for row in (self.query(x), self.key(x), value))
        query, key, values = (row.transpose(1, 2) for row in rows)
        cos, sin = self._angles(x.shape[1], query)
        query, key = (row * cos + _half_turned(row) * sin for row in (query, key))
        seen = None if mask is None else mask[:, None].bool()
        mixed = functional.scaled_dot_product_attention(query, key, values, attn_mask=seen)
        own = masked(value.transpose(1, 2), mask)
        memory = masked(self.fsmn_block(own) + own, mask).transpose(1, 2)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2)) + memory
        return y

    def _angles(self, steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
        half = like.shape[-1] // 2
        rates = self.theta ** (-torch.arange(half, device=like.device) / half)
        angles = (torch.arange(steps, device=like.device)[:, None] * rates).repeat(1, 2)
        return angles.cos().to(like), angles.sin().to(like)


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Block(nn.Module):
    def __init__(self, config: S3Config) -> None:
        super().__init__()
        width = config.n_audio_state
        self.attn = MemoryAttention(config)
        self.attn_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask)
        y: Tensor = x + self.mlp(self.mlp_ln(x))
        return y


class Encoder(nn.Module):
    def __init__(self, config: S3Config) -> None:
        super().__init__()
        width = config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_audio_layer))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, M, F) -> (B, N, D). lengths: (B,) frames of each; states behind a piece's end have no meaning."""
        x, own = features, ragged_lengths(lengths, features.shape[2])
        for conv in (self.conv1, self.conv2):
            x = functional.gelu(conv(masked(x, length_mask(own, x, x.shape[2]))))
            own = own and [(length + 1) // 2 for length in own]
        mask, x = length_mask(own, x, x.shape[2]), x.transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        return x


class S3Network(nn.Module):
    """Log-mel features -> codes, under the names of the S3Tokenizer package; the released ONNX graph has others."""

    def __init__(self, config: S3Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.quantizer = named(_codebook=named(project_down=nn.Linear(config.n_audio_state, DIGITS)))

    def levels(self, hidden: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, K) in (-1, 1), before it is rounded."""
        return self.quantizer(hidden).tanh() * _LARGEST

    def codes(self, hidden: Tensor) -> IntArray:
        """(B, N, D) -> (B, N): digits 0, 1, 2 to the base of three, the first one lowest."""
        digits = self.levels(hidden).round().long() + 1
        ids: IntArray = (digits * LEVELS ** torch.arange(digits.shape[2], device=digits.device)).sum(2).cpu().numpy()
        return ids


class S3Tokenizer:
    """Waves -> codes: of each piece of 30 s, ceil(F / 4) of its F whole frames of 10 ms, at least one."""

    name = "s3_tokenizer"
    num_codebooks, sample_rate = 1, SAMPLE_RATE
    frame_rate = Fraction(SAMPLE_RATE, HOP * FRAMES_PER_CODE)

    def __init__(self, config: S3Config, network: S3Network) -> None:
        self.config, self.network, self.codebook_size = config, network, config.n_codebook_size

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> S3Tokenizer:
        """Reads model.safetensors and, for other sizes than the released ones, config.json.

        Raises CheckpointError: a file, key or tensor is missing, damaged or does not fit; the message names it.
        """
        path = folder / CONFIG_FILE
        config = S3Config.parse(read_json(path) if path.is_file() else {}, str(path), CheckpointError)
        network = without_memory(lambda: S3Network(config))
        network.load_state_dict(read_tensors(folder / WEIGHTS_FILE, shapes_of(network), REMEDY), assign=True)
        return cls(config, network.to(device, dtype).eval().requires_grad_(False))

    def encode(self, wave: Wave) -> AudioCodes:
        return self.encode_batch([wave])[0]

    def encode_batch(self, waves: Sequence[Wave], batch_size: int = BATCH_SIZE) -> list[AudioCodes]:
        """The codes of each wave; `batch_size` pieces of them all are computed at once."""
        size, cut = PIECE_FRAMES * HOP, []
        for wave in waves:
            samples = sinc_resample(wave.samples, wave.sample_rate, self.sample_rate)
            cut.append([self.features(samples[at : at + size]) for at in range(0, len(samples), size)])
        found = encode_pieces(cut, self._encode, batch_size)
        return [AudioCodes(each, self.codebook_size, self.frame_rate, self.name) for each in found]

    def features(self, samples: FloatArray) -> Tensor:
        """(T,) at `sample_rate` -> (M, F)."""
        return torch.from_numpy(whisper_log_mel(samples, self.config.n_mels))

    @torch.inference_mode()
    def _encode(self, pieces: Sequence[Tensor]) -> list[IntArray]:
        """(M, F) of each -> its ids."""
        weight = self.network.encoder.conv1.weight
        batch = pad_sequence([piece.T for piece in pieces], batch_first=True).transpose(1, 2).to(weight)
        rows = self.network.codes(self.network.encoder(batch, torch.tensor([piece.shape[1] for piece in pieces])))
        return [row[: -(-piece.shape[1] // FRAMES_PER_CODE)] for row, piece in zip(rows, pieces, strict=True)]
