"""The nano codec's three networks: log-mel frames -> codes, codes -> log-mel frames of the answer voice, and samples.

B batch, F frames (100 per second), N codes (12.5 per second), M mels, Q frequency bins, T samples. State is a value
that a call takes and returns; None: nothing has been decoded yet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import LOG_MEAN, LOG_SCALE, SILENCE, NanoCodecConfig, mel_filterbank
from vita_mctp.codecs.nano.layers import ConvNeXtStack, FiniteScalarQuantizer, Past, fold_steps, unfold_steps


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
