"""HiFT: log-mel frames -> samples, a neural source filter ending in an inverse Fourier transform (arXiv 2309.09493).

B streams, M mel bands, T mel frames, L = hop_length * T samples, H harmonics with the fundamental, Q bins of the small
transform, S its frames.

Pitch, excitation and synthesis are three calls, so that a stream can be served in stretches: the excitation takes the
phases that the last stretch returned, and the samples of frames [a, b) are those of `forward` over the frames
[a - context_frames, b + context_frames), cut to the stream, with the excitation of the same frames.

A phase is counted in cycles, in float64, and wrapped to [0, 1): it goes on without a jump however long the answer,
where the reference's float32 sum loses a hundredth of a cycle within a minute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.config import F0PredictorConfig, HiftConfig
from vita_mctp.codecs.flow_decoder.layers import (
    NormedConv1d,
    NormedConvTranspose1d,
    ResBlock,
    block_reach,
    length_mask,
    masked,
    ragged_lengths,
)

_KERNEL = 7
"""Of the first and the last convolution."""
_LAST_SLOPE = 0.01
"""Of the last leaky ReLU: the reference leaves torch's default there, unlike `lrelu_slope` everywhere else."""
_MAX_MAGNITUDE = 100.0
_MIN_ENVELOPE = 1e-11
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


def starting_phase(radians: Tensor) -> Tensor:
    """(B, H) drawn angles -> starting phases in cycles; the fundamental's is 0 whatever was drawn."""
    cycles = radians.double() / (2 * math.pi) % 1
    return functional.pad(cycles[:, 1:], (1, 0))


def noise_at(seed: int, harmonics: int, first_frame: int, frames: int, hop: int) -> Tensor:
    """(1, H, hop * frames) standard normal, a function of the seed and the position in the stream alone.

    So however a stream is cut, and whatever else is in its batch, each sample gets the same noise; nothing is kept.
    """
    counters = (_counter(seed, _NOISE, frame) for frame in range(first_frame, first_frame + frames))
    drawn = [counter.standard_normal((harmonics, hop), np.float32) for counter in counters]
    return torch.from_numpy(np.concatenate([np.zeros((harmonics, 0), np.float32), *drawn], axis=1))[None]


def phase_of(seed: int, harmonics: int) -> Tensor:
    """(1, H) starting phases that belong to the seed."""
    angles = _counter(seed, _PHASE, 0).uniform(-math.pi, math.pi, (1, harmonics))
    return starting_phase(torch.from_numpy(angles))


