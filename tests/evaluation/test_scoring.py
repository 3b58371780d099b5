"""Scores against cases worked by hand."""

from importlib import util

import pytest

from vita_mctp.errors import MissingExtraError
from vita_mctp.evaluation import scoring
from vita_mctp.evaluation.scoring import WordErrors, normalise, ratio, same_text, share, word_error_rate, word_errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "wanted"),
    [
        ("two plus two is four", "two plus two is four", WordErrors(0, 0, 0, 5)),
        ("two plus two is four", "", WordErrors(0, 5, 0, 5)),
        ("the sky is blue", "the sky was very blue", WordErrors(1, 0, 1, 4)),
        ("the sky is blue", "sky is", WordErrors(0, 2, 0, 4)),
        ("hello", "one two three", WordErrors(1, 0, 2, 1)),
        ("", "one two", WordErrors(0, 0, 2, 0)),
        ("", "", WordErrors(0, 0, 0, 0)),
        ("The sky is blue.", "the  SKY is, blue", WordErrors(0, 0, 0, 4)),
    ],
)
def test_word_errors_by_hand(reference: str, hypothesis: str, wanted: WordErrors) -> None:
    assert word_errors(reference, hypothesis) == wanted


def test_the_error_rate_pools_words_and_keeps_empty_hypotheses() -> None:
    estimate = word_error_rate([("a b c d", "a b c d"), ("e f", ""), ("g", "h i")])
    assert estimate.value == pytest.approx((0 + 2 + 2) / (4 + 2 + 1)) and estimate.n == 3


def test_an_error_rate_may_exceed_one() -> None:
    assert word_error_rate([("a", "b c d")]).value == 3.0


def test_an_empty_text_is_never_right() -> None:
    assert same_text("Paris is in France.", "paris is in france")
    assert not same_text("", "") and not same_text("one", "") and not same_text("one two", "two one")


def test_normalising_keeps_apostrophes_and_digits() -> None:
    assert normalise("  It's 5, O'Clock!\n") == "it's 5 o'clock"


def test_a_share_has_its_binomial_interval() -> None:
    estimate = share([True] * 80 + [False] * 20)
    deviation = (0.8 * 0.2 / 100) ** 0.5
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.8 - 1.96 * deviation, abs=0.02)
    assert estimate.high == pytest.approx(0.8 + 1.96 * deviation, abs=0.02)
    assert share([True] * 80 + [False] * 20) == estimate


def test_unanimous_samples_leave_no_doubt_and_none_leave_no_figure() -> None:
    sure = share([True] * 10)
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)
    assert share([]).value is None and ratio([3], [0]).value is None


def test_a_long_sample_weighs_more_than_a_short_one() -> None:
    assert ratio([1, 0], [1, 9]).value == pytest.approx(0.1)


def test_jiwer_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "find_spec", lambda name: None if name == "jiwer" else util.find_spec(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'vita-mctp\[eval\]'"):
        scoring.require_jiwer()
