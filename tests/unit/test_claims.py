"""The page of claims: every claim named is there, verdicts follow the facts, commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from vita_mctp.cli import parse
from vita_mctp.evaluation.metrics import Estimate
from vita_mctp.study import Result, StudyOptions
from vita_mctp.study.claims import Claim, Evidence, Verdict, page, read_claims, study_everything

CLAIMS = read_claims()
NAMED = {
    "VITA-Audio": ["figure 1a", "figure 1b", "figure 5", *(f"table {n}" for n in (4, 5, 6, 7, 8, 9))],
    "VocalNet": [f"table {n}" for n in (3, 4, 5)],
    "VocalNet-M2": [f"table {n}" for n in (2, 3)],
}


def fact(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 50)


def claim(*conditions: str, tell: str = "", **says: str) -> Claim:
    return Claim(source="paper", at="table 1", claim="it is so", holds=conditions, tell=tell, says=says)


def test_every_figure_and_table_named_is_there() -> None:
    assert len(CLAIMS) >= 25
    for source, parts in NAMED.items():
        where = " ".join(each.at for each in CLAIMS if each.source == source)
        missing = [
            part for part in parts if not re.search(rf"\b{part.split()[0]}s? (\d+\w? and )?{part.split()[1]}\b", where)
        ]
        assert missing == [], source
    assert {each.source for each in CLAIMS} >= {"VITA-Audio", "VocalNet", "VocalNet, summary", "VocalNet-M2"}


@pytest.mark.parametrize(
    ("condition", "found", "verdict"),
    [
        ("a.x > 0", {"a.x": fact(0.1, 0.2)}, Verdict.HOLDS),
        ("a.x > 0", {"a.x": fact(-0.1, 0.2)}, Verdict.OPEN),
        ("a.x > 0", {"a.x": fact(-0.2, -0.1)}, Verdict.FAILS),
        ("a.x > 0", {"a.x": fact(0, 0)}, Verdict.OPEN),
        ("a.x <= 0", {"a.x": fact(0, 0)}, Verdict.HOLDS),
        ("a.x < b.y z", {"a.x": fact(1, 2), "b.y z": fact(3, 4)}, Verdict.HOLDS),
        ("a.x < b.y z", {"a.x": fact(1, 3.5), "b.y z": fact(3, 4)}, Verdict.OPEN),
        ("a.x < b.y z", {"a.x": fact(1, 1), "b.y z": fact(1, 1)}, Verdict.FAILS),
        ("a.x > 0", {"a.x": Estimate(None, None, None, 9)}, Verdict.OPEN),
        ("a.x > 0", {}, Verdict.MISSING),
        ("a.x < a.y", {"a.x": fact(1, 3), "a.y": fact(2, 4), "a.x minus y": fact(-2, -1)}, Verdict.HOLDS),
        ("a.x < a.y", {"a.x": fact(1, 3), "a.y": fact(2, 4), "a.y minus x": fact(-2, -1)}, Verdict.FAILS),
    ],
)
def test_a_verdict_follows_from_intervals(condition: str, found: dict[str, Estimate], verdict: Verdict) -> None:
    assert claim(condition).verdict(found) is verdict


def test_the_worst_condition_decides_and_what_cannot_be_run_here_says_so() -> None:
    found = {"a.x": fact(1, 2), "a.y": fact(-1, 1), "a.z": fact(-2, -1)}
    assert claim("a.x > 0", "a.y > 0").verdict(found) is Verdict.OPEN
    assert claim("a.x > 0", "a.y > 0", "a.z > 0").verdict(found) is Verdict.FAILS
    assert claim("b.x > 0", tell="vita-mctp train x").verdict(found) is Verdict.NEEDS
    assert claim("b.x > 0", tell="vita-mctp study predictors").verdict(found) is Verdict.MISSING
    assert claim(tell="vita-mctp bench gpu").verdict(found) is Verdict.NEEDS


def test_the_page_turns_with_the_results() -> None:
    """Every number on it is from the facts: other facts, other verdicts and sentences."""
    name = "masking.questions.all but the spoken word"
    others = {each: fact(0.0, 0.02) for claim in CLAIMS for each in claim.show.values()}
    pages = []
    for low in (-0.01, 0.4):
        facts = others | {f"{name}.above nothing": fact(low, low + 0.02)}
        facts |= {f"{name.replace('questions', 'sentences')}.above nothing": fact(low, low + 0.02)}
        pages.append(page(Evidence(facts, {}), "vita-mctp study all", []))
    kept, lost = pages
    assert "the sound stays right" in kept and "is not enough" not in kept
    assert "is not enough" in lost and "the sound stays right:" not in lost
    assert all(each.count("\n1. ") == each.count("\n3. ") == 1 and "| **" in each for each in pages)


def test_commands_that_would_tell_are_ones_that_there_are() -> None:
    for each in CLAIMS:
        for line in filter(None, map(str.strip, each.tell.split(";"))):
            program, *arguments = shlex.split(line)
            assert program == "vita-mctp"
            parse(arguments)
        assert each.holds or each.tell, each.claim


def test_all_does_what_is_not_done_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int]] = []

    def run(options: StudyOptions) -> Result:
        done.append((options.n, options.seed))
        facts = {"questions.best head.forward": fact(0.6, 0.7), "sentences.best head.forward": fact(0.6, 0.7)}
        return Result("t", facts=facts)

    monkeypatch.setattr("vita_mctp.study.attention.run", run)
    monkeypatch.setattr("vita_mctp.study.claims.SIZES", {"attention": (7, 3)})

    def everything(quick: bool = False, seed: int = 0) -> str:
        def options(name: str, quick: bool) -> StudyOptions:
            return StudyOptions("nano", (7, 3)[quick], tmp_path / "work", seed, quick)

        return study_everything(options, tmp_path / "out", tmp_path, quick=quick).read_text()

    first = everything()
    assert everything() == first and done == [(7, 0)]
    assert "the attended word advances" in first and "(nano, n = 7, seed 0)" in first
    everything(quick=True)
    everything(seed=1)
    assert done == [(7, 0), (3, 0), (7, 1)]
    (tmp_path / "out" / "attention.json").write_text("{")  # what a kill may leave is made again
    everything(seed=1)
    assert done[-2:] == [(7, 1), (7, 1)]
