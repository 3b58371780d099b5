"""Who says what: one voice answers, many ask, a few are kept for judging alone; which sentence is in which part."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from pydantic import Field

from vita_mctp.nano import kokoro, sentences
from vita_mctp.nano.domain import DAYS, MONTHS, NUMBERS, QA, build_domain, rank
from vita_mctp.nano.recordings import splice
from vita_mctp.nano.synthesis import ESPEAK_PITCH, ESPEAK_RATE, PAUSE, Span, Spoken, speak_espeak, speak_flite
from vita_mctp.schema import Schema
from vita_mctp.types import FloatArray

_PHONES = "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
PHONES = tuple(_PHONES.split())
"""The one phone inventory, flite's US English; a phone's id is its index. `pau` is a pause."""

PHONE_ID = {phone: index for index, phone in enumerate(PHONES)}


@dataclass(frozen=True)
class Voice:
    """A speaker: a synthesiser's voice at one speed and pitch.

    speed 1.0 and pitch 1.0 are the voice's own; speed multiplies the speaking rate, pitch the mean fundamental
    (flite) or espeak-ng's pitch setting; Kokoro's pitch is always its own. kokoro_words: Kokoro says
    each word by itself.
    """

    engine: Literal["flite", "espeak", "kokoro", "kokoro_words"]
    base: str
    speed: float = 1.0
    pitch: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.engine}:{self.base}:{self.speed:g}:{self.pitch:g}"

    @property
    def timed(self) -> bool:
        """Whether its phones and words come with times."""
        return self.engine == "flite"


def _flite(base: str, *settings: tuple[float, float]) -> tuple[Voice, ...]:
    return tuple(Voice("flite", base, speed, pitch) for speed, pitch in settings)


ANSWER_VOICE = Voice("flite", "slt")

STATISTICAL_VOICES = (
    *_flite("slt", (1.0, 1.0), (0.85, 0.95), (1.15, 1.05), (1.0, 1.12), (1.05, 0.88)),
    *_flite("awb", (1.0, 1.0), (0.85, 1.05), (1.15, 0.95), (1.0, 1.15), (1.05, 0.88), (0.92, 1.0), (1.1, 1.08)),
)
DIPHONE_VOICES = _flite(
    "kal16", (1.0, 1.0), (0.85, 1.1), (1.15, 0.9), (1.0, 1.25), (1.05, 0.8), (0.92, 1.4), (1.1, 1.55), (0.9, 0.95)
)
_ESPEAK_SETTINGS = """
en-us 0.85 1.0, en-us 1.05 1.3, en-us+m1 0.8 0.9, en-us+m2 0.9 1.1, en-us+m3 0.85 0.8, en-us+m4 1.0 1.2,
en-us+m5 0.8 1.0, en-us+m6 0.95 0.9, en-us+m7 0.9 1.0, en-us+m8 0.85 1.1, en-us+f1 0.8 1.0, en-us+f2 0.9 1.2,
en-us+f3 1.0 0.9, en-us+f5 0.85 1.1, en-us+linda 0.85 1.0, en-us+adam 0.85 1.0, en-us+Andrea 0.9 1.0,
en-us+Alex 0.85 1.1, en-us+rob 0.9 0.9, en-us+steph 0.85 1.0, en-us+zac 0.9 1.0, en-us+quincy 0.8 1.1,
en-us+grandpa 0.9 1.0, en-us+max 0.85 1.0, en-us+paul 0.85 0.9, en-us-nyc 0.85 1.0, en-us-nyc+f2 0.9 0.9,
en-us-nyc+m3 0.8 1.2, en 0.85 1.0, en+m4 0.9 0.8, en+f1 0.85 1.2, en-gb-x-rp 0.85 1.1, en-gb-x-rp+f3 0.9 1.0,
en-gb-scotland 0.85 1.0, en-gb-scotland+m7 0.9 1.0, en-029+f2 0.85 1.1
"""
"""Voice, speed and pitch."""

ESPEAK_VOICES = tuple(
    Voice("espeak", base, float(speed), float(pitch))
    for base, speed, pitch in (entry.split() for entry in _ESPEAK_SETTINGS.split(","))
)
USER_VOICES = (*STATISTICAL_VOICES, *DIPHONE_VOICES, *ESPEAK_VOICES)

HELD_OUT_FLITE = _flite("rms", (1.0, 1.0), (0.9, 1.05), (1.1, 0.95))
HELD_OUT_ESPEAK = (Voice("espeak", "en-us+f4", 0.85, 1.0),)
"""Never trained on by anything: flite's rms at any setting, and espeak-ng's variant f4."""
_BETWEEN_WORDS = (0.02, 0.2)
"""Seconds between words that were said one by one."""
NATURAL_PART, NATURAL_BABBLE = "natural_questions", "natural_babble"


def speak(text: str, voice: Voice) -> Spoken:
    """Say `text`. An untimed voice's phones are those of flite's lexicon without pauses, and all its times are zero."""
    if voice.timed:
        return speak_flite(text, voice.base, 1.0 / voice.speed, voice.pitch)
    if voice.engine == "kokoro":
        return Spoken(kokoro.speak_kokoro(text, voice.base, voice.speed), _lexicon_phones(text), ())
    if voice.engine == "kokoro_words":
        words = [_natural_word(word, voice.base, voice.speed) for word in text.split()]
        return Spoken(splice(words, Random(text).uniform(*_BETWEEN_WORDS)).samples, _lexicon_phones(text), ())
    rate = round(ESPEAK_RATE * voice.speed)
    pitch = min(99, round(ESPEAK_PITCH * voice.pitch))
    return Spoken(speak_espeak(text, voice.base, rate, pitch), _lexicon_phones(text), ())


@functools.lru_cache(maxsize=1024)
def _natural_word(word: str, base: str, speed: float) -> FloatArray:
    return kokoro.speak_kokoro(word, base, speed)


@functools.lru_cache(maxsize=8192)
def _lexicon_phones(text: str) -> tuple[Span, ...]:
    spoken = speak_flite(text, DIPHONE_VOICES[0].base)
    return tuple(Span(phone.name, 0.0, 0.0) for phone in spoken.phones if phone.name != PAUSE)


LARGE_KINDS = frozenset({"addition", "subtraction", "counting"})

_TURNS = {True: (2, 2, 7), False: (4, 4, 14)}
"""How many statistical, diphone and espeak-ng voices ask each question, for large kinds and for small ones."""


@dataclass(frozen=True)
class Item:
    """One utterance to be made. `kind` is the question's, or `sentence` or `babble`."""

    text: str
    kind: str
    voice: Voice


