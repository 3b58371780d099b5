"""Answers judged by rule, against what the public scripts decide and against cases worked by hand.

`contains`: wenet-e2e/west, tools/compute_acc_of_contain.py. `has_answer`: facebookresearch/DPR,
dpr/data/qa_validation.py with SimpleTokenizer and match type "string", as UltraEval-Audio's QAExistMatchEvaluator.
"""

import pytest

from vita_mctp import environment
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.evaluation.answer_scores import ANSWER_RULES, Verdict, answer_rule

pytest.importorskip("word2number")
Case = tuple[list[str], str, bool]

CONTAINS: list[Case] = [
    (["Paris"], "It is Paris.", True),
    (["Paris"], "it is PARIS", True),
    (["Paris"], "It is London.", False),
    (["Paris"], "", False),
    (["Paris", "London"], "London, I think", True),
    ([], "Paris", False),
    (["New York"], "York is old, Delhi is new", True),
    (["New York"], "The city of York", False),
    (["Barack Obama"], "Obama, Barack Hussein", True),
    (["U.S."], "in the u s of a", True),
    (["U.S."], "in the US", True),
    (["Jean-Luc"], "jean and luc", True),
    (["Jean-Luc"], "jeanluc", True),
    (["O'Neil"], "shaquille o'neil", True),
    (["O'Neil"], "shaquille oneil", False),
    (["O’Neil"], "shaquille o'neil", False),
    (["art"], "a party", True),
    (["five"], "there are 5", True),
    (["five"], "there are 15", True),
    (["twenty one"], "21 of them", True),
    (["twenty-one"], "21 of them", True),
    (["two million"], "about 2000000", True),
    (["five", "Paris"], "there are 5", False),
    (["5"], "five", False),
    (["five", "six"], "there are 6", True),
    (["3.5"], "3.5 percent", True),
    (["1,000"], "1000 men", True),
    (["1,000"], "1,000 men", True),
    (["北京"], "首都是北京。", True),
    (["北京"], "首都是上海。", False),
    (["北京。"], "首都是北京", False),
    (["  Paris  "], "paris", True),
    (["New  York"], "new york", True),
    (["?"], "anything", True),
    ([""], "", True),
    (["\\n"], "a\\n", True),
]
HAS_ANSWER: list[Case] = [
    (["Paris"], "It is Paris.", True),
    (["Paris"], "it is PARIS", True),
    (["paris"], "Parisian", False),
    (["Paris"], "It is London.", False),
    (["Paris"], "", False),
    (["Paris", "London"], "London, I think", True),
    ([], "Paris", False),
    (["New York"], "in New York City", True),
    (["New York"], "York is old, Delhi is new", False),
    (["New York"], "new, York", False),
    (["Barack Obama"], "Obama, Barack Hussein", False),
    (["U.S."], "in the U.S. of A", True),
    (["U.S."], "in the u. s. of a", True),
    (["U.S."], "in the US", False),
    (["US"], "in the U.S.", False),
    (["Jean-Luc"], "Captain Jean-Luc Picard", True),
    (["Jean-Luc"], "Jean Luc", False),
    (["O'Neil"], "Shaquille O'Neil.", True),
    (["O'Neil"], "Shaquille O’Neil.", False),
    (["art"], "a party", False),
    (["five"], "there are 5", False),
    (["5"], "5.", True),
    (["5"], "there are 15", False),
    (["1,000"], "1 , 000 men", True),
    (["1,000"], "1000 men", False),
    (["$5"], "it costs $5", True),
    (["café"], "the cafe\u0301", True),
    (["cafe"], "the café", False),
    (["naïve"], "NAÏVE", True),
    (["北京"], "首都是北京。", False),
    (["北京"], "首都是 北京。", True),
    (["北京"], "北京", True),
    (["the answer"], "answer", False),
    (["rock 'n' roll"], "Rock 'n' Roll!", True),
    (["?"], "really?", True),
    (["?"], "really", False),
    ([""], "anything", True),
    (["snake_case"], "snake_case", True),
    (["snake case"], "snake_case", False),
]


@pytest.mark.parametrize(("references", "answer", "wanted"), CONTAINS)
def test_contains_is_decided_as_the_script_decides(references: list[str], answer: str, wanted: bool) -> None:
    assert answer_rule("contains").judge("", references, answer).correct is wanted


@pytest.mark.parametrize(("references", "answer", "wanted"), HAS_ANSWER)
def test_has_answer_is_decided_as_dpr_decides(references: list[str], answer: str, wanted: bool) -> None:
    assert answer_rule("has_answer").judge("", references, answer).correct is wanted


def test_exact_wants_the_very_words() -> None:
    rule = answer_rule("exact")
    assert rule.judge("", ["No.", "Paris is in France."], "paris is in france").correct
    assert not rule.judge("", ["one two"], "two one").correct and not rule.judge("", ["one two"], "one").correct


def test_a_verdict_says_what_decided() -> None:
    assert answer_rule("contains").judge("", ["Rome", "Paris"], "Paris") == Verdict(True, "contains 'paris'")
    assert answer_rule("has_answer").judge("", ["Rome", "Paris"], "Oslo").reason == "has none of 'Rome', 'Paris'"


def test_a_version_names_rule_and_packages() -> None:
    assert answer_rule("contains").version.startswith("contains/1 (word2number ")
    assert answer_rule("has_answer").version.startswith("has_answer/1 (regex ")


def test_an_unknown_rule_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(ANSWER_RULES)):
        answer_rule("bleu")


def test_a_missing_package_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == "word2number" else object())
    with pytest.raises(MissingExtraError, match=r"word2number.*pip install 'vita-mctp\[eval\]'"):
        answer_rule("contains")