def _counter(seed: int, purpose: int, frame: int) -> np.random.Generator:
    """Philox counts in four words, the first one fastest: no two frames or purposes ever get the same number."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, purpose, frame]))


class HarmonicSource(nn.Module):
    """Pitch (B, T) in Hz -> excitation (B, L)."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config, self.hop, self.harmonics = config, config.hop_length, config.nb_harmonics + 1
        self.l_linear = nn.Linear(self.harmonics, 1)

    def forward(self, pitch: Tensor, random: SourceNoise) -> tuple[Tensor, Tensor]:
        """Returns the excitation and the phases (B, H) with which the next frames go on.

        Frames behind a stream's end must have pitch 0: they leave its phases as they are.
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


class Hift(nn.Module):
    """The vocoder, with the tensor names of the released `hift.pt`."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config, self.hop_length = config, config.hop_length
        self.context_frames = context_frames(config)
        self.m_source = HarmonicSource(config)
        self.f0_predictor = PitchPredictor(config.f0_predictor)
        self.conv_pre = NormedConv1d(config.in_channels, config.base_channels, _KERNEL)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        self.source_downs, self.source_resblocks = nn.ModuleList(), nn.ModuleList()
        width, bands = config.base_channels, config.istft_params.n_fft + 2
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        for level in _levels(config):
            self.ups.append(NormedConvTranspose1d(width, width // 2, level.kernel, level.rate))
            width //= 2
            self.source_downs.append(_source_down(bands, width, level.above))
            self.source_resblocks.append(ResBlock(width, level.source_kernel, level.source_dilations))
            self.resblocks.extend(ResBlock(width, *block) for block in blocks)
        self.conv_post = NormedConv1d(width, bands, _KERNEL)

    def forward(self, mel: Tensor, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mel (B, M, T) and its excitation (B, L) -> samples (B, L) in [-audio_limit, audio_limit].

        lengths: (B,) frames of each stream, all T when None; samples behind a stream's end are without meaning.
        Raises ValueError for a length not in 1..T.
        """
        own = ragged_lengths(lengths, mel.shape[-1])
        magnitude, angle = self.features(mel, source, lengths).float().transpose(1, 2).chunk(2, dim=-1)
        spectrum = torch.polar(magnitude.exp().clamp(max=_MAX_MAGNITUDE), angle.sin())
        limit = self.config.audio_limit
        return self._inverse(spectrum, own).clamp(-limit, limit)

    def features(self, mel: Tensor, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The last convolution's (B, 2 Q, S): log magnitudes, and what the phases are the sine of."""
        own = ragged_lengths(lengths, mel.shape[-1])
        masks = self._masks(mel, own)
        x = masked(self.conv_pre(masked(mel, masks[0])), masks[0])
        spectrum = masked(self._spectrum(source, own).to(mel.dtype), masks[-1])
        last, count = len(self.ups) - 1, len(self.config.resblock_kernel_sizes)
        for level, (up, mask) in enumerate(zip(self.ups, masks[1:], strict=True)):
            x = up(functional.leaky_relu(x, self.config.lrelu_slope))
            if level == last:
                x = functional.pad(x, (1, 0), mode="reflect")
            excitation = masked(self.source_downs[level](spectrum), mask)
            x = masked(x, mask) + self.source_resblocks[level](excitation, mask)
            blocks = self.resblocks[level * count : (level + 1) * count]
            x = torch.stack([block(x, mask) for block in blocks]).mean(0)
        return self.conv_post(functional.leaky_relu(x, _LAST_SLOPE))

    def _masks(self, mel: Tensor, lengths: list[int] | None) -> list[Tensor | None]:
        """For the mel and each level above it; the last level has one step more, which the reflection adds."""
        rates = list(accumulate(self.config.upsample_rates, mul, initial=1))
        extra = [0] * (len(rates) - 1) + [1]
        return [
            length_mask(lengths and [n * rate + more for n in lengths], mel, mel.shape[-1] * rate + more)
            for rate, more in zip(rates, extra, strict=True)
        ]

    def _spectrum(self, source: Tensor, lengths: list[int] | None) -> Tensor:
        """Excitation (B, L) -> real and imaginary parts (B, 2 Q, S); each stream is reflected at its own end."""
        size, hop = self.config.istft_params.n_fft, self.config.istft_params.hop_len
        streams, samples = source.shape
        ends = [n * self.hop_length for n in lengths] if lengths else [samples] * streams
        last = torch.tensor(ends, device=source.device)[:, None] - 1
        positions = torch.arange(-(size // 2), samples + size // 2, device=source.device).abs()
        reflected = (last - (last - positions).abs()).clamp(min=0)
        frames = source.float().gather(1, reflected).unfold(-1, size, hop)
        spectrum = torch.fft.rfft(frames * _window(size, source.device))
        return torch.cat([spectrum.real, spectrum.imag], -1).transpose(1, 2)

    def _inverse(self, spectrum: Tensor, lengths: list[int] | None) -> Tensor:
        """(B, S, Q) -> samples (B, L): overlapped and added, divided by the squared windows that cover a sample."""
        size, hop = self.config.istft_params.n_fft, self.config.istft_params.hop_len
        streams, frames, _ = spectrum.shape
        counts = lengths and [n * self.hop_length // hop + 1 for n in lengths]
        window = _window(size, spectrum.device)[:, None].expand(streams, size, frames)
        own = masked(window, length_mask(counts, window, frames))
        wave = overlap_add(torch.fft.irfft(spectrum, size).transpose(1, 2) * own, hop)
        envelope = overlap_add(own.square(), hop).clamp(min=_MIN_ENVELOPE)
        return (wave / envelope)[:, size // 2 : -(size // 2)]


class _Level(NamedTuple):
    """One upsampling: kernel and rate, the excitation's block, and the small transform's frames for each step."""

    kernel: int
    rate: int
    source_kernel: int
    source_dilations: tuple[int, ...]
    above: int


def _levels(config: HiftConfig) -> list[_Level]:
    rates = config.upsample_rates
    kernels, blocks = config.upsample_kernel_sizes, config.source_resblock_kernel_sizes
    above = [math.prod(rates[level + 1 :]) for level in range(len(rates))]
    return list(map(_Level, kernels, rates, blocks, config.source_resblock_dilation_sizes, above))


def context_frames(config: HiftConfig) -> int:
    """Mel frames on either side that a sample depends on, through the mel or through the excitation.

    The pitch of a frame depends on `PITCH_REACH` frames more.
    """
    size, hop = config.istft_params.n_fft, config.istft_params.hop_len
    blocks = max(map(block_reach, config.resblock_kernel_sizes, config.resblock_dilation_sizes))
    reach = size // 2 // hop + _KERNEL // 2 + 1  # in steps of the level; the reflection moves the last one by a step
    samples = 0
    for level in reversed(_levels(config)):
        reach += blocks
        excitation = reach + block_reach(level.source_kernel, level.source_dilations) + 1
        samples = max(samples, (excitation * level.above + level.above // 2) * hop + size // 2)
        reach = math.ceil((reach + (level.kernel + level.rate) // 2 - 1) / level.rate)
    return max(reach + _KERNEL // 2, math.ceil(samples / config.hop_length))


def _source_down(inputs: int, outputs: int, rate: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 1) if rate == 1 else nn.Conv1d(inputs, outputs, 2 * rate, rate, rate // 2)


def _window(size: int, device: torch.device) -> Tensor:
    return torch.hann_window(size, device=device)


def overlap_add(pieces: Tensor, hop: int) -> Tensor:
    """(B, size, S) pieces, `hop` apart -> their sum (B, (S - 1) * hop + size)."""
    streams, size, frames = pieces.shape
    total = (frames - 1) * hop + size
    return functional.fold(pieces, (1, total), (1, size), stride=(1, hop)).reshape(streams, total)