class Sizes(Schema):
    """How much of the corpus to make: `questions` caps every question part (None: all of it)."""

    questions: int | None = Field(default=None, ge=0)
    answers: int | None = Field(default=None, ge=0)
    sentences: int = Field(default=10_000, ge=0)
    babble: int = Field(default=6_000, ge=0)


def _choose(text: str, voices: Sequence[Voice], count: int, seed: int) -> list[Voice]:
    """`count` different voices, chosen by the text alone."""
    return sorted(voices, key=lambda voice: rank(f"voice:{seed}:{text}", voice.name))[:count]


def _asked(questions: Sequence[QA], seed: int) -> list[Item]:
    """Every question by several voices, one voice of each after the other so that any prefix is varied."""
    rounds: list[list[Item]] = [[] for _ in range(sum(_TURNS[False]))]
    for qa in questions:
        turns = zip((STATISTICAL_VOICES, DIPHONE_VOICES, ESPEAK_VOICES), _TURNS[qa.kind in LARGE_KINDS], strict=True)
        speakers = [voice for group, count in turns for voice in _choose(qa.question, group, count, seed)]
        speakers.sort(key=lambda voice: rank(f"order:{seed}:{qa.question}", voice.name))
        for turn, voice in enumerate(speakers):
            rounds[turn].append(Item(qa.question, qa.kind, voice))
    return [item for turn in rounds for item in sorted(turn, key=lambda item: rank(f"mix:{seed}", item.text))]


def _by_one_of(questions: Sequence[QA], voices: Sequence[Voice], seed: int) -> list[Item]:
    return [Item(qa.question, qa.kind, _choose(qa.question, voices, 1, seed)[0]) for qa in questions]


def _answers(count: int | None) -> list[Item]:
    """The answers of questions asked aloud: an answer known from text alone is never spoken in training."""
    domain = build_domain()
    kinds = {qa.answer: qa.kind for qa in domain.train}
    ordered = sorted(kinds, key=lambda answer: rank("answer", answer))[:count]
    return [Item(answer, kinds[answer], ANSWER_VOICE) for answer in ordered]


