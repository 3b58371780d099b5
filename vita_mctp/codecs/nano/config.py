"""Sizes of the nano codec, and its log-mel frames. T samples, F frames, M mels, Q frequency bins."""

from __future__ import annotations

import json
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema
from vita_mctp.types import FloatArray

CONFIG_FILE, ENCODER_FILE, DECODER_FILE = "config.json", "encoder.safetensors", "decoder.safetensors"
REMEDY = "get the nano codec's folder again"
MOST_WEIGHTS = 1 << 26
"""What a configuration may ask for, some twenty times the codec's own."""

LOG_FLOOR = 1e-5
LOG_MEAN, LOG_SCALE = -5.0, 3.0
"""Centre and scale of log-mel energies of speech at full scale; fixed, so that frames need no statistics."""

SILENCE = (float(np.log(LOG_FLOOR)) - LOG_MEAN) / LOG_SCALE
"""A normalised frame's value where there is no sound."""

_Width = Annotated[int, Field(ge=1, le=1 << 12)]
_Layers = Annotated[int, Field(ge=1, le=64)]
_Few = Annotated[int, Field(ge=1, le=64)]
_Window = Annotated[int, Field(ge=2, le=1 << 14, multiple_of=2)]


class NanoCodecConfig(Schema):
    """One codebook at 12.5 codes per second: 16 kHz / 160 samples a frame / 8 frames a code.

    Every rate is derived from `sample_rate`, `hop_length` and the two strides.
    """

    sample_rate: Annotated[int, Field(ge=1, le=192_000)] = 16_000
    hop_length: Annotated[int, Field(ge=1, le=1 << 13)] = 160
    """Samples per log-mel frame."""
    mel_window: _Window = 512
    num_mels: Annotated[int, Field(ge=1, le=1 << 10)] = 80
    patch_frames: _Few = 2
    """Log-mel frames per step of the fine (50 Hz) stage."""
    stride: _Few = 4
    """Fine steps per code."""
    levels: Annotated[tuple[Annotated[int, Field(ge=2, le=64)], ...], Field(min_length=1, max_length=8)] = (8, 5, 5, 5)
    """Finite scalar quantisation levels per dimension; their product is the codebook size."""
    fine_width: _Width = 160
    coarse_width: _Width = 256
    expansion: Annotated[int, Field(ge=1, le=16)] = 3
    kernel_size: _Few = 7
    encoder_fine_layers: _Layers = 3
    encoder_coarse_layers: _Layers = 5
    decoder_coarse_layers: _Layers = 3
    decoder_fine_layers: _Layers = 3
    decoder_lookahead: Annotated[int, Field(ge=0, le=64)] = 2
    """Codes of future context that the decoder waits for."""
    vocoder_width: _Width = 192
    vocoder_layers: _Layers = 4
    vocoder_lookahead: Annotated[int, Field(ge=0, le=64)] = 3
    """Log-mel frames of future context that the vocoder waits for."""
    vocoder_fft: _Window = 640

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if self.vocoder_fft % (2 * self.hop_length):
            raise ValueError(f"vocoder_fft {self.vocoder_fft} must be a multiple of 2 * hop_length {self.hop_length}")
        if self.mel_window < self.hop_length:
            raise ValueError(f"mel_window {self.mel_window} must be at least hop_length {self.hop_length}")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        fine, coarse, vocoder = self.fine_width, self.coarse_width, self.vocoder_width
        stacks = (self.encoder_fine_layers + self.decoder_fine_layers) * fine**2 + self.vocoder_layers * vocoder**2
        stacks += (self.encoder_coarse_layers + self.decoder_coarse_layers) * coarse**2
        between = self.stride * fine * coarse + self.patch_frames * self.num_mels * fine + vocoder * self.vocoder_fft
        mels = self.num_mels * (vocoder * (self.vocoder_lookahead + 1) + self.mel_window + self.vocoder_fft)
        weights = 2 * (self.expansion * stacks + between) + mels
        if weights > MOST_WEIGHTS:
            raise ValueError(f"its widths and layers make {weights} weights; wanted at most {MOST_WEIGHTS}")
        return self

    @property
    def frames_per_code(self) -> int:
        return self.patch_frames * self.stride

    @property
    def samples_per_code(self) -> int:
        return self.frames_per_code * self.hop_length

    @property
    def frame_rate(self) -> Fraction:
        """Codes per second."""
        return Fraction(self.sample_rate, self.samples_per_code)

    @property
    def codebook_size(self) -> int:
        return prod(self.levels)

    def save(self, folder: Path) -> None:
        (folder / CONFIG_FILE).write_text(json.dumps(self.to_json_values(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> NanoCodecConfig:
        if not (folder / CONFIG_FILE).is_file():
            raise CheckpointError(f"no nano codec in {folder}: {CONFIG_FILE} is missing; {REMEDY}")
        return cls.read_json(folder / CONFIG_FILE)


def mel_filterbank(sample_rate: int, fft_size: int, num_mels: int) -> FloatArray:
    """Triangular filters on the HTK mel scale from 0 Hz to Nyquist, shape (M, fft_size // 2 + 1)."""
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    centres = 700.0 * (10.0 ** (np.linspace(0.0, top, num_mels + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, sample_rate / 2, fft_size // 2 + 1)
    rising = (bins[None, :] - centres[:-2, None]) / (centres[1:-1] - centres[:-2])[:, None]
    falling = (centres[2:, None] - bins[None, :]) / (centres[2:] - centres[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def mel_inverse(config: NanoCodecConfig) -> FloatArray:
    """(M, Q): log-mel energies to the energies of the vocoder's frequency bins, the filters' pseudo-inverse."""
    filters = mel_filterbank(config.sample_rate, config.vocoder_fft, config.num_mels)
    return np.maximum(np.linalg.pinv(filters), 0.0).astype(np.float32).T


def hann_window(size: int) -> FloatArray:
    """(size,), periodic."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def pad_to_codes(samples: FloatArray, config: NanoCodecConfig) -> FloatArray:
    """(T,) samples -> (T',) with zeros up to a whole number of codes."""
    return np.pad(samples, (0, -len(samples) % config.samples_per_code))


class LogMel:
    """(..., T) samples -> (..., F, M) with F = T / hop_length; T must be a whole number of hops."""

    def __init__(self, config: NanoCodecConfig) -> None:
        self.hop, self.size = config.hop_length, config.mel_window
        self._window = hann_window(self.size)
        self._filters = mel_filterbank(config.sample_rate, self.size, config.num_mels).T

    def __call__(self, samples: FloatArray) -> FloatArray:
        margin = (self.size - self.hop) // 2
        padded = np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(margin, margin)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.size, axis=-1)[..., :: self.hop, :]
        energy = np.abs(np.fft.rfft(windows * self._window)) @ self._filters
        frames = (np.log(np.maximum(energy, LOG_FLOOR)) - LOG_MEAN) / LOG_SCALE
        return frames.astype(np.float32, copy=False)
