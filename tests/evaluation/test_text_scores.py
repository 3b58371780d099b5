"""Error rates against cases worked by hand."""

import pytest

from vita_mctp import environment
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.evaluation.metrics import Estimate, ratio
from vita_mctp.evaluation.text_scores import TEXT_RULES, WordErrors, plain, same_text, text_rule


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
    assert text_rule("plain").score(reference, hypothesis) == wanted


def rate(name: str, pairs: list[tuple[str, str]]) -> Estimate:
    """A data set's error rate."""
    rule = text_rule(name)
    fractions = [rule.fraction(rule.score(*pair)) for pair in pairs]
    return ratio([part for part, _ in fractions], [whole for _, whole in fractions])


def test_a_pooled_rate_counts_words_and_keeps_empty_hypotheses() -> None:
    estimate = rate("plain", [("a b c d", "a b c d"), ("e f", ""), ("g", "h i")])
    assert estimate.value == pytest.approx((0 + 2 + 2) / (4 + 2 + 1)) and estimate.n == 3


def test_seed_tts_averages_the_samples_rates() -> None:
    pytest.importorskip("zhon")
    pairs = [("a b c d", "a b c d"), ("e f", ""), ("g", "h i")]
    assert rate("seed_tts_en", pairs).value == pytest.approx((0 / 4 + 2 / 2 + 2 / 1) / 3)


def test_an_error_rate_may_exceed_one() -> None:
    assert rate("plain", [("a", "b c d")]).value == 3.0


def test_an_empty_text_is_never_right() -> None:
    assert same_text("Paris is in France.", "paris is in france")
    assert not same_text("", "") and not same_text("one", "") and not same_text("one two", "two one")


def test_plain_text_keeps_apostrophes_and_digits() -> None:
    assert plain("  It's 5, O'Clock!\n") == "it's 5 o'clock"


def test_a_version_names_rule_and_packages() -> None:
    pytest.importorskip("zhon")
    pytest.importorskip("zhconv")
    assert text_rule("seed_tts_zh").version.startswith("seed_tts_zh/1 (jiwer ")
    assert "zhconv" in text_rule("seed_tts_zh").version


def test_an_unknown_rule_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(TEXT_RULES)):
        text_rule("wer")


@pytest.mark.parametrize(("absent", "rule", "extra"), [("jiwer", "plain", "eval"), ("zhon", "seed_tts_en", "zh")])
def test_a_missing_package_is_asked_for_in_one_line(
    monkeypatch: pytest.MonkeyPatch, absent: str, rule: str, extra: str
) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == absent else object())
    with pytest.raises(MissingExtraError, match=rf"{absent}.*pip install 'vita-mctp\[{extra}\]'"):
        text_rule(rule)
