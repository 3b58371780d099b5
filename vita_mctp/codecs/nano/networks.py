"""The nano codec's three networks: log-mel frames -> codes, codes -> log-mel frames of the answer voice, and samples.

For training, on whole utterances; what ships runs their weights as `graphs`, also in blocks, with the same results.

B batch, F frames (100 per second), N codes (12.5 per second), M mels, Q frequency bins, T steps or samples, C channels,
D dimensions of the quantiser.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.arrays import read_arrays
from vita_mctp.codecs.nano.config import (
    ENCODER_FILE,
    LOG_MEAN,
    LOG_SCALE,
    REMEDY,
    SILENCE,
    NanoCodecConfig,
    hann_window,
    mel_inverse,
)
from vita_mctp.codecs.released import shapes_of


class DepthwiseConv(nn.Module):
    """(B, T, C) -> (B, T, C) over `kernel_size` steps: the last ones when causal, else centred."""

    def __init__(self, channels: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.left = kernel_size - 1 if causal else (kernel_size - 1) // 2
        self.right = kernel_size - 1 - self.left

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, self.left, self.right))
        y: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return y


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, pointwise expansion with GELU, residual (Liu et al. 2022)."""

    def __init__(self, channels: int, kernel_size: int, expansion: int, causal: bool) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(channels, kernel_size, causal)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, channels * expansion)
        self.reduce = nn.Linear(channels * expansion, channels)
        nn.init.zeros_(self.reduce.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reduce(functional.gelu(self.expand(self.norm(self.depthwise(x)))))
        return x + y


class ConvNeXtStack(nn.Sequential):
    """Blocks in a row; all causal or all centred."""

    def __init__(self, layers: int, channels: int, kernel_size: int, expansion: int, causal: bool) -> None:
        super().__init__(*(ConvNeXtBlock(channels, kernel_size, expansion, causal) for _ in range(layers)))


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

    @classmethod
    def from_folder(cls, folder: Path) -> NanoEncoder:
        """A codec's, frozen. Raises CheckpointError as `NanoTokenizer.from_folder`."""
        encoder = cls(NanoCodecConfig.load(folder))
        arrays = read_arrays(folder / ENCODER_FILE, shapes_of(encoder), REMEDY)
        encoder.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return encoder.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, M), F a multiple of frames_per_code -> grid points (B, N, D) and codes (B, N)."""
        _, coarse = self.hidden(frames)
        points, codes = self.quantizer(self.project(coarse).float())
        return points, codes

    def hidden(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Both stages' states of (B, F, M): 50 and 12.5 states a second, (B, 4 N, fine) and (B, N, coarse)."""
        fine = self.fine(self.embed(fold_steps(frames, self.patch)))
        coarse = self.coarse(self.merge(fold_steps(fine, self.stride)))
        return fine, self.norm(coarse)


def with_future(steps: Tensor, lookahead: int, silence: float = 0.0) -> Tensor:
    """(B, T, C) -> (B, T, (lookahead + 1) C): each step with the next ones; those behind the last are `silence`."""
    count, known = steps.shape[1], functional.pad(steps, (0, 0, 0, lookahead), value=silence)
    return torch.cat([known[:, offset : offset + count] for offset in range(lookahead + 1)], dim=-1)


class NanoMelDecoder(nn.Module):
    """Causal ConvNeXt stages behind a window of `decoder_lookahead` future codes."""

    def __init__(self, config: NanoCodecConfig) -> None:
        super().__init__()
        self.lookahead = config.decoder_lookahead
        self.patch, self.stride = config.patch_frames, config.stride
        fine, coarse = config.fine_width, config.coarse_width
        self.embed = nn.Linear((self.lookahead + 1) * len(config.levels), coarse)
        self.coarse = ConvNeXtStack(
            config.decoder_coarse_layers, coarse, config.kernel_size, config.expansion, causal=True
        )
        self.split = nn.Linear(coarse, fine * self.stride)
        self.fine = ConvNeXtStack(config.decoder_fine_layers, fine, config.kernel_size, config.expansion, causal=True)
        self.norm = nn.LayerNorm(fine)
        self.project = nn.Linear(fine, config.num_mels * self.patch)

    def forward(self, points: Tensor) -> Tensor:
        """Grid points (B, N, D) -> log-mel frames (B, F, M)."""
        x = self.coarse(self.embed(with_future(points, self.lookahead)))
        x = self.fine(unfold_steps(self.split(x), self.stride))
        return unfold_steps(self.project(self.norm(x)), self.patch)


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
        bins, width = config.vocoder_fft // 2 + 1, config.vocoder_width
        self.embed = nn.Linear(config.num_mels * (self.lookahead + 1), width)
        self.stack = ConvNeXtStack(config.vocoder_layers, width, config.kernel_size, config.expansion, causal=True)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * bins)
        nn.init.normal_(self.project.weight, std=0.01)
        self.register_buffer("inverse", torch.from_numpy(mel_inverse(config)), persistent=False)
        self.register_buffer("window", torch.from_numpy(hann_window(self.size)), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, F, M) -> samples (B, F * hop_length)."""
        x = self.stack(self.embed(with_future(frames, self.lookahead, SILENCE)))
        gain, real, imaginary = self.project(self.norm(x)).float().chunk(3, dim=-1)
        energy = (frames.float() * LOG_SCALE + LOG_MEAN).exp() @ self.inverse
        magnitude = energy * gain.clamp(-8.0, 4.0).exp()
        phase = torch.complex(real, imaginary + 1e-3)
        spectrum = magnitude * phase / phase.abs().clamp_min(1e-5)
        return self._overlap_add(torch.fft.irfft(spectrum, self.size) * self.window)

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """Add pieces (B, F, size) one hop apart; half the surplus of a window is cut at either end."""
        total, margin = (pieces.shape[1] - 1) * self.hop + self.size, (self.size - self.hop) // 2
        folded = functional.fold(pieces.transpose(1, 2), (1, total), (1, self.size), stride=(1, self.hop))
        summed = folded.reshape(len(pieces), total) / (self.window.square().sum() / self.hop)
        return summed[:, margin : total - margin]
