"""Codes -> log-mel frames of the answer voice. B batch, N codes, F = 8 N frames, M mels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.encoder import unfold_steps
from vita_mctp.codecs.nano.layers import ConvNeXtStack, Past


class MelState(NamedTuple):
    """What one stream keeps between blocks; None: nothing has been decoded yet."""

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
