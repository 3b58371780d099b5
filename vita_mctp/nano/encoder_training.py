"""Teaches a finished nano's encoder natural voices; its language model and its decoder stay as they are.

The encoder learns through the frozen language model: forward its codes, backward the gradient of the embeddings
interpolated on the quantiser's grid. Behind the quantiser phones and words must be readable, as in the codec's own
training; flite's and espeak-ng's speech keeps the codes that it had, however it is disturbed.

B batch, F frames, M mels, N codes, D dimensions of the quantiser, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, count, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.checkpoints.opening import OpenedModel
from vita_mctp.codecs.nano.config import LOG_MEAN, LOG_SCALE, SILENCE, NanoCodecConfig, mel_filterbank
from vita_mctp.codecs.nano.networks import NanoEncoder
from vita_mctp.models.registry import SpeechModel
from vita_mctp.nano.codec_data import BatchMaker, CodecBatch, FeatureStore
from vita_mctp.nano.codec_training import Readout, readout_losses
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.fitting import Schedule, fit, resume
from vita_mctp.nano.voices import PHONES
from vita_mctp.text.chat import (
    ASR_INSTRUCTION,
    IGNORED,
    SPEECH_TO_SPEECH_SYSTEM,
    ChatFormat,
    Clip,
    Message,
    Sample,
)
from vita_mctp.text.vocabulary import AUDIO_TAG

MOST_BLOCKS = 7
"""What a transcript's words go through, and more; each step draws how many."""

NEW_SCALE = 3.0
"""How much faster the readout learns, which begins from nothing."""

MOST_CUT = 20
"""Frames of the quarter of a second around a question's speech that a batch may leave out."""

MOST_STRETCHED = 0.15
"""By how much a batch slows a natural voice down or speeds it up."""


class EncoderSchedule(Schedule):
    """How the encoder is trained on.

    questions: how many natural voices ask; 0: the encoder is not trained on. recordings: how many more forms of each
    there are, disturbed as sound (`as_recorded`). babble: how many times natural voices say words in no order; spliced:
    and how many times more, word by word. max_frames: log-mel frames of natural voices in one step; known ones have
    half as many. readout_steps: at first the readout alone learns. kept: weight of the distance to the digits that
    known voices had; kept_answers: for the answer voice, whose codes the decoder turns into sound. asr: how often a
    question is to be transcribed; else it is answered. clean: how many of the recordings are heard as they are, without
    noise in their pauses.
    """

    questions: int = Field(default=0, ge=0)
    recordings: int = Field(default=0, ge=0)
    babble: int = Field(default=0, ge=0)
    spliced: int = Field(default=0, ge=0)
    steps: int = Field(default=3500, gt=0)
    learning_rate: float = Field(default=6e-4, gt=0)
    readout_steps: int = Field(default=300, ge=0)
    max_frames: int = Field(default=4096, gt=0)
    kept: float = Field(default=1.0, ge=0)
    kept_answers: float = Field(default=4.0, ge=0)
    asr: float = Field(default=0.5, ge=0, le=1)
    clean: float = Field(default=0.25, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)


