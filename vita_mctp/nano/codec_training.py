"""Trains the nano codec: phones and words must be readable behind the quantiser, the answer voice must come back. Then
its vocoder: first on the voice's own frames; in the rest codes go in and samples come out, and mel decoder and
vocoder learn together, while the encoder and so the codes stay as they are.

B batch, F frames, N codes, S fine steps (50 a second). Supervision: frame-wise phones where the synthesiser's alignment
is known, phone CTC and word CTC everywhere, L1 on log-mel frames for the answer voice only.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import SILENCE, LogMel, NanoCodecConfig, pad_to_codes
from vita_mctp.codecs.nano.networks import ConvNeXtStack, NanoEncoder, NanoMelDecoder, NanoVocoder, unfold_steps
from vita_mctp.nano.codec_data import IGNORED, BatchMaker, CodecBatch, FeatureStore
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.fitting import Schedule, fit, resume, write_log
from vita_mctp.types import IntArray

BLANK = 0
"""CTC's blank; phone and word ids are shifted by one in the CTC heads."""


class Readout(nn.Module):
    """Reads phones and words from grid points alone; used in training, not shipped."""

    def __init__(self, config: NanoCodecConfig, num_phones: int, num_words: int) -> None:
        super().__init__()
        self.stride, width = config.stride, 192
        self.embed = nn.Linear(len(config.levels), width)
        self.coarse = ConvNeXtStack(2, width, 5, config.expansion, causal=False)
        self.split = nn.Linear(width, 128 * config.stride)
        self.fine = ConvNeXtStack(1, 128, 5, config.expansion, causal=False)
        self.frame_phones = nn.Linear(128, num_phones)
        self.phones = nn.Linear(128, num_phones + 1)
        self.words_stack = ConvNeXtStack(2, width, 9, config.expansion, causal=False)
        self.words = nn.Linear(width, 2 * (num_words + 1))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> logits of phones by fine step (B, S, P), phone CTC (B, S, P + 1), word CTC (B, 2 N, W + 1)."""
        coarse = self.coarse(self.embed(points))
        fine = self.fine(unfold_steps(self.split(coarse), self.stride))
        words = self.words_stack(coarse)
        return self.frame_phones(fine), self.phones(fine), unfold_steps(self.words(words), 2)


class CodecTrainer(nn.Module):
    """Encoder, mel decoder and readout with one loss."""

    def __init__(self, config: NanoCodecConfig, num_phones: int, num_words: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = NanoEncoder(config)
        self.mel_decoder = NanoMelDecoder(config)
        self.readout = Readout(config, num_phones, num_words)

    def forward(self, batch: CodecBatch) -> dict[str, Tensor]:
        """Each loss by name; `total` is what is minimised."""
        points, _ = self.encoder(batch.inputs)
        losses = readout_losses(self.readout, points, batch, self.config)
        losses["mel"] = self._mel_loss(points, batch)
        losses["total"] = losses["mel"] + 0.5 * losses["frame_phone"] + losses["phone_ctc"] + 0.5 * losses["word_ctc"]
        return losses

    def _mel_loss(self, points: Tensor, batch: CodecBatch) -> Tensor:
        rows = batch.is_answer
        if not bool(rows.any()):
            return points.sum() * 0.0
        frames = self.mel_decoder(points[rows])
        valid = torch.arange(frames.shape[1])[None] < batch.num_frames[rows][:, None]
        return (frames.float() - batch.targets[rows]).abs()[valid].mean()


def readout_losses(readout: Readout, points: Tensor, batch: CodecBatch, config: NanoCodecConfig) -> dict[str, Tensor]:
    """What is read behind the quantiser: phones and words by CTC, and phones by frame where these are known."""
    by_step, phones, words = readout(points)
    found = {
        "phone_ctc": ctc(phones, batch.num_frames // config.patch_frames, batch.phones),
        "word_ctc": ctc(words, 2 * (batch.num_frames // config.frames_per_code), batch.words),
    }
    labels, flat = batch.phone_frames.flatten(), by_step.float().flatten(0, 1)
    known = bool((labels != IGNORED).any())
    found["frame_phone"] = functional.cross_entropy(flat, labels, ignore_index=IGNORED) if known else flat.sum() * 0.0
    return found


def ctc(logits: Tensor, lengths: Tensor, labels: list[IntArray]) -> Tensor:
    """Connectionist temporal classification per label (B, T, V) with label ids shifted past the blank."""
    flat = torch.from_numpy(np.concatenate(labels) + 1)
    sizes = torch.tensor([len(row) for row in labels])
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return functional.ctc_loss(log_probs, flat, lengths, sizes, blank=BLANK, zero_infinity=True)


def greedy_ctc(logits: Tensor, length: int) -> list[int]:
    """Best path (T, V) without repeats and blanks, as label ids."""
    best = logits[:length].argmax(-1)
    kept = torch.unique_consecutive(best)
    return [int(label) - 1 for label in kept if int(label) != BLANK]


def edit_distance(first: list[int], second: list[int]) -> int:
    """Levenshtein distance between two label sequences."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


@torch.inference_mode()
def error_rates(trainer: CodecTrainer, batches: Iterable[CodecBatch]) -> dict[str, float]:
    """Phone and word error rate behind the quantiser, log-mel L1 of the answer voice, and how many codes are in use."""
    totals, used = dict.fromkeys(("phone_errors", "phones", "word_errors", "words", "mel", "batches"), 0.0), set()
    for batch in batches:
        points, codes = trainer.encoder(batch.inputs)
        _, phones, words = trainer.readout(points)
        for row, frames in enumerate(batch.num_frames.tolist()):
            true_phones, true_words = batch.phones[row].tolist(), batch.words[row].tolist()
            steps, code_count = frames // trainer.config.patch_frames, frames // trainer.config.frames_per_code
            totals["phone_errors"] += edit_distance(greedy_ctc(phones[row], steps), true_phones)
            totals["word_errors"] += edit_distance(greedy_ctc(words[row], 2 * code_count), true_words)
            totals["phones"] += len(true_phones)
            totals["words"] += len(true_words)
            used.update(codes[row, :code_count].tolist())
        totals["mel"] += float(trainer._mel_loss(points, batch))
        totals["batches"] += 1
    return {
        "phone_error_rate": totals["phone_errors"] / max(1.0, totals["phones"]),
        "word_error_rate": totals["word_errors"] / max(1.0, totals["words"]),
        "mel_l1": totals["mel"] / max(1.0, totals["batches"]),
        "codes_used": float(len(used)),
    }


class CodecSchedule(Schedule):
    weight_decay: float = Field(default=0.01, ge=0)


def train_codec(
    trainer: CodecTrainer, maker: BatchMaker, tests: dict[str, list[CodecBatch]], schedule: CodecSchedule, folder: Path
) -> None:
    """Train to the schedule's end, resuming from `folder` if it holds a checkpoint."""
    decay = schedule.weight_decay
    optimizer = torch.optim.AdamW(trainer.parameters(), schedule.learning_rate, betas=(0.9, 0.98), weight_decay=decay)
    step = resume(trainer, optimizer, folder)
    # A resumed run goes on with an epoch that it has not seen, not in the middle of the one it was in.
    batches = chain.from_iterable(map(maker.epoch, count(step)))

    def test(step: int) -> None:
        trainer.eval()
        for name, held in tests.items():
            write_log(folder, {"step": step, "test": name, **error_rates(trainer, held)})
        trainer.train()

    fit(trainer, optimizer, schedule, folder, step, lambda _: trainer(next(batches)), test)


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