def make_plan(sizes: Sizes, seed: int) -> dict[str, list[Item]]:
    """The items of every part, in order; see `corpus` for what the parts are. Deterministic."""
    domain = build_domain()
    train, text_only, held_out = (
        sorted(part, key=lambda qa: rank("ask", qa.question))[: sizes.questions]
        for part in (domain.train, domain.text_only, domain.held_out)
    )
    trained_sentences, kept_sentences = sentences.answer_like(sizes.sentences, seed)
    return {
        "eval_questions": _by_one_of(held_out, USER_VOICES, seed),
        "eval_questions_unseen_flite": _by_one_of(held_out, HELD_OUT_FLITE, seed),
        "eval_questions_unseen_espeak": _by_one_of(held_out, HELD_OUT_ESPEAK, seed),
        "eval_text_only": _by_one_of(text_only, USER_VOICES, seed),
        "eval_sentences": [Item(text, "sentence", ANSWER_VOICE) for text in kept_sentences[: sizes.questions]],
        "answers": _answers(sizes.answers),
        "babble": [
            Item(text, "babble", _choose(text, USER_VOICES, 1, seed)[0])
            for text in sentences.babble(sizes.babble, seed)
        ],
        "questions": _asked(train, seed),
        "sentences": [Item(text, "sentence", ANSWER_VOICE) for text in trained_sentences],
    }


def natural_voices(names: Sequence[str]) -> tuple[Voice, ...]:
    """Kokoro's voices, at their own speed."""
    return tuple(Voice("kokoro", name) for name in names)


def natural_questions(questions: Sequence[QA], seed: int) -> list[Item]:
    """Each by one of the natural voices that are for judging alone."""
    return _by_one_of(questions, natural_voices(kokoro.UNSEEN), seed)


def natural_plan(utterances: int, seed: int, babble: int = 0, spliced: int = 0) -> dict[str, list[Item]]:
    """The training questions by natural voices, again and again until there are so many utterances; and babble,
    and so much more of it, said word by word (`_spliced`).

    Every second time the mean of two voices asks; each has a speed of its own. Any prefix is varied. Of the babble
    every third is a bare sum ("seven plus two"), the rest up to four words in no order.
    """
    ordered = sorted(build_domain().train, key=lambda qa: rank(f"natural:{seed}", qa.question))
    asked = [ordered[number % len(ordered)] for number in range(utterances)]
    plan = {NATURAL_PART: [_naturally(qa.question, qa.kind, n, f"{seed}:{n}", 0.8, 1.25) for n, qa in enumerate(asked)]}
    if babble:
        items = []
        for number, words in enumerate(sentences.babble(babble, seed)):
            rng = Random(f"babble:{seed}:{number}")
            total = f"{rng.choice(NUMBERS)} {rng.choice(('plus', 'minus'))} {rng.choice(NUMBERS)}"
            text = total if number % 3 == 1 else " ".join(words.split()[:4])
            items.append(_naturally(text, "babble", number, f"by:{seed}:{number}", 0.7, 1.15))
        plan[NATURAL_BABBLE] = items + _spliced(spliced, seed)
    return plan


def _spliced(count: int, seed: int) -> list[Item]:
    """Sums, series and words in no order; a hundred by one voice, with numbers, days, months and sixty more words."""
    voices, items, core = (*kokoro.TRAINED, *kokoro.FOREIGN), [], (*NUMBERS, *DAYS, *MONTHS)
    for number in range(count):
        turn = number // 100
        rng = Random(f"spliced:{seed}:{turn}")
        bases = [voices[turn % len(voices)]] if turn < len(voices) else rng.sample(voices, 2)
        voice = Voice("kokoro_words", "+".join(bases), round(rng.uniform(0.75, 1.15), 2))
        words = rng.sample(build_domain().vocabulary, 60)
        rng = Random(f"spliced:{seed}:{number}")
        series = rng.choice((NUMBERS, DAYS, MONTHS, core))
        text = rng.choice(
            (
                f"{rng.choice(NUMBERS)} {rng.choice(('plus', 'minus'))} {rng.choice(NUMBERS)}",
                " ".join(rng.sample(series, rng.randint(2, 5))),
                " ".join(rng.choices(words, k=rng.randint(2, 5))),
            )
        )
        items.append(Item(text, "babble", voice))
    return items


def _naturally(text: str, kind: str, number: int, seed: str, slowest: float, fastest: float) -> Item:
    rng = Random(seed)
    base = "+".join(rng.sample(kokoro.TRAINED, 1 + number % 2))
    return Item(text, kind, Voice("kokoro", base, round(rng.uniform(slowest, fastest), 2)))
