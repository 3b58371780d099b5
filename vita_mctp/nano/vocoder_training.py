"""Trains the nano vocoder on the answer voice by multi-resolution spectral distance. B batch, F frames, T samples.

The first part learns from the voice's own frames. In the rest codes go in and samples come out: mel decoder and vocoder
learn together, the encoder and so the codes stay as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import SILENCE, LogMel, NanoCodecConfig, pad_to_codes
from vita_mctp.codecs.nano.networks import NanoEncoder, NanoMelDecoder, NanoVocoder
from vita_mctp.nano.codec_data import FeatureStore
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.fitting import Schedule, fit, resume

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))
"""Window and hop of each spectrogram compared."""


class VocoderSchedule(Schedule):
    """own_frames_steps: steps on the voice's own frames before frames come from codes. margin_codes: at either end of a
    crop, not compared, because they lack the context that they have in use.
    """

    steps: int = Field(default=6000, gt=0)
    own_frames_steps: int = Field(default=2000, ge=0)
    batch: int = Field(default=16, gt=0)
    crop_codes: int = Field(default=24, gt=0)
    margin_codes: int = Field(default=2, gt=0)
    log_every: int = Field(default=100, gt=0)
    save_every: int = Field(default=1000, gt=0)

    @model_validator(mode="after")
    def _crops_have_a_middle(self) -> VocoderSchedule:
        if self.crop_codes <= 2 * self.margin_codes:
            raise ValueError(f"crop_codes {self.crop_codes}; wanted: over twice margin_codes {self.margin_codes}")
        return self


def spectral_distance(made: Tensor, target: Tensor) -> Tensor:
    """Spectral convergence plus log-magnitude L1 over RESOLUTIONS (Yamamoto et al. 2020, arXiv 1910.11480), (B, T)."""
    total = made.new_zeros(())
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size)
        one, other = (
            torch.stft(x, size, hop, window=window, return_complex=True).abs().clamp_min(1e-4) for x in (made, target)
        )
        convergence = (other - one).norm(dim=(1, 2)) / other.norm(dim=(1, 2)).clamp_min(1e-2)
        total = total + convergence.mean() + (other.log() - one.log()).abs().mean()
    return total / len(RESOLUTIONS)


class VoiceCrops:
    """Random crops of the answer voice: samples as spoken, and frames on the word grid, of which no samples exist."""

    def __init__(
        self,
        corpus: Corpus,
        store: FeatureStore,
        parts: tuple[str, ...],
        config: NanoCodecConfig,
        sizes: VocoderSchedule,
    ) -> None:
        self.config, self.sizes, self._log_mel = config, sizes, LogMel(config)
        indices = corpus.indices(*parts)
        waves = (pad_to_codes(corpus.utterance(index).samples, config) for index in indices)
        self._waves = [torch.from_numpy(wave).half() for wave in waves]
        chosen = set(indices)
        self._grid = [item for item in store.items if item.grid and item.utterance in chosen]
        self._store = store

    def waves(self, rng: np.random.Generator) -> Tensor:
        """(B, T) samples, zero-padded where an utterance is shorter than a crop."""
        length = self.sizes.crop_codes * self.config.samples_per_code
        rows = []
        for index in rng.integers(len(self._waves), size=self.sizes.batch):
            piece = _crop(self._waves[index].float(), length, 1, rng)
            rows.append(functional.pad(piece, (0, length - len(piece))))
        return torch.stack(rows) * torch.from_numpy(rng.uniform(0.5, 1.1, (len(rows), 1)).astype(np.float32))

    def features(self, waves: Tensor) -> Tensor:
        """(B, T) samples -> (B, F, M) log-mel frames."""
        return torch.from_numpy(self._log_mel(waves.numpy()))

    def grid_frames(self, rng: np.random.Generator) -> Tensor:
        """(B, F, M) log-mel frames, silence where a sentence is shorter than a crop."""
        length = self.sizes.crop_codes * self.config.frames_per_code
        rows = []
        for index in rng.integers(len(self._grid), size=self.sizes.batch):
            frames = torch.from_numpy(self._store.frames(self._grid[index]))
            piece = _crop(frames, length, self.config.frames_per_code, rng)
            rows.append(functional.pad(piece, (0, 0, 0, length - len(piece)), value=SILENCE))
        return torch.stack(rows)


def _crop(values: Tensor, length: int, step: int, rng: np.random.Generator) -> Tensor:
    """`length` neighbours from a random multiple of `step` on, or all where there are fewer."""
    start = step * int(rng.integers(max(1, (len(values) - length) // step + 1)))
    return values[start : start + length]


class Speaker(nn.Module):
    """Mel decoder and vocoder, as they ship; the frozen encoder makes their codes."""

    def __init__(self, encoder: NanoEncoder, mel_decoder: NanoMelDecoder, vocoder: NanoVocoder) -> None:
        super().__init__()
        self.mel_decoder, self.vocoder = mel_decoder, vocoder
        self._hear = encoder.requires_grad_(False).hidden
        self._encode = encoder.forward

    def own_frames_loss(self, crops: VoiceCrops, rng: np.random.Generator) -> Tensor:
        """Of the vocoder alone: frames of the recording in, its samples out."""
        target = crops.waves(rng)
        return self._distance(self.vocoder(crops.features(target)), target, crops)

    def codes_loss(self, crops: VoiceCrops, rng: np.random.Generator) -> Tensor:
        """Codes in, samples out, and log-mel frames out as well, both as spoken and on the word grid.

        The frames must also sound alike to the encoder, which learnt to hear phones (Johnson et al. 2016, arXiv
        1603.08155, whose loss network was a classifier of images).
        """
        target, grid = crops.waves(rng), crops.grid_frames(rng)
        frames = torch.cat([crops.features(target), grid])
        made = self.mel_decoder(self._encode(frames)[0])
        samples = self.vocoder(made[: len(target)])
        heard = zip(self._hear(made), self._hear(frames), strict=True)
        pairs = [(2.0, made, frames), *((0.5, one, other) for one, other in heard)]
        close = sum(weight * self._difference(one, other, crops) for weight, one, other in pairs)
        return self._distance(samples, target, crops) + close

    @staticmethod
    def _difference(made: Tensor, target: Tensor, crops: VoiceCrops) -> Tensor:
        """Mean absolute difference of (B, T, C) within the margins, whatever the rate of its T steps."""
        margin = crops.sizes.margin_codes * made.shape[1] // crops.sizes.crop_codes
        return (made.float() - target.float()).abs()[:, margin:-margin].mean()

    @staticmethod
    def _distance(made: Tensor, target: Tensor, crops: VoiceCrops) -> Tensor:
        margin = crops.sizes.margin_codes * crops.config.samples_per_code
        return spectral_distance(made.float()[:, margin:-margin], target[:, margin:-margin])


def train_speaker(speaker: Speaker, crops: VoiceCrops, schedule: VocoderSchedule, folder: Path, seed: int = 0) -> None:
    """Train to the schedule's end, resuming from `folder` if it holds a checkpoint."""
    optimizer = torch.optim.AdamW(speaker.parameters(), lr=schedule.learning_rate, betas=(0.8, 0.95), weight_decay=0.0)

    def losses(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, step))
        own = step < schedule.own_frames_steps
        return {"total": speaker.own_frames_loss(crops, rng) if own else speaker.codes_loss(crops, rng)}

    fit(speaker, optimizer, schedule, folder, resume(speaker, optimizer, folder), losses)
