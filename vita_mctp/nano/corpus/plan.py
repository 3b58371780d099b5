"""Which sentence is spoken by which voice in which part of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vita_mctp.nano.corpus import sentences
from vita_mctp.nano.corpus.domain import QA, build_domain, rank
from vita_mctp.nano.corpus.voices import (
    ANSWER_VOICE,
    DIPHONE_VOICES,
    ESPEAK_VOICES,
    HELD_OUT_ESPEAK,
    HELD_OUT_FLITE,
    STATISTICAL_VOICES,
    USER_VOICES,
    Voice,
)

LARGE_KINDS = frozenset({"addition", "subtraction", "counting"})

_TURNS = {True: (2, 2, 7), False: (4, 4, 14)}
"""How many statistical, diphone and espeak-ng voices ask each question, for large kinds and for small ones."""


@dataclass(frozen=True)
class Item:
    """One utterance to be made. `kind` is the question's, or `sentence` or `babble`."""

    text: str
    kind: str
    voice: Voice


@dataclass(frozen=True)
class Sizes:
    """How much of the corpus to make: `questions` caps every question part (None: all of it)."""

    questions: int | None = None
    answers: int | None = None
    sentences: int = 10_000
    babble: int = 6_000


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
