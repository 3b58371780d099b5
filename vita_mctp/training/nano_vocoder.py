"""Trains the nano vocoder on the answer voice by multi-resolution spectral distance. B batch, F frames, T samples.

The first part learns from the voice's own frames, the rest from what codec encoder and mel decoder make of them, which
is what the vocoder meets in use.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codec.nano.codec import pad_to_codes
from vita_mctp.codec.nano.config import NanoCodecConfig
from vita_mctp.codec.nano.decoder import NanoMelDecoder
from vita_mctp.codec.nano.encoder import NanoEncoder
from vita_mctp.codec.nano.features import LogMel
from vita_mctp.codec.nano.vocoder import NanoVocoder
from vita_mctp.data.synthetic.corpus import Corpus

log = logging.getLogger(__name__)
RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))
"""Window and hop of each spectrogram compared."""


@dataclass(frozen=True)
class VocoderSchedule:
    """How long and how fast to learn."""

    steps: int = 6000
    own_frames_steps: int = 3000
    """Steps on the voice's own frames before frames come from the codec."""
    batch: int = 24
    crop_codes: int = 14
    learning_rate: float = 2e-3
    warmup: int = 200
    bf16: bool = True
    log_every: int = 100
    save_every: int = 1000

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 2 % of the learning rate."""
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * min((step + 1) / self.warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


def spectral_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Spectral convergence plus log-magnitude L1 over RESOLUTIONS (Yamamoto et al. 2020, arXiv 1910.11480), (B, T)."""
    total = made.new_zeros(())
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size)
        one, other = (
            torch.stft(x, size, hop, window=window, return_complex=True).abs().clamp_min(1e-4) for x in (made, wanted)
        )
        convergence = (other - one).norm(dim=(1, 2)) / other.norm(dim=(1, 2)).clamp_min(1e-2)
        total = total + convergence.mean() + (other.log() - one.log()).abs().mean()
    return total / len(RESOLUTIONS)


class VoiceCrops:
    """Random crops of the answer voice: frames with context on both sides, and the samples of the middle."""

    def __init__(self, corpus: Corpus, indices: list[int], config: NanoCodecConfig, schedule: VocoderSchedule) -> None:
        self.config, self.schedule, self.features = config, schedule, LogMel(config)
        self.waves = [pad_to_codes(corpus.utterance(index).samples, config)[0].half() for index in indices]

    def batch(self, rng: np.random.Generator) -> Tensor:
        """(B, T) samples, zero-padded where an utterance is shorter than a crop."""
        length = self.schedule.crop_codes * self.config.samples_per_code
        rows = []
        for index in rng.integers(len(self.waves), size=self.schedule.batch):
            wave = self.waves[index]
            start = int(rng.integers(max(1, len(wave) - length)))
            piece = wave[start : start + length].float()
            rows.append(functional.pad(piece, (0, length - len(piece))))
        return torch.stack(rows) * torch.from_numpy(rng.uniform(0.5, 1.1, (len(rows), 1)).astype(np.float32))


def train_vocoder(
    vocoder: NanoVocoder,
    codec: tuple[NanoEncoder, NanoMelDecoder] | None,
    crops: VoiceCrops,
    schedule: VocoderSchedule,
    folder: Path,
    seed: int = 0,
) -> None:
    """Train to the schedule's end, resuming from `folder`; without `codec`, stop where its frames would begin."""
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(vocoder.parameters(), lr=schedule.learning_rate, betas=(0.8, 0.95), weight_decay=0.0)
    step = _resume(vocoder, folder)
    last = schedule.steps if codec else schedule.own_frames_steps
    started = time.perf_counter()
    while step < last:
        wanted = crops.batch(np.random.default_rng((seed, step)))
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bf16):
            with torch.no_grad():
                frames = crops.features(wanted)
                if codec and step >= schedule.own_frames_steps:
                    encoder, mel_decoder = codec
                    frames = mel_decoder(encoder(frames)[0])[0]
            made, _ = vocoder(frames)
        # The first and last code of a crop lack the context that they have in use.
        margin = crops.config.samples_per_code
        loss = spectral_distance(made.float()[:, margin:-margin], wanted[:, margin:-margin])
        loss.backward()
        nn.utils.clip_grad_norm_(vocoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % schedule.log_every == 0:
            line = json.dumps(
                {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.perf_counter() - started)}
            )
            log.info(line)
            with (folder / "log.jsonl").open("a") as sink:
                sink.write(line + "\n")
        if step % schedule.save_every == 0 or step == last:
            save_file(vocoder.state_dict(), folder / "vocoder.part", metadata={"step": str(step)})
            (folder / "vocoder.part").rename(folder / f"vocoder-{step}.safetensors")


def _resume(vocoder: NanoVocoder, folder: Path) -> int:
    """Load the newest weights; the optimizer's moments start anew, which 200 steps make good."""
    steps = sorted(int(path.stem.split("-")[1]) for path in folder.glob("vocoder-*.safetensors"))
    if not steps:
        return 0
    vocoder.load_state_dict(load_file(folder / f"vocoder-{steps[-1]}.safetensors"))
    return steps[-1]
