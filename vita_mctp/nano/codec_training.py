"""Trains the nano codec: phones and words must be readable behind the quantiser, the answer voice must come back.

B batch, F frames, N codes, S fine steps (50 a second). Supervision: frame-wise phones where the synthesiser's alignment
is known, phone CTC and word CTC everywhere, L1 on log-mel frames for the answer voice only.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.networks import ConvNeXtStack, NanoEncoder, NanoMelDecoder, unfold_steps
from vita_mctp.nano.codec_data import IGNORED, BatchMaker, CodecBatch
from vita_mctp.nano.fitting import Schedule, fit, resume, write_log
from vita_mctp.types import IntArray

BLANK = 0
"""CTC's blank; phone and word ids are shifted by one in the CTC heads."""


class Readout(nn.Module):
    """Reads phones and words from grid points alone; used in training, not shipped."""

    def __init__(self, config: NanoCodecConfig, num_phones: int, num_words: int, width: int = 192) -> None:
        super().__init__()
        self.stride = config.stride
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
        by_step, phones, words = self.readout(points)
        steps = batch.num_frames // self.config.patch_frames
        codes = batch.num_frames // self.config.frames_per_code
        losses = {
            "frame_phone": functional.cross_entropy(
                by_step.float().flatten(0, 1), batch.phone_frames.flatten(), ignore_index=IGNORED
            )
            if bool((batch.phone_frames != IGNORED).any())
            else by_step.sum() * 0.0,
            "phone_ctc": ctc(phones, steps, batch.phones),
            "word_ctc": ctc(words, 2 * codes, batch.words),
            "mel": self._mel_loss(points, batch),
        }
        losses["total"] = losses["mel"] + 0.5 * losses["frame_phone"] + losses["phone_ctc"] + 0.5 * losses["word_ctc"]
        return losses

    def _mel_loss(self, points: Tensor, batch: CodecBatch) -> Tensor:
        rows = batch.is_answer
        if not bool(rows.any()):
            return points.sum() * 0.0
        frames = self.mel_decoder(points[rows])
        valid = torch.arange(frames.shape[1])[None] < batch.num_frames[rows][:, None]
        return (frames.float() - batch.targets[rows]).abs()[valid].mean()


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
