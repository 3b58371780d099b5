"""What each of the four training stages starts from, trains, and gets as losses and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.models.vita import VitaMctpForCausalLM, VitaMctpOutput, is_mctp_parameter

LOSS_RTOL = 2e-5
CheckGradients = Callable[[Any, dict[str, Any]], None]


@pytest.fixture
def recorded(stages_folder: Path) -> dict[str, Any]:
    return json.loads((stages_folder / "stages.json").read_text())


def step(model: VitaMctpForCausalLM, recorded: dict[str, Any]) -> VitaMctpOutput:
    batch = {name: torch.tensor([values]) for name, values in recorded["batch"].items()}
    output = model(**batch, num_items_in_batch=recorded["num_items_in_batch"], label_shift="reference_row")
    output.loss.backward()
    return output


def train_blocks_only(model: VitaMctpForCausalLM) -> list[str]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_mctp_parameter(model.config, name))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def check_losses(output: VitaMctpOutput, expected: dict[str, Any]) -> None:
    losses = torch.stack([output.loss, *output.mtp_losses]).tolist()
    assert losses == pytest.approx([expected["total_loss"], *expected["mtp_losses"]], rel=LOSS_RTOL)


def missing_keys(model: VitaMctpForCausalLM, folder: Path) -> set[str]:
    return {name for name, _ in model.named_parameters()} - load_file(folder / "model.safetensors").keys()


def block_weights(model: VitaMctpForCausalLM, block: int) -> dict[str, torch.Tensor]:
    layer = model.config.num_backbone_layers + block
    owned = {
        f"model.layers.{layer}.": "layer.",
        f"mtp_projs.{block}.": "proj.",
        f"mtp_embed_norms.{block}.": "embed_norm.",
        f"mtp_hidden_norms.{block}.": "hidden_norm.",
    }
    return {
        role + name.removeprefix(prefix): value
        for prefix, role in owned.items()
        for name, value in model.state_dict().items()
        if name.startswith(prefix)
    }


def test_stage_1_trains_all_of_a_plain_qwen2(
    stages_folder: Path, recorded: dict[str, Any], check_gradients: CheckGradients
) -> None:
    expected = recorded["stages"]["1"]
    model = load_model(stages_folder / "stage1_ckpt")
    assert model.config.num_nextn_predict_layers == 0
    assert {name for name, _ in model.named_parameters()} == set(expected["trainable"])
    assert step(model, recorded).loss.item() == pytest.approx(expected["loss"], rel=LOSS_RTOL)
    check_gradients(model, expected["grad_params"])


def test_stage_2_starts_its_block_from_the_last_backbone_layer(stages_folder: Path, recorded: dict[str, Any]) -> None:
    expected = recorded["stages"]["2"]
    num_blocks = load_model(stages_folder / "stage2_ckpt").config.num_nextn_predict_layers
    model = load_model(stages_folder / "stage1_ckpt", num_mctp_blocks=num_blocks, seed=1)
    assert missing_keys(model, stages_folder / "stage1_ckpt") == set(expected["missing_keys"])
    last = model.model.layers[model.config.num_backbone_layers - 1].state_dict()
    for name, value in model.model.layers[model.config.num_backbone_layers].state_dict().items():
        torch.testing.assert_close(value, last[name], rtol=0, atol=0)
    assert model.mtp_projs[0].weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.1)
    assert bool((model.mtp_embed_norms[0].weight == 1).all() and (model.mtp_hidden_norms[0].weight == 1).all())


def test_stage_2_trains_one_block(
    stages_folder: Path, recorded: dict[str, Any], check_gradients: CheckGradients
) -> None:
    expected = recorded["stages"]["2"]
    model = load_model(stages_folder / "stage2_ckpt")
    assert set(train_blocks_only(model)) == set(expected["trainable"])
    check_losses(step(model, recorded), expected)
    check_gradients(model, expected["grad_params"])


def test_stage_3_copies_the_trained_block_and_trains_all_blocks(
    stages_folder: Path, recorded: dict[str, Any], check_gradients: CheckGradients
) -> None:
    expected = recorded["stages"]["3"]
    stage2 = load_model(stages_folder / "stage2_ckpt")
    model = load_model(stages_folder / "stage2_ckpt", num_mctp_blocks=len(expected["mtp_losses"]))
    missing = missing_keys(model, stages_folder / "stage2_ckpt")
    assert {".".join(name.split(".")[: 3 if name.startswith("model.") else 2]) for name in missing} == set(
        expected["missing_keys_prefixes"]
    )
    for name, parameter in model.named_parameters():
        facts = expected["params_after_init"][name]
        assert parameter.double().norm().item() == pytest.approx(facts["norm"], rel=1e-6), name
        assert parameter.double().sum().item() == pytest.approx(facts["sum"], abs=1e-6 * facts["norm"] + 1e-6), name
    trained = block_weights(stage2, 0)
    for block in range(model.config.num_nextn_predict_layers):
        torch.testing.assert_close(block_weights(model, block), trained, rtol=0, atol=0)
    assert set(train_blocks_only(model)) == set(expected["trainable"])
    check_losses(step(model, recorded), expected)
    check_gradients(model, expected["grad_params"])


def test_stage_4_trains_everything(
    stages_folder: Path, recorded: dict[str, Any], check_gradients: CheckGradients
) -> None:
    expected = recorded["stages"]["4"]
    model = load_model(stages_folder / "stage2_ckpt")
    model.expand(len(expected["mtp_losses"]))
    assert {name for name, _ in model.named_parameters()} == set(expected["trainable"])
    check_losses(step(model, recorded), expected)
    check_gradients(model, expected["grad_params"])
