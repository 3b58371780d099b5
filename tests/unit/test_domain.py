"""The closed domain: its size, its truth and its split."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from vita_mctp.nano.domain import MONTHS, NUMBERS, build_domain, facts
from vita_mctp.nano.sentences import HELD_OUT_SENTENCES, answer_like, babble

DOMAIN = build_domain()
VALUE = {word: value for value, word in enumerate(NUMBERS)}


def test_it_is_large_enough() -> None:
    assert 150 <= len(DOMAIN.vocabulary) <= 200
    assert len({qa.kind for qa in DOMAIN.questions}) >= 8
    assert 3_000 <= len(DOMAIN.questions) <= 4_000
    assert 700 <= len(DOMAIN.answers) <= 900


def test_each_question_is_asked_once_and_each_answer_belongs_to_one_fact() -> None:
    assert max(Counter(qa.question for qa in DOMAIN.questions).values()) == 1
    assert max(Counter(fact.answer for fact in facts()).values()) == 1
    assert len(DOMAIN.questions) == sum(len(fact.questions) for fact in facts())


def test_text_is_spelled_as_speech() -> None:
    for qa in DOMAIN.questions:
        for word in f"{qa.question} {qa.answer}".split(" "):
            assert word.isascii() and word.isalpha() and word.islower()
        assert 3 <= len(qa.answer.split()) <= 9


def test_an_independent_recogniser_knows_every_word() -> None:
    pocketsphinx = pytest.importorskip("pocketsphinx")
    lines = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text().splitlines()
    known = {line.split(maxsplit=1)[0] for line in lines if line}
    assert set(DOMAIN.vocabulary) <= known


def test_held_out_sentences_are_about_trained_facts_in_other_words() -> None:
    trained = Counter(qa.answer for qa in DOMAIN.train)
    assert len(DOMAIN.held_out) >= 300
    assert {qa.kind for qa in DOMAIN.held_out} == {qa.kind for qa in DOMAIN.questions}
    assert all(trained[qa.answer] >= 2 for qa in DOMAIN.held_out)


def test_facts_known_from_text_alone_are_never_asked_aloud() -> None:
    hidden = {qa.answer for qa in DOMAIN.text_only}
    assert len(hidden) >= 40
    assert hidden.isdisjoint({qa.answer for qa in DOMAIN.train + DOMAIN.held_out})


def test_training_hears_every_word_of_the_held_out_questions() -> None:
    heard = {word for qa in DOMAIN.train for word in f"{qa.question} {qa.answer}".split()}
    assert {word for qa in DOMAIN.held_out for word in f"{qa.question} {qa.answer}".split()} <= heard


def test_sums_and_differences_are_right() -> None:
    for qa in DOMAIN.questions:
        if qa.kind in ("addition", "subtraction"):
            a, operator, b, _, result = qa.answer.split()
            sign = {"plus": 1, "minus": -1}[operator]
            assert VALUE[a] + sign * VALUE[b] == VALUE[result]
            assert {a, b} <= set(qa.question.split())


def test_counting_and_the_calendar_are_right() -> None:
    answers = defaultdict(set)
    for qa in DOMAIN.questions:
        answers[qa.kind].add(qa.answer)
    runs = [answer.split() for answer in answers["counting"] if "comes" not in answer]
    assert runs
    for run in runs:
        steps = {VALUE[b] - VALUE[a] for a, b in pairwise(run)}
        assert steps in ({1}, {-1})
    for answer in answers["months"]:
        if "comes" in answer:
            first, _, side, second = answer.split()
            distance = (MONTHS.index(first) - MONTHS.index(second)) % 12
            assert distance == {"after": 1, "before": 11}[side]


def test_answer_like_sentences_are_distinct_and_known_to_no_one() -> None:
    trained, held_out = answer_like(2_000)
    assert len(set(trained)) == 2_000 and len(set(held_out)) == HELD_OUT_SENTENCES
    assert set(trained).isdisjoint(held_out)
    assert set(DOMAIN.answers).isdisjoint([*trained, *held_out])
    assert {word for sentence in trained for word in sentence.split()} <= set(DOMAIN.vocabulary)


def test_more_answer_like_sentences_only_add_at_the_end() -> None:
    few, kept = answer_like(50)
    many, kept_again = answer_like(500)
    assert many[:50] == few and kept == kept_again
    assert answer_like(50, seed=1)[0] != few


def test_babble_says_every_word_about_equally_often() -> None:
    counts = Counter(word for sentence in babble(1_000) for word in sentence.split())
    assert set(counts) == set(DOMAIN.vocabulary)
    assert max(counts.values()) - min(counts.values()) <= 1
