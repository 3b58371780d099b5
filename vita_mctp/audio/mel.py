"""Log-mel features: Whisper's, and Kaldi's with FunASR's stacking of frames, which SenseVoice was trained on.

Kaldi's are written out because they are short and spare a user of VITA-Audio-Plus another package.

B segments, T or N samples, F frames of 10 ms, S of 60 ms, M mel bands, D = STACKED * M features.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from vita_mctp.errors import AudioError
from vita_mctp.types import FloatArray

SILENCE = -10.0
"""The lowest log energy of Whisper's features."""
DYNAMIC_RANGE = 8.0
"""Of Whisper's features, in powers of ten."""

SAMPLE_RATE = 16_000
WINDOW, HOP, FFT_SIZE = SAMPLE_RATE * 25 // 1000, SAMPLE_RATE * 10 // 1000, 512
NUM_MELS = 80
STACKED, STRIDE = 7, 6
"""Frames of 10 ms in one stacked frame, and from one stacked frame to the next ("low frame rate")."""
FEATURE_SIZE = STACKED * NUM_MELS

_LOWEST_HZ, _HIGHEST_HZ = 20.0, SAMPLE_RATE / 2
_PREEMPHASIS = 0.97
_INT16_SCALE = 1 << 15  # Kaldi's features are of 16-bit samples
_FLOOR = float(np.finfo(np.float32).eps)

DoubleArray = npt.NDArray[np.float64]


def kaldi_fbank(samples: FloatArray) -> FloatArray:
    """samples (N,) in [-1, 1] at SAMPLE_RATE -> log-mel energies (F, M), F = 1 + (N - WINDOW) // HOP, not normalised.

    As Kaldi's compute-fbank-feats with a Hamming window and no dither; windows that reach over the end are left out.
    Raises AudioError for fewer samples than one window.
    """
    if len(samples) < WINDOW:
        raise AudioError(f"got {len(samples)} samples at 16 kHz; wanted at least {WINDOW}: record it again")
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * np.float64(_INT16_SCALE)
    frames = windows - windows.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft((frames - _PREEMPHASIS * before) * np.hamming(WINDOW), FFT_SIZE)
    energies = (spectrum.real**2 + spectrum.imag**2) @ _mel_filters()
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


def stack_frames(frames: FloatArray) -> FloatArray:
    """frames (F, M) -> (ceil(F / STRIDE), STACKED * M): each frame STRIDE * s among its neighbours, edges repeated."""
    centres = np.arange(0, len(frames), STRIDE)[:, None]
    neighbours = centres + np.arange(STACKED) - (STACKED - 1) // 2
    return frames[neighbours.clip(0, len(frames) - 1)].reshape(len(centres), -1)


@cache
def _mel_filters() -> DoubleArray:
    """(FFT_SIZE // 2 + 1, M) triangles, equally wide and with straight sides on the mel scale."""
    edges = np.linspace(_mel(_LOWEST_HZ), _mel(_HIGHEST_HZ), NUM_MELS + 2)
    bins = _mel(np.arange(FFT_SIZE // 2 + 1) * (SAMPLE_RATE / FFT_SIZE))[:, None]
    width = edges[1] - edges[0]
    return np.maximum(0.0, np.minimum(bins - edges[:-2], edges[2:] - bins) / width)


def _mel(hertz: npt.ArrayLike) -> DoubleArray:
    return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)


class WhisperLogMel:
    """Hann window, power spectrum, Slaney mel bands, logarithm to base ten, clamp, scale.

    Two steps: energies that never change, then a clamp that lies 8 (80 dB) under the loudest energy of a whole segment,
    which is not known while somebody still speaks. With the steps apart, a stream takes the first one once.
    """

    def __init__(
        self, sample_rate: int, n_fft: int, hop: int, num_mels: int, device: torch.device | str = "cpu"
    ) -> None:
        from transformers.audio_utils import mel_filter_bank

        self.size, self.hop = n_fft, hop
        self.margin = n_fft // 2
        """Samples before a frame's centre that it looks at, and after it."""
        filters = mel_filter_bank(n_fft // 2 + 1, num_mels, 0.0, sample_rate / 2, sample_rate, "slaney", "slaney")
        self.filters = torch.from_numpy(filters).float().to(device)
        self.window = torch.hann_window(n_fft, device=device)

    def __call__(self, samples: Tensor) -> Tensor:
        """Whole segments (B, T), zero-padded to a whole number of hops -> features (B, M, F = T / hop)."""
        energies = self.energies(self.pad_right(self.pad_left(samples)))
        return self.clamp(energies, energies.amax(dim=(1, 2), keepdim=True))

    def pad_left(self, samples: Tensor) -> Tensor:
        """(B, T) from a segment's start -> (B, margin + T): what the first frames see before it is its mirror image."""
        return functional.pad(samples, (self.margin, 0), mode="reflect")

    def pad_right(self, samples: Tensor, mode: Literal["reflect", "constant"] = "reflect") -> Tensor:
        """(B, T) up to a segment's end -> with what the last frame sees behind it, mirrored or zeros."""
        return functional.pad(samples, (0, self.margin - self.hop), mode=mode)

    def energies(self, padded: Tensor) -> Tensor:
        """(B, margin + hop * F + margin - hop) samples -> log energies (B, M, F)."""
        spectrum = torch.stft(padded, self.size, self.hop, window=self.window, center=False, return_complex=True)
        return (self.filters.T @ spectrum.abs().square()).clamp_min(10.0**SILENCE).log10()

    def clamp(self, energies: Tensor, loudest: Tensor | float) -> Tensor:
        """Energies (B, M, F) -> features, given their segment's loudest energy."""
        return (torch.maximum(energies, torch.as_tensor(loudest - DYNAMIC_RANGE).to(energies)) + 4.0) / 4.0

    def loudest_possible(self, peak: float) -> float:
        """An energy that no samples in [-peak, peak] exceed.

        By Parseval's theorem the squared spectrum of a real frame sums to at most size * |window|^2 * peak^2, half of
        it on the positive frequencies (no band reaches 0 Hz or the Nyquist frequency), and a band weighs none of them
        more than by the largest of all weights.
        """
        total = 0.5 * self.size * self.window.square().sum() * peak**2
        return float((total * self.filters.max()).log10())
