"""The GLM-4-Voice speech tokenizer: any voice at any rate -> codes, 12.5 per second.

Its network is Whisper's encoder with causal convolutions and block-causal attention, then a codebook: frames attend
both ways inside their block and to every earlier block. All is computed as the released system does it: torchaudio's
resampling, segments of 30 s that know nothing of each other, and zeros behind each of a batch up to the longest.

B segments, T samples, M mel bands, F log-mel frames, E = F / 2 encoder frames, N = E / pooling codes, D width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from vita_mctp.arrays import check_shapes
from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.glm4_voice.config import (
    CONV_STRIDE,
    TOKENIZER_REMEDY,
    EncoderConfig,
    TokenizerConfig,
    load_tokenizer_config,
)
from vita_mctp.codecs.released import load_tensors, shapes_of, without_memory
from vita_mctp.types import AudioCodes, FloatArray, IntArray, Wave

WEIGHTS_FILE = "model.safetensors"
PREFIX = "model.encoder."
"""Before each name in files of the Whisper that the tokenizer was trained in."""
BATCH_SIZE = 128
"""Segments that the released system computes at once."""
KERNEL = 3


class WhisperVqEncoder(nn.Module):
    """Log-mel features -> codes; names and shapes of parameters as released."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.pooling, self.block = config.pooling_kernel_size, config.quantize_causal_block_size
        layer = WhisperConfig(
            d_model=width,
            encoder_attention_heads=config.encoder_attention_heads,
            encoder_ffn_dim=config.encoder_ffn_dim,
            activation_function=config.activation_function,
            attn_implementation="sdpa",
        )
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, KERNEL)
        self.conv2 = nn.Conv1d(width, width, KERNEL, stride=CONV_STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(layer) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // config.pooling_kernel_size, width)
        """Released for what came behind the codes in training; no code depends on it."""

    def forward(self, features: Tensor, lengths: Sequence[int]) -> Tensor:
        """Features (B, M, F) of segments -> (B, N, D) for `nearest`. lengths: B counts of valid encoder frames."""
        x = features.to(self.conv1.weight.dtype)
        for conv in (self.conv1, self.conv2):
            x = functional.gelu(conv(functional.pad(x, (KERNEL - 1, 0))))
        x = x.transpose(1, 2)
        seen = attended_frames(lengths, x.shape[1], self.block).to(x.device)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, seen)
        return x.unflatten(1, (-1, self.pooling)).mean(dim=2)

    def nearest(self, hidden: Tensor) -> IntArray:
        """(B, N, D) -> ids (B, N) of the nearest codes."""
        ids: IntArray = squared_distances(hidden, self.codebook.weight).argmin(dim=2).cpu().numpy()
        return ids


def attended_frames(lengths: Sequence[int], frames: int, block: int) -> Tensor:
    """(B, 1, E, E) bool: a frame sees its own block and all before it, as far as they are valid."""
    steps = torch.arange(frames)
    seen = steps // block <= (steps // block)[:, None]
    return seen & (steps < torch.tensor(lengths)[:, None])[:, None, None]


def squared_distances(hidden: Tensor, codebook: Tensor) -> Tensor:
    """(B, N, D) to each of (V, D), in float32: (B, N, V), as |x|^2 + |c|^2 - 2 x c."""
    hidden, codebook = hidden.float(), codebook.float()
    norms = hidden.square().sum(dim=2, keepdim=True) + codebook.square().sum(dim=1)
    return norms - 2.0 * (hidden @ codebook.T)


class Glm4VoiceTokenizer:
    """Waves -> codes. Released models were given channel 0 of a stereo recording: `read_wave(..., channel=0)`."""

    name = "glm4_voice"
    num_codebooks = 1

    def __init__(self, config: TokenizerConfig, encoder: WhisperVqEncoder) -> None:
        self.config, self.encoder = config, encoder
        self.extractor = WhisperFeatureExtractor(**config.features.model_dump())
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
        cut = [self.segments(wave) for wave in waves]
        every = list(chain.from_iterable(cut))
        batches = (every[start : start + batch_size] for start in range(0, len(every), batch_size))
        ids = chain.from_iterable(map(self._encode_segments, batches))
        found = (np.concatenate([np.zeros(0, np.int64), *islice(ids, len(segments))]) for segments in cut)
        return [AudioCodes(each, self.codebook_size, self.frame_rate, self.name) for each in found]

    def segments(self, wave: Wave) -> list[FloatArray]:
        """The wave's samples at `sample_rate`, cut every 30 s."""
        samples = sinc_resample(wave.samples, wave.sample_rate, self.sample_rate)
        size = self.config.features.segment_samples
        return [samples[at : at + size] for at in range(0, len(samples), size)]

    def features(self, segments: Sequence[FloatArray]) -> Tensor:
        """(T,) samples of each -> (B, M, F), zeros behind the shorter ones up to whole codes of the longest."""
        device = self.encoder.codebook.weight.device
        found = self.extractor(
            segments,
            padding="longest",
            pad_to_multiple_of=self.config.samples_per_code,
            sampling_rate=self.sample_rate,
            device=str(device),
            return_tensors="pt",
        )
        features: Tensor = found["input_features"].to(device)
        return features

    @torch.inference_mode()
    def _encode_segments(self, segments: Sequence[FloatArray]) -> list[IntArray]:
        """Samples (T,) of segments, none empty -> their ids."""
        frames = [-(-len(samples) // self.config.samples_per_frame) for samples in segments]
        rows = self.encoder.nearest(self.encoder(self.features(segments), frames))
        counts = [-(-len(samples) // self.config.samples_per_code) for samples in segments]
        return [row[:count] for row, count in zip(rows, counts, strict=True)]


def empty_encoder(config: EncoderConfig) -> WhisperVqEncoder:
    """The network without its numbers, on the meta device."""
    return without_memory(lambda: WhisperVqEncoder(config))


def training_buffers(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codebook's moving averages: released, of no use to a finished codebook, never read."""
    return {"ema_count": (config.quantize_vocab_size,), "ema_weight": (config.quantize_vocab_size, config.d_model)}


def load_encoder(
    config: EncoderConfig, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> WhisperVqEncoder:
    """The folder's network, in eval mode and without gradients.

    Its names are the released ones, or those of the whole Whisper that it was trained in, of which the decoder, the
    last norm and further layers are left out. Raises CheckpointError as `released.read_tensors`.
    """
    path, encoder, depth = folder / WEIGHTS_FILE, empty_encoder(config), config.quantize_position
    stored = load_tensors(path, TOKENIZER_REMEDY)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items() if name.startswith(PREFIX)}
    for name in list(tensors):
        found = re.match(r"layers\.(\d+)\.|layer_norm", name)
        if found and int(found[1] or depth) >= depth:
            del tensors[name]
    tensors, needed = tensors or stored, shapes_of(encoder)
    found_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(found_shapes, needed, path, TOKENIZER_REMEDY, optional=training_buffers(config))
    encoder.load_state_dict({name: tensors[name].to(device, dtype) for name in needed}, assign=True)
    return encoder.eval().requires_grad_(False)
