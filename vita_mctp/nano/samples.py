"""The speech that the nano model is judged by, made here and never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vita_mctp.errors import ConfigError
from vita_mctp.nano.corpus.corpus import Corpus, build_planned
from vita_mctp.nano.corpus.domain import QA, build_domain
from vita_mctp.nano.corpus.flite import SAMPLE_RATE
from vita_mctp.nano.corpus.plan import Item, Sizes, make_plan
from vita_mctp.nano.corpus.sentences import HELD_OUT_SENTENCES
from vita_mctp.nano.corpus.voices import ANSWER_VOICE
from vita_mctp.types import Wave

QUESTION_GROUPS = {
    "seen voices": "eval_questions",
    "unseen voice, flite rms": "eval_questions_unseen_flite",
    "unseen voice, espeak-ng f4": "eval_questions_unseen_espeak",
}
"""Who asks the held-out questions, and the corpus part that holds them."""

SENTENCES, RIGHT_ANSWERS = "held-out sentences", "right answers"
"""What the answer voice itself says, for the judge's floors."""

_SENTENCES_PART, _ANSWERS_PART = "eval_sentences", "eval_answers"
_CORPUS_SEED = 0
"""The shipped training corpus's. Sentences held out under one seed may be trained on under another."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A recording, its words, and what is right to answer (for a sentence: the sentence)."""

    group: str
    number: int
    kind: str
    voice: str
    prompt: str
    answer: str
    wave: Wave


@dataclass(frozen=True)
class Samples:
    """questions: by every group's voices, the same ones in each. sentences, answers: by the answer voice."""

    questions: tuple[Sample, ...]
    sentences: tuple[Sample, ...]
    answers: tuple[Sample, ...]


def make_samples(folder: Path, n: int) -> Samples:
    """n held-out questions for each group of voices, n held-out sentences, and the questions' right answers.

    Speech is kept in `folder` and made once. Raises ConfigError for an n that the domain cannot serve,
    MissingExtraError where flite or espeak-ng is not installed.
    """
    asked = {qa.question: qa for qa in build_domain().held_out}
    most = min(len(asked), HELD_OUT_SENTENCES)
    if not 1 <= n <= most:
        raise ConfigError(f"{n} samples of each group were wanted; the domain holds out 1 to {most}, give one of these")
    plan = make_plan(Sizes(questions=n, answers=0, sentences=0, babble=0), _CORPUS_SEED)
    plan = {part: plan[part] for part in (*QUESTION_GROUPS.values(), _SENTENCES_PART)}
    right = [asked[item.text] for item in next(iter(plan.values()))]
    plan[_ANSWERS_PART] = [Item(qa.answer, qa.kind, ANSWER_VOICE) for qa in right]
    corpus = build_planned(folder, plan, _CORPUS_SEED)
    questions = [sample for group, part in QUESTION_GROUPS.items() for sample in _samples(corpus, part, group, right)]
    sentences, answers = (
        _samples(corpus, part, group) for part, group in ((_SENTENCES_PART, SENTENCES), (_ANSWERS_PART, RIGHT_ANSWERS))
    )
    return Samples(tuple(questions), tuple(sentences), tuple(answers))


def _samples(corpus: Corpus, part: str, group: str, right: Sequence[QA] | None = None) -> list[Sample]:
    """The utterances of a part, with their answers in `right`, or themselves as the answer."""
    said = [corpus.utterance(index) for index in corpus.indices(part)]
    answers = [one.text for one in said] if right is None else [qa.answer for qa in right]
    return [
        Sample(group, number, one.kind, one.voice, one.text, answer, Wave(one.samples, SAMPLE_RATE))
        for number, (one, answer) in enumerate(zip(said, answers, strict=True))
    ]
