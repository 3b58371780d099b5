"""The judge's language models: ARPA text whose rows are distributions."""

import math

import pytest

from vita_mctp.evaluation.language_model import BEGIN, END, bigram_arpa, word_loop_arpa

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
