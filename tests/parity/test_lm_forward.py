"""Teacher-forced hidden states, logits, losses and gradients against the reference system's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.models.attention import attention_inputs
from vita_mctp.models.vita import VitaMctpConfig, VitaMctpForCausalLM, is_mctp_parameter

NEAR = {"atol": 3e-4, "rtol": 1e-4}
LOSS_RTOL = 2e-5
GRADIENT_RTOL = 5e-4


@pytest.fixture
def model(lm_folder: Path) -> VitaMctpForCausalLM:
    return load_model(lm_folder)


@pytest.fixture
def recorded(lm_folder: Path) -> dict[str, Any]:
    return json.loads((lm_folder / "forward_train.json").read_text())


@pytest.fixture
def tensors(lm_folder: Path) -> dict[str, Tensor]:
    return load_file(lm_folder / "forward_train.safetensors")


def batches(recorded: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {kind: batch for kind, batch in recorded.items() if isinstance(batch, dict) and "input_ids" in batch}


def row(batch: dict[str, Any], *names: str) -> dict[str, Tensor]:
    return {name: torch.tensor([batch[name]]) for name in names}


@torch.no_grad()
def test_hidden_states_and_logits_of_backbone_and_every_block(
    model: VitaMctpForCausalLM, recorded: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    for kind, batch in batches(recorded).items():
        levels = list(model.chain(**row(batch, "input_ids", "position_ids")))
        assert len(levels) == model.config.num_nextn_predict_layers + 1
        for level, (_, hidden) in enumerate(levels):
            name = f"{kind}.mtp{level - 1}" if level else f"{kind}.backbone"
            torch.testing.assert_close(hidden[0], tensors[f"{name}_hidden"], **NEAR)
            if f"{name}_logits" in tensors:
                torch.testing.assert_close(model.logits(hidden[0]), tensors[f"{name}_logits"], **NEAR)


@torch.no_grad()
def test_prompt_logits(model: VitaMctpForCausalLM, recorded: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    prompts = {name: ids for name, ids in recorded.items() if name.startswith("prompt")}
    assert prompts
    for name, ids in prompts.items():
        logits = model(torch.tensor([ids])).logits
        torch.testing.assert_close(logits[0], tensors[f"{name}.logits"], **NEAR)


@torch.no_grad()
def test_each_block_sees_the_recorded_positions_and_sample_bounds(
    model: VitaMctpForCausalLM, recorded: dict[str, Any]
) -> None:
    for batch in batches(recorded).values():
        positions = [rows.position_ids for rows, _ in model.chain(**row(batch, "input_ids", "position_ids"))]
        assert [level[0].tolist() for level in positions] == batch["positions_per_block"]
        recorded_bounds = batch["cu_seqlens_seen_by_varlen_attention_first_layer_each"]
        for level, expected in zip(reversed(positions), reversed(recorded_bounds), strict=False):
            inputs = attention_inputs("flash_attention_2", level, torch.float32)
            bounds = inputs["cu_seq_lens_q"].tolist() if "cu_seq_lens_q" in inputs else [0, level.numel()]
            assert bounds == expected


def test_losses_and_gradients(
    model: VitaMctpForCausalLM, recorded: dict[str, Any], check_gradients: Callable[[Any, dict[str, Any]], None]
) -> None:
    for kind, batch in batches(recorded).items():
        results = {name: result for name, result in batch.items() if isinstance(result, dict) and "lm_loss" in result}
        assert results, kind
        for name, expected in results.items():
            set_trainable(model, frozen=name.startswith("frozen"))
            output = model(
                **row(batch, "input_ids", "labels", "position_ids"),
                num_items_in_batch=None if name.endswith("mean") else int(name.rsplit("_", 1)[1]),
                label_shift="reference_row",
            )
            losses = torch.stack([output.loss, output.lm_loss, *output.mtp_losses]).tolist()
            wanted = [expected["total_loss"], expected["lm_loss"], *expected["mtp_losses"]]
            assert losses == pytest.approx(wanted, rel=LOSS_RTOL), (kind, name)
            if output.loss.requires_grad:
                output.loss.backward()
            groups = group_norms(model)
            for group, norm in expected["grad_group_norms"].items():
                assert groups.get(group, 0.0) == pytest.approx(norm or 0.0, rel=GRADIENT_RTOL), (kind, name, group)
            if expected["grad_params"] is not None:
                check_gradients(model, expected["grad_params"])


def set_trainable(model: VitaMctpForCausalLM, *, frozen: bool) -> None:
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or is_mctp_parameter(model.config, name))


def group_norms(model: VitaMctpForCausalLM) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            group = group_of(model.config, name)
            squares[group] = squares.get(group, 0.0) + parameter.grad.double().square().sum().item()
    return {group: square**0.5 for group, square in squares.items()}


def group_of(config: VitaMctpConfig, name: str) -> str:
    parts = name.split(".")
    if parts[0].startswith("mtp_"):
        return f"mtp_block_{parts[1]}.{parts[0]}"
    if name.startswith("model.layers."):
        block = int(parts[2]) - config.num_backbone_layers
        return f"mtp_block_{block}.layer" if block >= 0 else "backbone_layers"
    return name
