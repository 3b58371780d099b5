"""The GLM-4-Voice speech tokenizer: any voice at any rate -> codes, 12.5 per second.

Its network is Whisper's encoder with causal convolutions and block-causal attention, then a codebook. Frames attend
both ways inside their block and to every earlier block, so each block is computed from itself and the keys and values
of those before it, in a stream as in a whole recording, and needs no causal mask. All is computed as the released
system does it: torchaudio's resampling, segments of 30 s that know nothing of each other, and zeros behind each segment
of a batch up to the longest.

B segments, T samples, L samples of a batch's longest segment in whole codes, M mel bands, F log-mel frames, E = F / 2
encoder frames, P of them already encoded, N = E / pooling codes, D width, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.audio.mel import WhisperLogMel
from vita_mctp.audio.resample import sinc_resampler
from vita_mctp.codecs.glm4_voice.config import (
    CONV_STRIDE,
    TOKENIZER_REMEDY,
    EncoderConfig,
    FeatureConfig,
    TokenizerConfig,
    load_tokenizer_config,
)
from vita_mctp.codecs.released import check_shapes, shapes_of, without_memory
from vita_mctp.errors import CheckpointError
from vita_mctp.types import AudioCodes, FloatArray, IntArray, Wave

WEIGHTS_FILE = "model.safetensors"
PREFIX = "model.encoder."
"""Before each name in files of the Whisper that the tokenizer was trained in."""
BATCH_SIZE = 128
"""Segments that the released system computes at once."""

KERNEL = 3
CONTEXT_FRAMES = (KERNEL - 1) * (1 + 1)
"""Log-mel frames before an encoder frame's own that both convolutions, of strides 1 and then 2, reach back to."""


class KeysValues(NamedTuple):
    """What one layer's attention keeps of frames seen, both (B, H, P, D / H)."""

    keys: Tensor
    values: Tensor


Past = tuple[KeysValues, ...]
"""One entry per layer; empty: nothing has been seen."""


