"""Log-mel frames, one per hop, normalised to about unit scale. B batch, T samples, F frames, M mels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.types import FloatArray

LOG_FLOOR = 1e-5
LOG_MEAN, LOG_SCALE = -5.0, 3.0
"""Centre and scale of log-mel energies of speech at full scale; fixed, so that frames need no statistics."""

SILENCE = (float(np.log(LOG_FLOOR)) - LOG_MEAN) / LOG_SCALE
"""A normalised frame's value where there is no sound."""


def mel_filterbank(sample_rate: int, fft_size: int, num_mels: int) -> FloatArray:
    """Triangular filters on the HTK mel scale from 0 Hz to Nyquist, shape (M, fft_size // 2 + 1)."""
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    centres = 700.0 * (10.0 ** (np.linspace(0.0, top, num_mels + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, sample_rate / 2, fft_size // 2 + 1)
    rising = (bins[None, :] - centres[:-2, None]) / (centres[1:-1] - centres[:-2])[:, None]
    falling = (centres[2:, None] - bins[None, :]) / (centres[2:] - centres[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


class LogMel(nn.Module):
    """(B, T) samples -> (B, F, M) with F = T / hop_length; T must be a whole number of hops."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: NanoCodecConfig) -> None:
        super().__init__()
        self.hop, self.size = config.hop_length, config.mel_window
        filters = mel_filterbank(config.sample_rate, self.size, config.num_mels)
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).T.contiguous(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        margin = (self.size - self.hop) // 2
        padded = functional.pad(samples, (margin, margin))
        spectrum = torch.stft(padded, self.size, self.hop, window=self.window, center=False, return_complex=True).abs()
        energy = spectrum.transpose(1, 2) @ self.filters
        frames: Tensor = (energy.clamp_min(LOG_FLOOR).log() - LOG_MEAN) / LOG_SCALE
        return frames
