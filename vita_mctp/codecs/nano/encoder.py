"""Log-mel frames -> codes. B batch, F frames (100 per second), N codes (12.5 per second), M mels."""

from __future__ import annotations

from torch import Tensor, nn

from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.layers import ConvNeXtStack
from vita_mctp.codecs.nano.quantizer import FiniteScalarQuantizer


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
        """What both stages hear in (B, F, M): 50 and 12.5 states a second, (B, 4 N, fine) and (B, N, coarse)."""
        fine, _ = self.fine(self.embed(fold_steps(frames, self.patch)))
        coarse, _ = self.coarse(self.merge(fold_steps(fine, self.stride)))
        return fine, self.norm(coarse)


def fold_steps(x: Tensor, count: int) -> Tensor:
    """(B, T, C) -> (B, T / count, count * C): neighbouring steps side by side."""
    return x.reshape(x.shape[0], x.shape[1] // count, count * x.shape[2])


def unfold_steps(x: Tensor, count: int) -> Tensor:
    """(B, T, count * C) -> (B, count * T, C): the inverse of `fold_steps`."""
    return x.reshape(x.shape[0], x.shape[1] * count, x.shape[2] // count)
