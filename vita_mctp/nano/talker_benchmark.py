"""How a nano VocalNet answers aloud: what the judge hears against what it wrote, lengths, speed, time to first sound.

The thinker answers each held-out question once; the talker then says that text in every manner. What a streamed answer
takes until its first sound is measured through the front door.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vita_mctp.audio import cut_to_speech
from vita_mctp.checkpoints.opening import OpenedModel, find_model, open_model
from vita_mctp.codecs.nano import NanoDecoder, codes_of_digits
from vita_mctp.decoding.frames import FrameAnswer
from vita_mctp.decoding.speaking import FrameStream, SpokenStream, speak_whole
from vita_mctp.decoding.talker import Contract, TalkerAnswer, TalkerOptions
from vita_mctp.environment import look_around, weights_hash
from vita_mctp.errors import ConfigError
from vita_mctp.evaluation.metrics import Estimate, ratio
from vita_mctp.evaluation.report import percent, table
from vita_mctp.evaluation.text_scores import text_rule
from vita_mctp.files import write_output
from vita_mctp.models.registry import FrameSpeaking, Speaking
from vita_mctp.nano.cases import QUESTION_GROUPS, RIGHT_ANSWERS, SAID, speak_samples
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.talker_data import SpokenText
from vita_mctp.nano.talker_training import FrameLessons, Lessons
from vita_mctp.nano.transcribers import bigram_transcriber, word_loop_transcriber
from vita_mctp.schema import Schema
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import AudioBlock, AudioCodes, Code, TokenEvent, Wave, WaveChunk

_CONTRACTS: tuple[Contract, ...] = ("as_trained", "reference")
_HEAD = ("decoding", "text", "WER2 %", "WER1 %", "length errors %", "codes a CPU-second", "first sound, CPU ms")


@dataclass(frozen=True, eq=False)
class Written:
    """A thinker's answer: its tokens, each with the state that predicted it.

    question: cut to its speech. right: the right answer. expected: the codes that the answer voice takes for that.
    seconds: of processor, from the question to the end of the text.
    """

    question: Wave
    text: str
    right: str
    expected: int
    events: tuple[TokenEvent, ...]
    seconds: float


def evaluate_nano_vocalnet(model: str, n: int, work: Path, out: Path) -> None:
    """Writes the page. Raises ConfigError for a model without such a talker, MissingExtraError without a judge."""
    opened = open_model(model)
    speech_lm = SpeechLM.from_opened(opened)
    rules = speech_lm.speaking
    if rules is None:
        raise ConfigError(f"{model} has no talker; name what `train nano-vocalnet` or `nano-vocalnet-m2` has made")
    voice, written = Voice(opened), list(_written(speech_lm, work, n))
    floor = [voice.judge(right, codes, len(codes)) for right, codes in _copies(speech_lm, work, n)]
    rows = [_row("the answer voice's own codes", "", floor, "")]
    for manner in _manners(rules):
        sayings, first = _say(speech_lm, rules, voice, written, manner)
        speed, _, contract = manner.options.name.partition(",")
        if isinstance(rules, Speaking):
            speed += ", " + (contract.replace("_", " ") or "reference")
        text = "streamed" if manner.streaming else "whole"
        rows.append(_row(speed, text, sayings, f"{1000 * first:.0f}"))
    title = "The nano VocalNet" if isinstance(rules, Speaking) else "The nano VocalNet-M2"
    write_output(out, _page(title, model, n, out, written, rows).encode())


def _manners(rules: Speaking | FrameSpeaking) -> Iterator[Manner]:
    """M2 says of a stream what it says of the whole text, and has one contract."""
    deepest, one_codebook = rules.talker.sizes.mtp_levels, isinstance(rules, Speaking)
    for contract in _CONTRACTS if one_codebook else _CONTRACTS[1:]:
        for levels in sorted({0, min(2, deepest), deepest}):
            for streaming in (False, True) if one_codebook else (True,):
                yield Manner(TalkerOptions(levels, contract, LONGEST), streaming)


def _written(speech_lm: SpeechLM, work: Path, n: int) -> Iterator[Written]:
    corpus, sound = speak_samples(work / "speech", n), speech_lm.audio_decoder
    answers = [corpus.utterance(index) for index in corpus.indices(SAID[RIGHT_ANSWERS])]
    seconds_of = {each.text: len(each.wave) / SAMPLE_RATE for each in answers}
    right_of = {qa.question: qa.answer for qa in build_domain().held_out}
    for index in corpus.indices(QUESTION_GROUPS["seen voices"]):
        asked = corpus.utterance(index)
        recording, right = Wave(asked.samples, SAMPLE_RATE), right_of[asked.text]
        question, started = cut_to_speech(recording) or recording, time.process_time()
        request = speech_lm.request(speech_lm.prompt(speech_lm.hear(question)), speech_lm.decoding())
        events = list(speech_lm.worker.stream(replace(request, keeps_hidden=True)))
        taken = time.process_time() - started
        text = speech_lm.tokenizer.decode([event.id for event in events[:-1]])
        expected = round(seconds_of[right] * float(sound.frame_rate))
        yield Written(question, text, right, expected, tuple(events), taken)


def _copies(speech_lm: SpeechLM, work: Path, n: int) -> Iterator[tuple[str, list[int]]]:
    """The right answers, and the codes of the answer voice that says them."""
    corpus = speak_samples(work / "speech", n)
    for index in corpus.indices(SAID[RIGHT_ANSWERS]):
        said = corpus.utterance(index)
        codes = speech_lm.hear(Wave(said.samples, SAMPLE_RATE))
        if isinstance(codes, AudioCodes):
            yield said.text, codes.ids.tolist()


def _say(
    speech_lm: SpeechLM, rules: Speaking | FrameSpeaking, voice: Voice, written: Sequence[Written], manner: Manner
) -> tuple[list[Saying], float]:
    """What the judge makes of each answer, and the median of the seconds to the first sound."""
    sayings, firsts = [], []
    for answer in written:
        started = time.process_time()
        codes = _codes(rules, answer.events, manner)
        taken = time.process_time() - started
        sayings.append(voice.judge(answer.text, voice.flat(codes), answer.expected, taken))
        if manner.streaming:
            firsts.append(_first_sound(speech_lm, answer.question, manner))
        else:
            firsts.append(answer.seconds + taken + _first_block(speech_lm, codes))
    return sayings, statistics.median(firsts)


def _codes(rules: Speaking | FrameSpeaking, events: Sequence[TokenEvent], manner: Manner) -> list[Code]:
    if isinstance(rules, Speaking) and not manner.streaming:
        states = [torch.as_tensor(event.hidden) for event in events]
        return list(speak_whole(rules, manner.options, [event.id for event in events], states))
    stream = SpokenStream(rules, manner.options) if isinstance(rules, Speaking) else FrameStream(rules, manner.options)
    return [code for event in events for code in stream.say(event)]


def _first_sound(speech_lm: SpeechLM, question: Wave, manner: Manner) -> float:
    started = time.process_time()
    events = speech_lm.stream(question, mode=manner.options.name)
    for event in events:
        if isinstance(event, WaveChunk) and len(event.samples):
            break
    events.close()
    return time.process_time() - started


def _first_block(speech_lm: SpeechLM, codes: Sequence[Code]) -> float:
    decoder, started = speech_lm.audio_decoder, time.process_time()
    first = tuple(codes[: decoder.block_size])
    decoder.decode_block(AudioBlock(first, 0, len(first) == len(codes)), decoder.start())
    return time.process_time() - started


def _row(name: str, text: str, sayings: Sequence[Saying], first: str) -> tuple[str, ...]:
    errors = (percent(word_errors(sayings, loop=loop)) for loop in (False, True))
    speed = f"{codes_per_second(sayings):,.0f}" if first else ""
    return name, text, *errors, percent(length_errors(sayings)), speed, first


def _page(
    title: str, model: str, n: int, out: Path, written: Sequence[Written], rows: Sequence[tuple[str, ...]]
) -> str:
    machine, words = look_around(), ("--model", model, "--n", str(n), "--out", str(out))
    right = sum(answer.text == answer.right for answer in written)
    return f"""# {title}

    {shlex.join(("vita-mctp", "evaluate", "nano-vocalnet", *words))}

{len(written)} held-out questions, asked aloud by voices that training heard. The thinker, nano's backbone without its
blocks, wrote the right answer to {right} of them; the talker says what it wrote, right or wrong.

{table(_HEAD, rows)}

- WER2, WER1: what PocketSphinx hears against the model's own text, with a bigram of the domain and in a word loop; the
  first row is its floor. Brackets: bootstrap 95 % interval over answers.
- length errors: answers of less than two thirds or more than four thirds of the codes that the answer voice takes.
- codes a CPU-second: of the talker alone. first sound: median, from the end of the question to the first decoded
  samples, of a warm process; whole: the text and all codes come first. Processor time of one thread, on a machine with
  other work.
- as trained, reference: [the two contracts](../families.md#vocalnet); the reference one repeats the authors' loop, with
  its penalty.

Measured: {machine.date}, commit {machine.commit}, weights {weights_hash(find_model(model))},
{", ".join(f"{package} {number}" for package, number in machine.versions.items())}.
"""


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