class BlockAttention(nn.Module):
    """Whisper's attention, in which a query sees all of its block and all before it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads, self.block = config.encoder_attention_heads, config.quantize_causal_block_size
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """x (B, E, D) from a block's start -> the same shape, and the keys and values of x alone.

        valid: (B, P + E) bool, frames that may be attended to; None = all.
        """
        query, new = self._heads(self.q_proj(x)), KeysValues(self._heads(self.k_proj(x)), self._heads(self.v_proj(x)))
        keys, values = new if past is None else (torch.cat(pair, dim=2) for pair in zip(past, new, strict=True))
        start = keys.shape[2] - x.shape[1]
        blocks = []
        for begin in range(0, x.shape[1], self.block):
            seen = min(start + begin + self.block, keys.shape[2])
            mask = None if valid is None else valid[:, None, None, :seen]
            attended = functional.scaled_dot_product_attention(
                query[:, :, begin : begin + self.block], keys[:, :, :seen], values[:, :, :seen], mask
            )
            blocks.append(attended)
        joined = torch.cat(blocks, dim=2).transpose(1, 2).flatten(2)
        return self.out_proj(joined), new

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention, then two linear layers around a GELU, each behind a norm and added to what came in."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = BlockAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, valid: Tensor | None, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        attended, new = self.self_attn(self.self_attn_layer_norm(x), valid, past)
        x = x + attended
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x)))), new


class WhisperVqEncoder(nn.Module):
    """Log-mel features -> codes; names and shapes of parameters as released."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.pooling, self.num_codes = config.pooling_kernel_size, config.quantize_vocab_size
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, KERNEL)
        self.conv2 = nn.Conv1d(width, width, KERNEL, stride=CONV_STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // config.pooling_kernel_size, width)
        """Released for what came behind the codes in training; no code depends on it."""

    @property
    def device(self) -> torch.device:
        return self.codebook.weight.device

    def forward(
        self, features: Tensor, lengths: Sequence[int], past: Past = (), keep: bool = False
    ) -> tuple[Tensor, Past]:
        """(B, N, D) for `nearest` of the frames behind `past`, and with `keep` these frames' own keys and values.

        features: (B, M, F) from a segment's start; with a past, (B, M, CONTEXT_FRAMES + F): those seen last come first.
        lengths: B counts of valid encoder frames among the P + E; later ones are padding that no frame attends to.
        """
        start = past[0].keys.shape[2] if past else 0
        x = self._convolve(features.to(self.conv1.weight.dtype), is_start=start == 0)
        x = x + self.embed_positions.weight[start : start + x.shape[1]]
        valid = _valid_frames(lengths, start + x.shape[1], x.device)
        kept = []
        for index, layer in enumerate(self.layers):
            x, new = layer(x, valid, past[index] if past else None)
            if keep:
                kept.append(new)
        return x.unflatten(1, (-1, self.pooling)).mean(dim=2), tuple(kept)

    def nearest(self, hidden: Tensor) -> IntArray:
        """(B, N, D) -> ids (B, N) of the nearest codes."""
        ids: IntArray = squared_distances(hidden, self.codebook.weight).argmin(dim=2).cpu().numpy()
        return ids

    def _convolve(self, features: Tensor, is_start: bool) -> Tensor:
        """(B, M, F) -> (B, E, D); before a segment's start lie zeros, at the input of each convolution."""
        before = (KERNEL - 1 if is_start else 0, 0)
        x = functional.gelu(self.conv1(functional.pad(features, before)))
        return functional.gelu(self.conv2(functional.pad(x, before))).transpose(1, 2)


def squared_distances(hidden: Tensor, codebook: Tensor) -> Tensor:
    """(B, N, D) to each of (V, D), in float32: (B, N, V), as |x|^2 + |c|^2 - 2 x c."""
    hidden, codebook = hidden.float(), codebook.float()
    norms = hidden.square().sum(dim=2, keepdim=True) + codebook.square().sum(dim=1)
    return norms - 2.0 * (hidden @ codebook.T)


def _valid_frames(lengths: Sequence[int], total: int, device: torch.device) -> Tensor | None:
    if min(lengths) >= total:
        return None
    return torch.arange(total, device=device) < torch.tensor(lengths, device=device)[:, None]


class Glm4VoiceTokenizer:
    """Waves -> codes. Released models were given channel 0 of a stereo recording: `read_wave(..., channel=0)`."""

    name = "glm4_voice"
    num_codebooks = 1

    def __init__(self, config: TokenizerConfig, encoder: WhisperVqEncoder) -> None:
        self.config, self.encoder = config, encoder
        self.features = log_mel(config.features, encoder.device)
        self.codebook_size, self.frame_rate = config.encoder.quantize_vocab_size, config.frame_rate
        self.sample_rate = config.features.sampling_rate

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Glm4VoiceTokenizer:
        """Opens a downloaded THUDM/glm-4-voice-tokenizer; codes are the released ones in float32.

        Raises CheckpointError: a file, key or tensor is missing, damaged or does not fit; the message names it.
        """
        config = load_tokenizer_config(folder)
        return cls(config, load_encoder(config.encoder, folder, device=device, dtype=dtype))

    def encode(self, wave: Wave) -> AudioCodes:
        return self.encode_batch([wave])[0]

    def encode_batch(self, waves: Sequence[Wave], batch_size: int = BATCH_SIZE) -> list[AudioCodes]:
        """The codes of each wave; `batch_size` segments of them all are computed at once."""
        size = self.config.features.segment_samples
        cut = [
            [samples[at : at + size] for at in range(0, len(samples), size)] for samples in map(self.resample, waves)
        ]
        every = [segment for segments in cut for segment in segments]
        batches = (every[start : start + batch_size] for start in range(0, len(every), batch_size))
        ids = chain.from_iterable(map(self._encode_segments, batches))
        return [self.codes(list(islice(ids, len(segments)))) for segments in cut]

    def resample(self, wave: Wave) -> FloatArray:
        """The wave's samples at `sample_rate`."""
        return sinc_resampler(wave.sample_rate, self.sample_rate)(wave.samples)

    def codes(self, pieces: Sequence[IntArray]) -> AudioCodes:
        """Pieces of ids, in order, as one."""
        ids = np.concatenate([np.zeros(0, np.int64), *pieces])
        return AudioCodes(ids, self.codebook_size, self.frame_rate, self.name)

    def pad_segments(self, segments: Sequence[FloatArray]) -> Tensor:
        """(T,) each -> (B, L) with zeros behind each, L whole codes."""
        hop = self.config.samples_per_code
        padded = np.zeros((len(segments), -(-max(map(len, segments)) // hop) * hop), np.float32)
        for row, samples in zip(padded, segments, strict=True):
            row[: len(samples)] = samples
        return torch.from_numpy(padded).to(self.encoder.device)

    @torch.inference_mode()
    def _encode_segments(self, segments: Sequence[FloatArray]) -> list[IntArray]:
        """Samples (T,) of segments, none empty -> their ids."""
        frames = [-(-len(samples) // self.config.samples_per_frame) for samples in segments]
        hidden, _ = self.encoder(self.features(self.pad_segments(segments)), frames)
        counts = [-(-len(samples) // self.config.samples_per_code) for samples in segments]
        return [row[:count] for row, count in zip(self.encoder.nearest(hidden), counts, strict=True)]


def log_mel(config: FeatureConfig, device: torch.device | str = "cpu") -> WhisperLogMel:
    return WhisperLogMel(config.sampling_rate, config.n_fft, config.hop_length, config.feature_size, device)


def empty_encoder(config: EncoderConfig) -> WhisperVqEncoder:
    """The network without its numbers, on the meta device."""
    return without_memory(lambda: WhisperVqEncoder(config))


def training_buffers(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codebook's moving averages: released, of no use to a finished codebook, never read."""
    return {"ema_count": (config.quantize_vocab_size,), "ema_weight": (config.quantize_vocab_size, config.d_model)}


def load_encoder(
    config: EncoderConfig, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> WhisperVqEncoder:
    """The folder's network, in eval mode and without gradients; each tensor is read once, straight where it belongs.

    Raises CheckpointError: the file is not there or cut short, or a tensor is missing, surplus or of another shape.
    """
    path = folder / WEIGHTS_FILE
    encoder = empty_encoder(config)
    needed = shapes_of(encoder)
    try:
        with safe_open(path, framework="pt", device=str(device)) as stored:
            names = plain_names(stored.keys(), config)
            shapes = {name: tuple(stored.get_slice(key).get_shape()) for name, key in names.items()}
            check_shapes(shapes, needed, path, TOKENIZER_REMEDY, optional=training_buffers(config))
            tensors = {name: stored.get_tensor(names[name]).to(dtype) for name in needed}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing, cut short or damaged ({error}): {TOKENIZER_REMEDY}") from None
    encoder.load_state_dict(tensors, assign=True)
    return encoder.eval().requires_grad_(False)


def plain_names(stored: Iterable[str], config: EncoderConfig) -> dict[str, str]:
    """Name in the network -> name in the file: the released ones, or those of the whole Whisper, of which the decoder,
    the last norm and further layers are left out."""
    names = {name: name for name in stored}
    whole = {name.removeprefix(PREFIX): name for name in names if name.startswith(PREFIX)}
    depth = config.quantize_position
    layers = ((name, re.match(r"layers\.(\d+)\.|layer_norm", name)) for name in whole)
    behind = {name for name, found in layers if found and int(found[1] or depth) >= depth}
    return {name: key for name, key in whole.items() if name not in behind} or names
