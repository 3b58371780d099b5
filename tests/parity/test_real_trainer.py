"""The shipped recipes and the trainer that runs them, held to what the reference's four stages did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.data.row_stream import PackedRow
from vita_mctp.training.arguments import training_arguments
from vita_mctp.training.optimizer import set_trainable
from vita_mctp.training.recipe import load_recipe
from vita_mctp.training.run_folder import RunFolder, TrainingRecord
from vita_mctp.training.trainer import VitaTrainer

STAGES = Path(__file__).parents[2] / "stages"
RECIPES = {
    "1": "stage1_alignment.yaml",
    "2": "stage2_single_mctp.yaml",
    "3": "stage3_mctp_chain.yaml",
    "4": "stage4_sft.yaml",
}


class OneRow:
    """The recorded batch, for ever."""

    def __init__(self, batch: dict[str, list[int]]) -> None:
        arrays = {name: np.array(batch[name], dtype=np.int64) for name in ("input_ids", "labels", "position_ids")}
        self._row = PackedRow(**arrays, ends=(len(arrays["labels"]),))

    def __next__(self) -> PackedRow:
        return self._row

    def state(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("stage", RECIPES)
def test_the_trainer_s_objects_are_the_reference_s(
    stage: str, stages_folder: Path, tmp_path: Path, check_gradients: Callable[[Any, dict[str, Any]], None]
) -> None:
    recorded = json.loads((stages_folder / "stages.json").read_text())
    expected, length = recorded["stages"][stage], len(recorded["batch"]["labels"])
    whole = load_recipe(STAGES / RECIPES[stage])
    data = whole.data.model_copy(update={"row_length": length, "tokens_per_step": length})
    small = {"precision": "fp32", "deepspeed": None, "gradient_checkpointing": False, "label_shift": "reference_row"}
    recipe = whole.model_copy(update={"data": data, **small})
    source = stages_folder / ("stage1_ckpt" if stage == "1" else "stage2_ckpt")
    model = load_model(source, num_mctp_blocks=len(expected.get("mtp_losses", [])))
    set_trainable(model, freeze_backbone=recipe.freeze_backbone)
    trainer = VitaTrainer(
        model,
        training_arguments(recipe, tmp_path, STAGES),
        recipe,
        OneRow(recorded["batch"]),
        RunFolder(tmp_path),
        save=lambda *_: None,
        record=TrainingRecord(name="", stage=recipe.stage, parent=None, recipe={}, versions={}),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(names.values()) == set(expected["trainable"])
    if stage != "1":
        got = [
            ({names[id(p)] for p in group["params"]}, group["lr"], group["weight_decay"])
            for group in trainer.create_optimizer().param_groups
        ]
        wanted = [(set(group["params"]), group["lr"], group["weight_decay"]) for group in expected["optimizer_groups"]]
        assert [group[0] for group in got] == [group[0] for group in wanted]
        assert [group[1:] for group in got] == [pytest.approx(group[1:]) for group in wanted]
    batch = next(iter(trainer.get_train_dataloader()))
    batch.pop("num_tokens")
    loss, output = trainer.compute_loss(model, batch, return_outputs=True)
    loss.backward()
    losses = torch.stack([loss.detach(), *output.mtp_losses]).tolist()
    assert losses == pytest.approx(
        [expected.get("total_loss", expected.get("loss")), *expected.get("mtp_losses", [])], rel=2e-5
    )
    check_gradients(model, expected["grad_params"])
