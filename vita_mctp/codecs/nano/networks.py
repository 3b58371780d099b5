"""The nano codec's three networks: log-mel frames -> codes, codes -> log-mel frames of the answer voice, and samples.

B batch, F frames (100 per second), N codes (12.5 per second), M mels, Q frequency bins, T steps or samples, C channels,
D dimensions of the quantiser. State is a value that a call takes and returns; None: nothing has been decoded yet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import LOG_MEAN, LOG_SCALE, SILENCE, NanoCodecConfig, mel_filterbank

Past = tuple[Tensor, ...]
"""The last inputs of every convolution of a stack, oldest first."""


class DepthwiseConv(nn.Module):
    """(B, T, C) -> (B, T, C) over `kernel_size` steps: the last ones when causal, else centred."""

    def __init__(self, channels: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.left = kernel_size - 1 if causal else (kernel_size - 1) // 2
        self.right = kernel_size - 1 - self.left

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if past is None:
            past = x.new_zeros(x.shape[0], self.left, x.shape[2])
        x = functional.pad(torch.cat([past.to(x.dtype), x], dim=1), (0, 0, 0, self.right))
        y: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return y, x[:, x.shape[1] - self.left :]


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, pointwise expansion with GELU, residual (Liu et al. 2022)."""

    def __init__(self, channels: int, kernel_size: int, expansion: int, causal: bool) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(channels, kernel_size, causal)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, channels * expansion)
        self.reduce = nn.Linear(channels * expansion, channels)
        nn.init.zeros_(self.reduce.bias)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, kept = self.depthwise(x, past)
        return x + self.reduce(functional.gelu(self.expand(self.norm(y)))), kept


