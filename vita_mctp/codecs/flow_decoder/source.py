"""The excitation of HiFT: pitch from the mel, then sines at its harmonics and noise (neural source filter).

B streams, M mel bands, T mel frames, H harmonics with the fundamental, L = hop * T samples. A phase is counted in
cycles, in float64, and wrapped to [0, 1): carried from one stretch of frames to the next it goes on without a jump,
however long the answer, where the reference's float32 sum loses a hundredth of a cycle within a minute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.config import F0PredictorConfig, HiftConfig
from vita_mctp.codecs.flow_decoder.layers import NormedConv1d, length_mask, masked, ragged_lengths

_PITCH_LAYERS = 5
_PITCH_KERNEL = 3
PITCH_REACH = _PITCH_LAYERS * (_PITCH_KERNEL // 2)
"""Mel frames on either side that the pitch of one frame depends on."""
_UNVOICED_NOISE = 1 / 3
"""Deviation of the noise where there is no voice, relative to the sines' amplitude."""
_NOISE, _PHASE = 0, 1


class PitchPredictor(nn.Module):
    """Log-mel (B, M, T) -> fundamental frequency (B, T) in Hz, 0 behind a stream's end."""

    def __init__(self, config: F0PredictorConfig) -> None:
        super().__init__()
        widths = [config.in_channels, *[config.cond_channels] * _PITCH_LAYERS]
        convs = [NormedConv1d(low, high, _PITCH_KERNEL) for low, high in pairwise(widths)]
        self.condnet = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ELU())))
        self.classifier = nn.Linear(config.cond_channels, config.num_class)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        mask = length_mask(ragged_lengths(lengths, mel.shape[-1]), mel, mel.shape[-1])
        x = masked(mel, mask)
        for layer in self.condnet:
            x = masked(layer(x), mask)
        return masked(self.classifier(x.transpose(1, 2)).abs().transpose(1, 2), mask)[:, 0]


@dataclass(frozen=True, eq=False)
class SourceNoise:
    """Everything random in one stretch of excitation."""

    phase: Tensor
    """(B, H) float64: cycles at which the sines begin, or at which an earlier stretch left them."""
    noise: Tensor
    """(B, H, L) standard normal."""


def draw_noise(generator: torch.Generator, harmonics: int, samples: int) -> SourceNoise:
    """Draws for one stream as the reference does: phases, noise, then as many numbers as samples that nothing uses.

    The fundamental begins at phase 0, the others anywhere in a cycle.
    """
    device = generator.device
    raw = torch.rand(1, harmonics, 1, generator=generator, device=device) * (2 * math.pi) - math.pi
    noise = torch.randn(1, harmonics, samples, generator=generator, device=device)
    torch.randn(1, 1, samples, generator=generator, device=device)
    return SourceNoise(starting_phase(raw[..., 0]), noise)


def starting_phase(radians: Tensor) -> Tensor:
    """(B, H) drawn angles -> starting phases in cycles; the fundamental's is 0 whatever was drawn."""
    cycles = radians.double() / (2 * math.pi) % 1
    return functional.pad(cycles[:, 1:], (1, 0))


def noise_at(seed: int, harmonics: int, first_frame: int, frames: int, hop: int) -> Tensor:
    """(1, H, hop * frames) standard normal, a function of the seed and the position in the stream alone.

    So however a stream is cut, and whatever shares its batch, each sample gets the same noise; nothing is kept.
    """
    counters = (_counter(seed, _NOISE, frame) for frame in range(first_frame, first_frame + frames))
    drawn = [counter.standard_normal((harmonics, hop), np.float32) for counter in counters]
    return torch.from_numpy(np.concatenate([np.zeros((harmonics, 0), np.float32), *drawn], axis=1))[None]


def phase_of(seed: int, harmonics: int) -> Tensor:
    """(1, H) starting phases that belong to the seed."""
    angles = _counter(seed, _PHASE, 0).uniform(-math.pi, math.pi, (1, harmonics))
    return starting_phase(torch.from_numpy(angles))


def _counter(seed: int, purpose: int, frame: int) -> np.random.Generator:
    """Philox counts in four words, the first one fastest: no two frames or purposes ever share a number."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, purpose, frame]))


class HarmonicSource(nn.Module):
    """Pitch (B, T) in Hz -> excitation (B, L)."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config, self.hop, self.harmonics = config, config.hop_length, config.nb_harmonics + 1
        self.l_linear = nn.Linear(self.harmonics, 1)

    def forward(self, pitch: Tensor, random: SourceNoise) -> tuple[Tensor, Tensor]:
        """Returns the excitation and the phases (B, H) with which the next frames go on.

        Frames behind a stream's end must have pitch 0: they leave its phases where they are.
        """
        sines, phase = self.sines(pitch, random)
        return torch.tanh(self.l_linear(sines.transpose(1, 2)))[..., 0], phase

    def sines(self, pitch: Tensor, random: SourceNoise) -> tuple[Tensor, Tensor]:
        """Noisy sines (B, H, L) before they are summed, and the phases (B, H) after them."""
        cycles, phase = self._cycles(pitch, random.phase)
        voiced = self.voiced(pitch)[:, None]
        sines = self.config.nsf_alpha * (2 * math.pi * cycles).sin()
        unvoiced = self.config.nsf_alpha * _UNVOICED_NOISE
        deviation = voiced * self.config.nsf_sigma + (1 - voiced) * unvoiced
        return sines * voiced + deviation * random.noise, phase

    def voiced(self, pitch: Tensor) -> Tensor:
        """(B, L): 1 where there is a voice, else 0."""
        return (pitch > self.config.nsf_voiced_threshold).to(pitch.dtype).repeat_interleave(self.hop, dim=-1)

    def _cycles(self, pitch: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Wrapped cycles (B, H, L). Pitch is constant within a frame, so frames are summed, not samples."""
        multiples = torch.arange(1, self.harmonics + 1, device=pitch.device, dtype=pitch.dtype)[:, None]
        step = (pitch[:, None] * multiples / self.config.sampling_rate).double()
        ends = phase[..., None] + self.hop * step.cumsum(-1)
        starts = torch.cat([phase[..., None], ends], -1)
        samples = torch.arange(1, self.hop + 1, device=pitch.device, dtype=torch.float64)
        cycles = (starts[..., :-1, None] + step[..., None] * samples) % 1
        return cycles.flatten(2).to(pitch.dtype), starts[..., -1] % 1
