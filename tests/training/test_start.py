"""What a stage starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.losses import SharedHead
from vita_mctp.models.vita import VITA, VitaMctpConfig, VitaMctpForCausalLM
from vita_mctp.training.plan import plan
from vita_mctp.training.recipe import load_recipe
from vita_mctp.training.start import find_parent, released_folder, start_model

STAGES = Path(__file__).parents[2] / "stages"


def tiny(*, tied: bool) -> VitaMctpForCausalLM:
    config = VitaMctpConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_nextn_predict_layers=0,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return VitaMctpForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_new_words_are_drawn_around_the_old_ones_again_the_same(tied: bool) -> None:
    models = [tiny(tied=tied) for _ in range(2)]
    before = models[0].model.embed_tokens.weight.detach().clone()
    for model in models:
        VITA.resize_vocabulary(model, 40, seed=5)
    model = models[0]
    table, head = model.model.embed_tokens.weight, model.lm_head
    assert isinstance(head, SharedHead) and head.weight.shape == table.shape == (40, 16)
    assert (head.weight is table) == tied and model.config.vocab_size == 40
    assert torch.equal(table[:24], before) and bool((table[24:] != 0).any(dim=1).all())
    assert torch.equal(table, models[1].model.embed_tokens.weight)
    ids = torch.arange(40)[None]
    model(ids, ids).loss.backward()
    assert head.weight.grad is not None


def test_a_parent_of_another_size_is_refused(tmp_path: Path) -> None:
    tiny(tied=True).save_pretrained(tmp_path)
    recipe = load_recipe(STAGES / "stage4_sft_0.5b.yaml")
    with pytest.raises(
        ConfigError, match=r"hidden size, layers, heads \(16, 1, 2\); stage4_sft_0.5b is for qwen2.5-0.5b"
    ):
        start_model(recipe, tmp_path, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["stage4_lora", "stage4_sft"])
def test_stage_4_goes_on_from_released_weights_with_as_many_blocks(stage: str, tmp_path: Path) -> None:
    tiny(tied=True).save_pretrained(tmp_path / "released")
    recipe = load_recipe(STAGES / f"{stage}.yaml").model_copy(update={"parent": "released"})
    with pytest.raises(CheckpointError, match=f"has 0 MCTP blocks, {stage} wants 10"):
        find_parent(recipe, tmp_path, tmp_path)
    assert find_parent(recipe.model_copy(update={"num_mctp_blocks": 0}), tmp_path, tmp_path) == tmp_path / "released"
    with pytest.raises(CheckpointError, match=r"no training\.json"):
        find_parent(recipe.model_copy(update={"stage": 3}), tmp_path, tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = load_recipe(STAGES / "stage2_single_mctp.yaml")
    with pytest.raises(CheckpointError, match="starts from stage1_alignment, not found at"):
        find_parent(recipe, STAGES, tmp_path)
    with pytest.raises(CheckpointError, match="is no folder; download the backbone there"):
        released_folder(recipe.model_copy(update={"start": "nowhere"}), tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stage1_alignment", ["everything, 7,730,361,856 of 7,730,361,856 weights", "16.78 G tokens", "ZeRO-3"]),
        ("stage3_mctp_chain", ["the MCTP blocks, 2,587,550,720 of 10,317,912,576 weights"]),
        ("stage4_sft_0.5b", ["everything, 673,688,704 of"]),
        ("stage4_lora", ["adapters of rank 64", "beside the model's 10,317,912,576"]),
    ],
)
def test_a_plan_counts_what_is_trained(name: str, words: list[str], tmp_path: Path) -> None:
    lines = plan(STAGES / f"{name}.yaml", tmp_path)
    assert all(each in lines for each in words), lines


def test_a_plan_without_a_size_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train smoke1 first"):
        plan(STAGES / "smoke" / "stage2_single_mctp.yaml", tmp_path)
