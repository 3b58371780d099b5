"""Recipes: what is read, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vita_mctp.errors import ConfigError
from vita_mctp.training.optimizer import lr_factor
from vita_mctp.training.recipe import Recipe, ScheduleRecipe, load_recipe

NANO = Path(__file__).parents[2] / "stages" / "nano"
Values = Callable[..., dict[str, Any]]


def test_the_nano_recipes_follow_each_other() -> None:
    recipes = [load_recipe(path) for path in sorted(NANO.glob("stage*.yaml"))]
    assert [recipe.stage for recipe in recipes] == [1, 2, 3, 4]
    assert [recipe.num_mctp_blocks for recipe in recipes] == [0, 1, 10, 10]
    assert [recipe.parent for recipe in recipes[1:]] == [recipe.name for recipe in recipes[:-1]]
    assert all((path.parent / load_recipe(path).data.mixture).is_file() for path in NANO.glob("stage*.yaml"))


def test_values_and_defaults_arrive(recipe_values: Values) -> None:
    recipe = Recipe.parse(recipe_values(1), "")
    assert recipe.model is not None and recipe.model.audio_code_levels == (4, 6)
    assert recipe.optimizer.betas == (0.9, 0.95) and recipe.schedule.decay_fraction == 0.5
    assert recipe.num_steps == 4 and recipe.to_json_values()["model"]["hidden_size"] == 16


def test_an_unknown_key_lists_the_known_ones(recipe_values: Values) -> None:
    with pytest.raises(ConfigError, match=r"unknown key sead; known: .*\bseed\b"):
        Recipe.parse(recipe_values(1, sead=3), "")
    with pytest.raises(ConfigError, match=r"unknown key optimizer\.rate; known: lr, name"):
        Recipe.parse(recipe_values(1, optimizer={"lr": 0.1, "rate": 1}), "")


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        (1, {"parent": "other"}, "`parent` contradicts"),
        (1, {"model": None}, "either `model`"),
        (1, {"num_mctp_blocks": 1}, "num_mctp_blocks must be 0"),
        (2, {"num_mctp_blocks": 2}, "num_mctp_blocks must be 1"),
        (2, {"parent": None}, "`parent` is needed"),
        (3, {"freeze_backbone": False}, "freeze_backbone: true"),
        (4, {"freeze_backbone": True}, "freeze_backbone: false"),
        (4, {"optimizer": {"lr": 0.1, "name": "muon"}}, "muon_lr"),
        (4, {"optimizer": {"lr": 0.1, "muon_lr": 0.1}}, "muon_lr"),
        (4, {"schedule": {"kind": "wsd"}}, "decay_fraction"),
        (4, {"schedule": {"kind": "line"}}, r"schedule\.kind: got 'line'"),
        (4, {"schedule": {"warmup_ratio": -0.1}}, r"schedule\.warmup_ratio: got -0\.1"),
        (4, {"optimizer": {"lr": "1e-3"}}, r"optimizer\.lr: got '1e-3'"),
        (4, {"optimizer": {"lr": 0.1, "betas": [0.9]}}, r"optimizer\.betas"),
        (4, {"seed": True}, "seed: got True"),
        (4, {"data": {}}, r"missing key data\.mixture"),
        (
            4,
            {"data": {"mixture": "m", "row_length": 100, "tokens_per_step": 500, "rows_per_forward": 2}},
            "must be a multiple of row_length",
        ),
    ],
)
def test_what_is_wrong_is_said(recipe_values: Values, stage: int, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Recipe.parse(recipe_values(stage, **changes), "")


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        load_recipe(tmp_path / "bad.yaml")


def test_schedules_warm_up_and_come_down() -> None:
    wsd = [
        lr_factor(step, 100, ScheduleRecipe(kind="wsd", warmup_ratio=0.1, decay_fraction=0.5)) for step in range(100)
    ]
    cosine = [lr_factor(step, 100, ScheduleRecipe(kind="cosine", warmup_ratio=0.1)) for step in range(100)]
    for curve in (wsd, cosine):
        assert curve[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert curve[10:] == sorted(curve[10:], reverse=True)
        assert 0 < curve[-1] < 0.03
    assert wsd[10:50] == [1.0] * 40 and wsd[75] == pytest.approx(0.5)
    assert cosine[55] == pytest.approx(0.5)
