"""The studies that train: a variant is trained and heard once, and claims are held against differences."""

from __future__ import annotations

from pathlib import Path

import pytest

from vita_mctp.decoding.talker import TalkerOptions
from vita_mctp.nano.talker_benchmark import Manner, Saying, length_errors, word_errors
from vita_mctp.study import StudyOptions, predictors
from vita_mctp.study.predictors import (
    Bench,
    Claim,
    Outcome,
    TrainingBudget,
    by_text,
    depth_variants,
    predictor_claims,
    predictor_variants,
)

ROOT = Path(__file__).parents[2]


def saying(edits: int, codes: int = 10) -> Saying:
    return Saying(words=5, edits=edits, loop_edits=edits, codes=codes, expected=12, seconds=0.1)


def outcome(**sayings: list[Saying]) -> Outcome:
    return Outcome(parameters=1, seconds=1, nats=(1,), right=(1,), sayings={k: tuple(v) for k, v in sayings.items()})


def test_claims_are_told_apart_from_chance() -> None:
    found = {
        "bad": [outcome(x=[saying(3)] * 40)],
        "good": [outcome(x=[saying(1)] * 40)],
        "as bad": [outcome(x=[saying(3 + (-1) ** index) for index in range(40)])],
    }
    verdicts = [
        Claim("", "", (worse, "x"), (than, "x")).row(found)[-1]
        for worse, than in (("bad", "good"), ("good", "bad"), ("bad", "as bad"))
    ]
    assert verdicts == ["holds", "does not hold here", "cannot be told"]


def test_seeds_share_their_texts() -> None:
    found = by_text([outcome(x=[saying(1), saying(3)]), outcome(x=[saying(2), saying(4)])], "x")
    assert [each.edits for each in found] == [3, 7] and [each.words for each in found] == [10, 10]


def test_every_claim_names_what_is_measured() -> None:
    spoken = {(each.name, manner.name) for each in predictor_variants() for manner in each.manners}
    assert len(list(predictor_variants())) == 9 + 2, "and table 4's"
    for claim in predictor_claims():
        assert {claim.worse, claim.than} <= spoken, claim.text
    depths = {(each.name, manner.name) for each in depth_variants() for manner in each.manners}
    assert all({claim.worse, claim.than} <= depths for claim in predictors.depth_claims())
    assert ("m2-4", "5x") in depths and ("m2-0", "1x") in depths


def test_lengths_and_words() -> None:
    sayings = [saying(0, codes) for codes in (8, 16, 7, 17)]
    assert length_errors(sayings).value == 0.5
    assert word_errors([saying(1), saying(2)]).value == 0.3


@pytest.mark.parametrize(
    ("names", "folder"), [({"vocalnet*2", "group_linear-3"}, "nano_vocalnet"), ({"m2-1"}, "nano_vocalnet_m2")]
)
def test_a_variant_is_trained_and_heard_once(names: set[str], folder: str, tmp_path: Path) -> None:
    options = StudyOptions("nano", 2, tmp_path, quick=True)
    bench = Bench(options, TrainingBudget(ROOT / "stages" / folder / "study.yaml", seeds=1))
    variants = [each for each in (*predictor_variants(), *depth_variants()) if each.name in names]
    found = bench.outcomes(variants)
    for variant in variants:
        (only,) = found[variant.name]
        assert only.sayings.keys() == {manner.name for manner in variant.manners}
        assert len(only.nats) == len(only.right) == variant.talker["mtp_levels"] + 1  # type: ignore[operator]
        assert all(len(each) == 2 and each[0].words > 0 for each in only.sayings.values())
    assert bench.voice.floor(bench.said)[0].codes == bench.said[0].codes.shape[0]
    assert bench.outcomes(variants) == found, "read, not trained again"


def test_a_way_of_speaking_has_a_name() -> None:
    assert Manner(TalkerOptions(2, "as_trained"), streaming=True).name == "3x,as_trained streamed"
