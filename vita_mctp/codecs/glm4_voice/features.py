"""Samples -> Whisper's log-mel frames, in two steps: energies that never change, then a clamp under the loudest.

B segments, T samples, F frames, M mel bands. The clamp lies 8 (80 dB) under the loudest energy of a whole segment,
which is not known while somebody still speaks; with the steps apart, a stream takes the first one once.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vita_mctp.codecs.glm4_voice.tokenizer_config import FeatureConfig

SILENCE = -10.0
"""The lowest log energy."""
DYNAMIC_RANGE = 8.0
"""In powers of ten."""


class LogMel:
    """Whisper's features: Hann window, power spectrum, Slaney mel bands, logarithm to base ten, clamp, scale."""

    def __init__(self, config: FeatureConfig, device: torch.device | str = "cpu") -> None:
        from transformers.audio_utils import mel_filter_bank

        self.size, self.hop = config.n_fft, config.hop_length
        self.margin = config.n_fft // 2
        """Samples before a frame's centre that it looks at, and after it."""
        filters = mel_filter_bank(
            num_frequency_bins=config.n_fft // 2 + 1,
            num_mel_filters=config.feature_size,
            min_frequency=0.0,
            max_frequency=config.sampling_rate / 2,
            sampling_rate=config.sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.filters = torch.from_numpy(filters).float().to(device)
        self.window = torch.hann_window(config.n_fft, device=device)

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