class Pupil(nn.Module):
    """What is trained: the encoder, and a readout that is not shipped."""

    def __init__(self, encoder: NanoEncoder, config: NanoCodecConfig, num_words: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.readout = Readout(config, len(PHONES), num_words)


@dataclass(frozen=True, eq=False)
class Questions:
    """Training samples around a question's codes. answers: the codes in which the answer voice says a text."""

    chat: ChatFormat
    answers: Mapping[str, tuple[int, ...]]

    def sample(self, text: str, num_codes: int, asr: bool) -> Sample:
        """The codes of the question are zeros, the first ones of the sample."""
        heard, answer = Clip((0,) * num_codes), _ANSWER_OF.get(text, "")
        if asr or answer not in self.answers:
            messages = [Message("user", f"{ASR_INSTRUCTION}\n{AUDIO_TAG}"), Message("assistant", text)]
            return self.chat.sample(messages, [heard])
        messages = [
            Message("system", SPEECH_TO_SPEECH_SYSTEM),
            Message("user", self.chat.style.before_speech + AUDIO_TAG),
            Message("assistant", answer + AUDIO_TAG),
        ]
        return self.chat.sample(messages, [heard, Clip(self.answers[answer])])


_ANSWER_OF = {qa.question: qa.answer for qa in build_domain().train}


@dataclass(frozen=True, eq=False)
class EncoderLosses:
    """The losses of one step. lm and teacher are frozen."""

    lm: SpeechModel
    teacher: NanoEncoder
    questions: Questions
    schedule: EncoderSchedule
    config: NanoCodecConfig
    natural: Iterator[CodecBatch]
    known: Iterator[CodecBatch]
    rng: np.random.Generator

    def of_step(self, pupil: Pupil, step: int) -> dict[str, Tensor]:
        """By name; `total` is what is minimised."""
        natural, known = next(self.natural), next(self.known)
        with torch.set_grad_enabled(step >= self.schedule.readout_steps):
            heard = unrounded(pupil.encoder, self._heard(natural))
            kept = unrounded(pupil.encoder, self._heard(known))
        losses: dict[str, Tensor] = {}
        for name, batch, digits in (("natural", natural, heard), ("known", known, kept)):
            points = self.teacher.quantizer.points(straight_through(digits))
            read = readout_losses(pupil.readout, points, batch, self.config)
            losses |= {f"{name}_{what}": loss for what, loss in read.items()}
        total = torch.stack(list(losses.values())).sum() * 0.5
        if step >= self.schedule.readout_steps:
            losses["kept"], losses["kept_answers"] = self._kept(known, kept)
            losses["lm"] = self._lm_loss(natural, heard)
            total = total + self.schedule.kept * losses["kept"] + self.schedule.kept_answers * losses["kept_answers"]
            total = total + losses["lm"]
        return {**losses, "total": total}

    def _heard(self, batch: CodecBatch) -> Tensor:
        return as_heard(batch, self.rng, self.config, self.schedule.clean)

    def _kept(self, batch: CodecBatch, digits: Tensor) -> tuple[Tensor, Tensor]:
        """Mean distance to the digits that the undisturbed speech had: of the askers, of the answer voice.

        Within half a digit's cell there is none, so that most digits stay what they were when rounded.
        """
        with torch.no_grad():
            targets = unrounded(self.teacher, batch.targets).round()
        codes = batch.num_frames // self.config.frames_per_code
        valid = torch.arange(digits.shape[1])[None] < codes[:, None]
        distance = ((digits - targets).abs() - 0.25).clamp_min(0).mean(-1)
        both = [valid & answer[:, None] for answer in (~batch.is_answer, batch.is_answer)]
        one, other = ((distance * rows).sum() / rows.sum().clamp_min(1) for rows in both)
        return one, other

    def _lm_loss(self, batch: CodecBatch, digits: Tensor) -> Tensor:
        codes = (batch.num_frames // self.config.frames_per_code).tolist()
        samples = [
            self.questions.sample(text, length, asr=bool(self.rng.random() < self.schedule.asr))
            for text, length in zip(batch.texts, codes, strict=True)
        ]
        longest, v = max(map(len, samples)), self.questions.chat.tokenizer.vocabulary
        ids = torch.tensor([(*sample.ids, *[v.pad] * (longest - len(sample))) for sample in samples])
        labels = torch.tensor([(*sample.labels, *[IGNORED] * (longest - len(sample))) for sample in samples])
        table = self.lm.embed(torch.arange(v.audio_0, v.audio_0 + v.num_audio)[None])[0]
        soft, embeds = embed_softly(digits, table, self.config.levels), self.lm.embed(ids).clone()
        for row, (sample, length) in enumerate(zip(samples, codes, strict=True)):
            start = sample.ids.index(v.begin_of_audio) + 1
            embeds[row, start : start + length] = soft[row, :length].to(embeds.dtype)
        return lm_loss(self.lm, embeds, labels, int(self.rng.integers(MOST_BLOCKS + 1)))


def unrounded(encoder: NanoEncoder, frames: Tensor) -> Tensor:
    """(B, F, M) -> the quantiser's digits (B, N, D) before they are rounded."""
    _, coarse = encoder.hidden(frames)
    return encoder.quantizer.bounded(encoder.project(coarse).float())


def straight_through(digits: Tensor) -> Tensor:
    """Rounded, with the gradient of what was rounded."""
    return digits + (digits.round() - digits).detach()


def embed_softly(digits: Tensor, table: Tensor, levels: Sequence[int]) -> Tensor:
    """Unrounded digits (B, N, D) -> the embeddings of their codes (B, N, H), from `table` (codes, H).

    The gradient is that of the table interpolated linearly between the grid's points.
    """
    tops, basis = torch.tensor(levels) - 1, torch.tensor(np.cumprod([1, *levels[:-1]]))
    low = torch.minimum(digits.detach().floor().long(), tops - 1)
    above = digits - low
    between = torch.zeros(())
    for corner in product((0, 1), repeat=len(levels)):
        side = torch.tensor(corner)
        weight = torch.where(side.bool(), above, 1 - above).prod(-1, keepdim=True)
        between = between + weight * table[((low + side) * basis).sum(-1)]
    hard = table[(digits.detach().round().long() * basis).sum(-1)]
    return hard + (between - between.detach())


def lm_loss(lm: SpeechModel, embeds: Tensor, labels: Tensor, num_blocks: int) -> Tensor:
    """Cross-entropy, teacher-forced, of the backbone, and the mean over it and so many blocks.

    embeds (B, T, H), labels (B, T), not shifted.
    """
    positions = torch.arange(embeds.shape[1]).expand(embeds.shape[:2])
    hidden = lm.backbone(embeds, positions)
    losses = [_cross_entropy(lm, hidden, labels)]
    for k in range(min(num_blocks, lm.config.num_nextn_predict_layers)):
        hidden = lm.block(k, embeds[:, k + 1 :], hidden[:, :-1], positions[:, k + 1 :])
        losses.append(_cross_entropy(lm, hidden, labels[:, k + 1 :]))
    return losses[0] + torch.stack(losses).mean()


def _cross_entropy(lm: SpeechModel, hidden: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, 1:]
    rows = targets != IGNORED
    return functional.cross_entropy(lm.logits(hidden[:, :-1][rows]).float(), targets[rows])


def as_heard(batch: CodecBatch, rng: np.random.Generator, config: NanoCodecConfig, clean: float) -> Tensor:
    """The batch's frames (B, F, M), disturbed but for the answer voice's; so many of the others as they were spoken."""
    untouched = torch.from_numpy(rng.random(len(batch.inputs)) < clean) & ~batch.is_answer
    heard = torch.where(batch.is_answer[:, None, None], batch.inputs, disturb(batch.inputs, config, rng))
    return torch.where(untouched[:, None, None], batch.targets, heard)


def disturb(frames: Tensor, config: NanoCodecConfig, rng: np.random.Generator) -> Tensor:
    """Of log-mel frames (B, F, M) some rows by telephone, some faint, some in noise, all of it drawn for each row."""
    batch, mels, hop = len(frames), config.num_mels, config.hop_length / config.sample_rate
    log = frames * LOG_SCALE + LOG_MEAN

    def often(probability: float) -> Tensor:
        return torch.from_numpy(rng.random(batch) < probability)[:, None, None]

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, 1, 1)).astype(np.float32))

    axis = torch.arange(mels)[None, None]
    log = torch.where(often(0.25), _in_room(log, draw(0.15, 0.7), draw(0.0, 12.0), hop), log)
    band = (axis < draw(50.0, 66.0)) & (axis >= draw(-4.0, 16.0))
    log = torch.where(often(0.3) & ~band, torch.tensor(SILENCE * LOG_SCALE + LOG_MEAN), log)
    loudest = log.logsumexp(2).amax(1)[:, None, None]
    log = log - often(0.2) * draw(0.0, 2.5)
    width = torch.from_numpy(mel_filterbank(config.sample_rate, config.mel_window, mels).sum(1)).log()
    hiss = width - width.logsumexp(0) + draw(-1.5, 0.5) * (axis / mels - 0.5)
    level = torch.where(often(0.4), loudest - draw(1.5, 5.0), loudest - draw(5.0, 16.0))
    noise = level + hiss + 0.3 * torch.from_numpy(rng.standard_normal(frames.shape, dtype=np.float32))
    loud = log.logsumexp(2, keepdim=True) > loudest - 4.0
    inside = loud.cumsum(1).bool() & loud.flip(1).cumsum(1).flip(1).bool()
    around = often(0.3)  # noise before and behind the speech alone
    noise = torch.where(around & inside, torch.tensor(SILENCE * LOG_SCALE + LOG_MEAN), noise)
    return ((torch.logaddexp(log, noise) - LOG_MEAN) / LOG_SCALE).clamp_min(SILENCE)


