"""A talker's speech, without the thinker that wrote the text, and what an independent judge hears in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vita_mctp.checkpoints.opening import OpenedModel
from vita_mctp.codecs.nano import NanoDecoder, codes_of_digits
from vita_mctp.decoding.frames import FrameAnswer
from vita_mctp.decoding.talker import TalkerAnswer, TalkerOptions
from vita_mctp.evaluation.metrics import Estimate, ratio
from vita_mctp.evaluation.text_scores import text_rule
from vita_mctp.nano.talker_data import SpokenText
from vita_mctp.nano.talker_training import FrameLessons, Lessons
from vita_mctp.nano.transcribers import bigram_transcriber, word_loop_transcriber
from vita_mctp.schema import Schema
from vita_mctp.types import AudioCodes, Code

LONGEST = 96
"""Codes of an answer at most; the longest sentence of the domain has 45."""


class Saying(Schema):
    """One text as it was said. edits: of what the judge heard, with its bigram and in a word loop, against the text.

    codes, expected: how many were said, and how many the answer voice takes. seconds: of processor, for the codes.
    """

    words: int
    edits: int
    loop_edits: int
    codes: int
    expected: int
    seconds: float


@dataclass(frozen=True)
class Manner:
    """How a talker speaks: options, and whether the text comes by chunks."""

    options: TalkerOptions
    streaming: bool = False

    @property
    def name(self) -> str:
        return self.options.name + (" streamed" if self.streaming else "")


@torch.inference_mode()
def speak_rows(talker: Any, rows: Tensor, manner: Manner) -> list[int]:
    """What a VocalNet talker reads of a text (rows, width) -> codes; streamed, it reads C_t rows at a time."""
    answer = TalkerAnswer(talker, manner.options, streaming=manner.streaming)
    units: list[int] = []
    if manner.streaming:
        size = talker.sizes.text_chunk
        for start in range(0, len(rows), size):
            units += answer.push(rows[start : start + size], last=start + size >= len(rows))
    else:
        units = answer.whole(rows)
    return [unit for unit in units if unit < talker.sizes.num_units]


@torch.inference_mode()
def speak_text(lessons: Lessons, talker: Any, text: SpokenText, manner: Manner) -> list[int]:
    """A talker's codes of a text, of either kind."""
    rows = lessons.rows(talker, text)
    if not isinstance(lessons, FrameLessons):
        return speak_rows(talker, rows, manner)
    frames = FrameAnswer(talker, manner.options.levels, LONGEST)
    said = np.array(list(frames.push(rows, last=True)), np.int64)
    codes: list[int] = codes_of_digits(said, lessons.codec.levels).tolist()
    return codes


class Voice:
    """Codes to sound to words."""

    def __init__(self, model: OpenedModel) -> None:
        """Raises MissingExtraError where PocketSphinx is not installed."""
        self._decoder = NanoDecoder.from_folder(Path(model.speech.audio_decoder.folder))
        self._judges = (bigram_transcriber(), word_loop_transcriber())
        self._rule = text_rule("plain")

    def judge(self, text: str, codes: Sequence[int], expected: int, seconds: float = 0.0) -> Saying:
        """expected, seconds: as in `Saying`."""
        decoder = self._decoder
        said = AudioCodes(np.array(codes, np.int64), decoder.codebook_size, decoder.frame_rate, decoder.name)
        wave = decoder.decode(said)
        edits, loop_edits = (self._rule.score(text, judge.transcribe(wave)).total for judge in self._judges)
        counts = {"words": len(text.split()), "codes": len(codes), "expected": expected}
        return Saying(**counts, edits=edits, loop_edits=loop_edits, seconds=seconds)

    def flat(self, codes: Sequence[Code]) -> list[int]:
        """Codes, or frames of a code's digits, as codes."""
        if not codes or isinstance(codes[0], int):
            return [int(code) for code in codes]  # type: ignore[arg-type]
        return codes_of_digits(np.array(codes, np.int64), self._decoder.config.levels).tolist()

    def floor(self, texts: Sequence[SpokenText]) -> list[Saying]:
        """What the judge makes of the codes to be learnt."""
        return [self.judge(text.text, text.codes.tolist(), len(text.codes)) for text in texts]

    def listen(self, lessons: Lessons, talker: Any, texts: Sequence[SpokenText], manner: Manner) -> list[Saying]:
        """The texts as a talker says them."""
        found = []
        for text in texts:
            started = time.process_time()
            codes = speak_text(lessons, talker, text, manner)
            found.append(self.judge(text.text, codes, len(text.codes), time.process_time() - started))
        return found


def word_errors(sayings: Sequence[Saying], *, loop: bool = False) -> Estimate:
    """Of what the judge heard, with its bootstrap 95 % interval over texts."""
    edits = [each.loop_edits if loop else each.edits for each in sayings]
    return ratio(edits, [each.words for each in sayings])


def length_errors(sayings: Sequence[Saying]) -> Estimate:
    """Texts that took less than two thirds or more than four thirds of the answer voice's codes."""
    wrong = [int(not 2 * each.expected <= 3 * each.codes <= 4 * each.expected) for each in sayings]
    return ratio(wrong, [1] * len(sayings))


def codes_per_second(sayings: Sequence[Saying]) -> float:
    """Of processor time of one thread."""
    return sum(each.codes for each in sayings) / max(1e-9, sum(each.seconds for each in sayings))
