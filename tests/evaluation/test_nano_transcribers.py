"""The domain's transcribers hear the answer voice rightly, each wave by itself, and silence as nothing.

Their language models are ARPA text whose rows are distributions.
"""

import math

import numpy as np
import pytest

from vita_mctp import environment
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.evaluation.judges import PocketSphinx, Transcriber
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.transcribers import (
    BEGIN,
    END,
    bigram_arpa,
    bigram_transcriber,
    domain_bigram,
    word_loop_arpa,
    word_loop_transcriber,
)
from vita_mctp.nano.voices import ANSWER_VOICE, speak
from vita_mctp.types import Wave

SENTENCES = ["a b", "a b", "a c", "c a"]
WORDS = ["a", "b", "c", "d"]


def parse(arpa: str) -> tuple[dict[str, float], dict[str, float], dict[tuple[str, str], float]]:
    """(unigrams, backoff weights, bigrams) as probabilities."""
    unigrams, backoff, bigrams = {}, {}, {}
    section = ""
    for line in arpa.splitlines():
        if line.startswith("\\"):
            section = line
        elif line and section == "\\1-grams:":
            probability, word, *weight = line.split()
            unigrams[word] = 10 ** float(probability)
            if weight:
                backoff[word] = 10 ** float(weight[0])
        elif line and section == "\\2-grams:":
            probability, history, word = line.split()
            bigrams[history, word] = 10 ** float(probability)
    return unigrams, backoff, bigrams


def test_every_history_of_the_bigram_sums_to_one() -> None:
    unigrams, backoff, bigrams = parse(bigram_arpa(SENTENCES, WORDS))
    tokens = [*WORDS, END]
    assert sum(unigrams[token] for token in tokens) == pytest.approx(1, abs=1e-4)
    for history in (BEGIN, *WORDS):
        row = [bigrams.get((history, word), backoff.get(history, 1.0) * unigrams[word]) for word in tokens]
        assert sum(row) == pytest.approx(1, abs=1e-4), history


def test_the_bigram_is_the_hand_worked_one() -> None:
    unigrams, backoff, bigrams = parse(bigram_arpa(SENTENCES, WORDS))
    # tokens: a 4, b 2, c 2, </s> 4, d 0: N = 12, V = 5; after a: b twice, c once, </s> once
    assert unigrams["b"] == pytest.approx(3 / 17, rel=1e-4) and unigrams["d"] == pytest.approx(1 / 17, rel=1e-4)
    assert backoff["a"] == pytest.approx(3 / (4 + 3), rel=1e-4)
    assert bigrams["a", "b"] == pytest.approx((2 + 3 * 3 / 17) / 7, rel=1e-4)
    assert ("a", "d") not in bigrams and "d" not in backoff


def test_counts_of_the_header_are_the_rows() -> None:
    text = bigram_arpa(SENTENCES, WORDS)
    unigrams, _, bigrams = parse(text)
    assert f"ngram 1={len(unigrams)}\nngram 2={len(bigrams)}" in text


def test_the_word_loop_prefers_no_word() -> None:
    unigrams, _, bigrams = parse(word_loop_arpa(WORDS))
    assert not bigrams and unigrams.pop(BEGIN) < 1e-90
    assert set(unigrams) == {*WORDS, END}
    assert all(math.isclose(p, 1 / 5, rel_tol=1e-4) for p in unigrams.values())


def test_a_word_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks zebra"):
        bigram_arpa(["a zebra"], WORDS)


RIGHT, WRONG = "seven plus three is ten", "seven plus three is nineteen"


def said(text: str) -> Wave:
    return Wave(speak(text, ANSWER_VOICE).samples, SAMPLE_RATE)


@pytest.fixture(scope="module", params=["bigram", "loop"])
def judge(request: pytest.FixtureRequest) -> Transcriber:
    return bigram_transcriber() if request.param == "bigram" else word_loop_transcriber()


@pytest.mark.parametrize("text", [RIGHT, "thursday comes after wednesday", "london is in england"])
def test_the_answer_voice_is_heard_word_for_word(judge: Transcriber, text: str) -> None:
    assert judge.transcribe(said(text)) == text


def test_a_wrong_answer_is_not_heard_as_the_right_one() -> None:
    assert bigram_transcriber().transcribe(said(WRONG)) == WRONG


def test_another_rate_is_heard_too() -> None:
    doubled = Wave(np.repeat(said(RIGHT).samples, 2), 2 * SAMPLE_RATE)
    assert bigram_transcriber().transcribe(doubled) == RIGHT


def test_what_was_heard_before_plays_no_part(judge: Transcriber) -> None:
    first = judge.transcribe(said(RIGHT))
    judge.transcribe(Wave(said("cairo is in egypt").samples * np.float32(0.1), SAMPLE_RATE))
    assert judge.transcribe(said(RIGHT)) == first


@pytest.mark.parametrize("seconds", [0.0, 1 / SAMPLE_RATE, 0.5])
def test_nothing_and_silence_hold_no_answer(judge: Transcriber, seconds: float) -> None:
    heard = judge.transcribe(Wave(np.zeros(round(seconds * SAMPLE_RATE), np.float32), SAMPLE_RATE))
    assert (len(heard.split()) <= 1 or judge is word_loop_transcriber()) and (seconds > 0 or heard == "")


def test_no_sentence_makes_the_right_sum_likelier() -> None:
    """After "is" the bigram must not know which number the sum calls for: the words before are out of its sight."""
    rows = [line.split() for line in domain_bigram().splitlines() if line.count(" ") == 2]
    after_is = {word: float(p) for p, history, word in rows if history == "is"}
    assert {"ten", "nineteen", "zero"} <= set(after_is)
    assert abs(after_is["ten"] - after_is["nineteen"]) < 0.3


def test_words_without_pronunciation_are_named() -> None:
    with pytest.raises(ConfigError, match="lacks qwxzzy"):
        PocketSphinx(word_loop_arpa(["qwxzzy"]), ["qwxzzy"])


def test_pocketsphinx_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vita-mctp\[eval\]'"):
        PocketSphinx("", [])