def _in_room(log: Tensor, decay: Tensor, direct: Tensor, hop: float) -> Tensor:
    """Log amplitudes (B, F, M) with the room's echo, which falls by 60 dB in `decay` seconds and is `direct` dB below
    the voice, both (B, 1, 1)."""
    kept = torch.exp(-13.8 * hop / decay)
    energy, echo = (2 * log).exp(), torch.zeros_like(log)
    for frame in range(1, log.shape[1]):
        echo[:, frame] = kept[:, 0] * (echo[:, frame - 1] + energy[:, frame - 1])
    return 0.5 * (energy + 10 ** (-direct / 10) * (1 - kept) / kept * echo).clamp_min(1e-12).log()


def train_encoder(
    model: OpenedModel,
    known: tuple[Corpus, FeatureStore],
    natural: tuple[Corpus, FeatureStore],
    schedule: EncoderSchedule,
    folder: Path,
    seed: int,
) -> NanoEncoder:
    """The model's encoder trained on, or finished where it stopped; checkpoints are in `folder`.

    known: the corpus that the model was made from. natural: training questions by natural voices.
    """
    torch.manual_seed(seed)
    codec = Path(model.speech.audio_tokenizer.folder)
    config, teacher = NanoCodecConfig.load(codec), NanoEncoder.from_folder(codec)
    lm = model.load_model(dtype="bfloat16" if schedule.bf16 else "float32", attn="eager")
    for weight in lm.parameters():
        weight.requires_grad_(False)
    pupil = Pupil(deepcopy(teacher).train().requires_grad_(True), config, len(natural[0].vocabulary))
    groups: list[dict[str, Any]] = [{"params": [*pupil.encoder.parameters()]}]
    groups.append({"params": [*pupil.readout.parameters()], "scale": NEW_SCALE})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=schedule.weight_decay)
    step = resume(pupil, optimizer, folder)
    held_out = set(known[0].indices(*(part for part in known[0].parts if part.startswith("eval_"))))
    kept = [item for item in known[1].items if item.utterance not in held_out]
    makers = (
        BatchMaker(
            natural[1], natural[0], config, natural[1].items, schedule.max_frames, seed, MOST_CUT, MOST_STRETCHED
        ),
        BatchMaker(known[1], known[0], config, kept, max(1, schedule.max_frames // 2), seed),
    )
    # A resumed run goes on with an epoch that it has not seen.
    batches = [chain.from_iterable(map(maker.epoch, count(step))) for maker in makers]
    chat = ChatFormat(model.load_tokenizer(config.codebook_size))
    questions = Questions(chat, answer_codes(makers[1], teacher))
    rng = np.random.default_rng((seed, step))
    losses = EncoderLosses(lm, teacher, questions, schedule, config, batches[0], batches[1], rng)
    fit(pupil, optimizer, schedule, folder, step, lambda now: losses.of_step(pupil, now))
    return pupil.encoder.eval().requires_grad_(False)


def answer_codes(maker: BatchMaker, encoder: NanoEncoder) -> dict[str, tuple[int, ...]]:
    """The codes of every answer on the word grid, as the language model learnt to say it."""
    spoken = set(maker.corpus.indices("answers"))
    items = sorted(
        (item for item in maker.items if item.grid and item.utterance in spoken), key=lambda item: item.num_frames
    )
    found: dict[str, tuple[int, ...]] = {}
    for group in maker.groups(items):
        batch = maker.batch(group, None)
        with torch.inference_mode():
            codes = encoder(batch.inputs)[1]
        lengths = (batch.num_frames // maker.config.frames_per_code).tolist()
        found |= {text: tuple(row[:n].tolist()) for text, row, n in zip(batch.texts, codes, lengths, strict=True)}
    return found