class ConvNeXtStack(nn.ModuleList):
    """Blocks in a row; all causal or all centred."""

    def __init__(self, layers: int, channels: int, kernel_size: int, expansion: int, causal: bool) -> None:
        super().__init__(ConvNeXtBlock(channels, kernel_size, expansion, causal) for _ in range(layers))

    def forward(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        kept = []
        for block, state in zip(self, past or [None] * len(self), strict=True):
            x, tail = block(x, state)
            kept.append(tail)
        return x, tuple(kept)


def fold_steps(x: Tensor, count: int) -> Tensor:
    """(B, T, C) -> (B, T / count, count * C): neighbouring steps side by side."""
    return x.reshape(x.shape[0], x.shape[1] // count, count * x.shape[2])


def unfold_steps(x: Tensor, count: int) -> Tensor:
    """(B, T, count * C) -> (B, count * T, C): the inverse of `fold_steps`."""
    return x.reshape(x.shape[0], x.shape[1] * count, x.shape[2] // count)


class FiniteScalarQuantizer(nn.Module):
    """(..., D) reals -> the same shape on a grid in [-1, 1], levels[d] values along d; gradients straight through.

    A code is a point of this small fixed grid (Mentzer et al. 2023, arXiv 2309.15505).
    """

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        counts = torch.tensor(levels)
        self.register_buffer("_levels", counts, persistent=False)
        self.register_buffer("_basis", torch.cumprod(torch.tensor((1, *levels[:-1])), 0), persistent=False)

    def digits(self, x: Tensor) -> Tensor:
        """Grid index along each dimension, 0 .. levels[d] - 1, as reals that carry gradients."""
        bounded = self.bounded(x)
        return bounded + (bounded.round() - bounded).detach()

    def bounded(self, x: Tensor) -> Tensor:
        """The digits before they are rounded."""
        return (torch.tanh(x) + 1) / 2 * (self._levels - 1).to(x.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Grid points (..., D) and codes (...)."""
        digits = self.digits(x)
        codes = (digits.detach().round().long() * self._basis).sum(-1)
        return self.points(digits), codes

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (...) -> grid points (..., D)."""
        return self.points(codes.unsqueeze(-1) // self._basis % self._levels)

    def points(self, digits: Tensor) -> Tensor:
        """Digits as reals (..., D) -> grid points (..., D)."""
        return digits * (2.0 / (self._levels - 1).float()) - 1.0


class NanoEncoder(nn.Module):
    """Two centred ConvNeXt stages (50 and 12.5 steps a second), then finite scalar quantisation."""

    def __init__(self, config: NanoCodecConfig) -> None:
        super().__init__()
        self.patch, self.stride = config.patch_frames, config.stride
        fine, coarse = config.fine_width, config.coarse_width
        self.embed = nn.Linear(config.num_mels * self.patch, fine)
        self.fine = ConvNeXtStack(config.encoder_fine_layers, fine, config.kernel_size, config.expansion, causal=False)
        self.merge = nn.Linear(fine * self.stride, coarse)
        self.coarse = ConvNeXtStack(
            config.encoder_coarse_layers, coarse, config.kernel_size, config.expansion, causal=False
        )
        self.norm = nn.LayerNorm(coarse)
        self.project = nn.Linear(coarse, len(config.levels))
        self.quantizer = FiniteScalarQuantizer(config.levels)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, M), F a multiple of frames_per_code -> grid points (B, N, D) and codes (B, N)."""
        _, coarse = self.hidden(frames)
        points, codes = self.quantizer(self.project(coarse).float())
        return points, codes

    def hidden(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Both stages' states of (B, F, M): 50 and 12.5 states a second, (B, 4 N, fine) and (B, N, coarse)."""
        fine, _ = self.fine(self.embed(fold_steps(frames, self.patch)))
        coarse, _ = self.coarse(self.merge(fold_steps(fine, self.stride)))
        return fine, self.norm(coarse)


class MelState(NamedTuple):
    """What one stream keeps between blocks."""

    window: Tensor
    coarse: Past | None
    fine: Past | None


class NanoMelDecoder(nn.Module):
    """Causal ConvNeXt stages behind a window of `decoder_lookahead` future codes."""

    def __init__(self, config: NanoCodecConfig) -> None:
        super().__init__()
        self.lookahead = config.decoder_lookahead
        self.patch, self.stride = config.patch_frames, config.stride
        fine, coarse = config.fine_width, config.coarse_width
        self.num_levels = len(config.levels)
        self.embed = nn.Linear((self.lookahead + 1) * self.num_levels, coarse)
        self.coarse = ConvNeXtStack(
            config.decoder_coarse_layers, coarse, config.kernel_size, config.expansion, causal=True
        )
        self.split = nn.Linear(coarse, fine * self.stride)
        self.fine = ConvNeXtStack(config.decoder_fine_layers, fine, config.kernel_size, config.expansion, causal=True)
        self.norm = nn.LayerNorm(fine)
        self.project = nn.Linear(fine, config.num_mels * self.patch)

    def forward(self, points: Tensor, state: MelState | None = None, is_last: bool = True) -> tuple[Tensor, MelState]:
        """Grid points (B, N, D) -> frames that are now final.

        Without `is_last` the newest `decoder_lookahead` codes wait in the state; with it, their future counts as zeros.
        """
        if state is None:
            state = MelState(points.new_zeros(points.shape[0], 0, self.num_levels), None, None)
        known = torch.cat([state.window, points], dim=1)
        if is_last:
            known = functional.pad(known, (0, 0, 0, self.lookahead))
        ready = known.shape[1] - self.lookahead
        if ready <= 0:
            frames = points.new_zeros(points.shape[0], 0, self.project.out_features // self.patch)
            return frames, state._replace(window=known)
        windows = [known[:, offset : offset + ready] for offset in range(self.lookahead + 1)]
        x, coarse = self.coarse(self.embed(torch.cat(windows, dim=-1)), state.coarse)
        x, fine = self.fine(unfold_steps(self.split(x), self.stride), state.fine)
        frames = unfold_steps(self.project(self.norm(x)), self.patch)
        return frames, MelState(known[:, ready:], coarse, fine)


class VocoderState(NamedTuple):
    """What one stream keeps between blocks: waiting frames, convolution inputs, samples not yet complete."""

    frames: Tensor
    past: Past | None
    overlap: Tensor


class NanoVocoder(nn.Module):
    """A causal ConvNeXt stack behind `vocoder_lookahead` future frames, predicting magnitude and phase.

    Samples come by an inverse short-time Fourier transform (Siuzdak 2023, arXiv 2306.00814); magnitudes start from the
    mel filters' pseudo-inverse.
    """

    window: Tensor
    inverse: Tensor

    def __init__(self, config: NanoCodecConfig) -> None:
        super().__init__()
        self.hop, self.size, self.lookahead = config.hop_length, config.vocoder_fft, config.vocoder_lookahead
        self.num_mels, bins = config.num_mels, config.vocoder_fft // 2 + 1
        width = config.vocoder_width
        self.embed = nn.Linear(self.num_mels * (self.lookahead + 1), width)
        self.stack = ConvNeXtStack(config.vocoder_layers, width, config.kernel_size, config.expansion, causal=True)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * bins)
        nn.init.normal_(self.project.weight, std=0.01)
        filters = mel_filterbank(config.sample_rate, self.size, self.num_mels)
        inverse = np.maximum(np.linalg.pinv(filters), 0.0).astype(np.float32)
        self.register_buffer("inverse", torch.from_numpy(inverse).T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)

    def forward(
        self, frames: Tensor, state: VocoderState | None = None, is_last: bool = True
    ) -> tuple[Tensor, VocoderState]:
        """(B, F, M) -> samples that are now final; over a stream, F * hop_length of them."""
        if state is None:
            empty = frames.new_zeros(frames.shape[0], 0, self.num_mels)
            state = VocoderState(empty, None, frames.new_zeros(frames.shape[0], 0))
        known = torch.cat([state.frames, frames], dim=1)
        if is_last:
            known = functional.pad(known, (0, 0, 0, self.lookahead), value=SILENCE)
        ready = known.shape[1] - self.lookahead
        past = state.past
        pieces = known.new_zeros(known.shape[0], 0, self.size)
        if ready > 0:
            pieces, past = self._pieces(known, ready, state.past)
        samples, overlap = self._overlap_add(pieces, state.overlap, first=state.past is None, is_last=is_last)
        return samples, VocoderState(known[:, max(ready, 0) :], past, overlap)

    def _pieces(self, known: Tensor, ready: int, past: Past | None) -> tuple[Tensor, Past]:
        """Windowed pieces (B, ready, size) of the first `ready` frames."""
        windows = [known[:, offset : offset + ready] for offset in range(self.lookahead + 1)]
        x, past = self.stack(self.embed(torch.cat(windows, dim=-1)), past)
        gain, real, imaginary = self.project(self.norm(x)).float().chunk(3, dim=-1)
        energy = (known[:, :ready].float() * LOG_SCALE + LOG_MEAN).exp() @ self.inverse
        magnitude = energy * gain.clamp(-8.0, 4.0).exp()
        phase = torch.complex(real, imaginary + 1e-3)
        spectrum = magnitude * phase / phase.abs().clamp_min(1e-5)
        return torch.fft.irfft(spectrum, self.size) * self.window, past

    def _overlap_add(self, pieces: Tensor, overlap: Tensor, first: bool, is_last: bool) -> tuple[Tensor, Tensor]:
        """Add pieces one hop apart; half the surplus of a window is cut at either end of the stream."""
        margin, count = (self.size - self.hop) // 2, pieces.shape[1]
        total = count * self.hop + self.size - self.hop if count else overlap.shape[1]
        summed = pieces.new_zeros(pieces.shape[0], total)
        if count:
            columns = pieces.transpose(1, 2)
            folded = functional.fold(columns, (1, total), (1, self.size), stride=(1, self.hop))
            summed = folded.reshape(pieces.shape[0], total) / (self.window.square().sum() / self.hop)
        summed = summed + functional.pad(overlap, (0, total - overlap.shape[1]))
        done = count * self.hop
        start = margin if first and count else 0
        if is_last:
            done = max(total - margin, 0)
        return summed[:, start:done], summed[:, done:]
