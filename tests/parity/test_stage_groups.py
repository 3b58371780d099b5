"""What each stage trains and in which optimizer groups, with the objects that training itself uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.models.vita import VitaMctpForCausalLM
from vita_mctp.training.optimizer import build_optimizer, set_trainable, split_groups
from vita_mctp.training.recipe import OptimizerRecipe

STAGES = ("1", "2", "3", "4")
RELEASED = {
    "1": OptimizerRecipe(lr=6e-5),
    "2": OptimizerRecipe(lr=1e-3),
    "3": OptimizerRecipe(lr=1e-3),
    "4": OptimizerRecipe(lr=5e-5, mctp_lr_multiplier=10.0, weight_decay=0.1),
}


def staged(folder: Path, stage: str, expected: dict[str, Any]) -> VitaMctpForCausalLM:
    """The stage's model, frozen as the stage says."""
    source = folder / ("stage1_ckpt" if stage == "1" else "stage2_ckpt")
    model = load_model(source, num_mctp_blocks=len(expected.get("mtp_losses", [])))
    set_trainable(model, freeze_backbone=stage in ("2", "3"))
    return model


def trainable_names(model: VitaMctpForCausalLM) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.fixture
def recorded(stages_folder: Path) -> dict[str, Any]:
    return json.loads((stages_folder / "stages.json").read_text())["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_what_the_reference_trains(stage: str, stages_folder: Path, recorded: dict[str, Any]) -> None:
    model = staged(stages_folder, stage, recorded[stage])
    assert set(trainable_names(model)) == set(recorded[stage]["trainable"])


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "1"])
def test_groups_rates_and_decay_are_the_reference_s(stage: str, stages_folder: Path, recorded: dict[str, Any]) -> None:
    expected = recorded[stage]["optimizer_groups"]
    model, recipe = staged(stages_folder, stage, recorded[stage]), RELEASED[stage]
    groups = split_groups(model.config, model.named_parameters(), recipe.lr, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    got = [{names[id(parameter)] for parameter in group["params"]} for group in groups]
    assert got == [set(group["params"]) for group in expected]
    assert [group["lr"] for group in groups] == pytest.approx([group["lr"] for group in expected])
    assert [group["weight_decay"] for group in groups] == [group["weight_decay"] for group in expected]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_trained_parameter_is_in_exactly_one_group(
    name: Any, stages_folder: Path, recorded: dict[str, Any]
) -> None:
    model = staged(stages_folder, "4", recorded["4"])
    recipe = OptimizerRecipe(lr=1e-3, name=name, muon_lr=2e-3 if name == "muon" else None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, model.config, recipe).param_groups
    assert sorted(names[id(each)] for group in groups for each in group["params"]) == sorted(trainable_names(model))
