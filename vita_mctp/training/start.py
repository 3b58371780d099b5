"""What a stage starts from: its parent's model, a released Qwen2.5, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from vita_mctp.checkpoints.loading import load_model, read_config
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.vita.losses import SharedHead
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM
from vita_mctp.models.vita.plus import VitaMctpPlusForCausalLM
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.training.backbone import build_backbone
from vita_mctp.training.recipe import BACKBONES, Recipe
from vita_mctp.training.run_folder import TRAINING_FILE, read_record


def find_parent(recipe: Recipe, recipe_folder: Path, out: Path) -> Path | None:
    """The parent's finished checkpoint: a name in `out`, or a folder relative to the recipe; None in stage 1.

    Adapters may also go on from a finished stage 4, or from released weights, which say nothing of their training.

    Raises CheckpointError unless it is there and of the stage before this one.
    """
    if recipe.parent is None:
        return None
    named = out / recipe.parent / "final"
    folder = named if named.exists() else recipe_folder / recipe.parent
    if not folder.is_dir():
        raise CheckpointError(f"{recipe.name} starts from {recipe.parent}, not found at {named}; train that first")
    if recipe.lora is not None and not (folder / TRAINING_FILE).exists():
        return _released_parent(recipe, folder)
    stage = read_record(folder).get("stage")
    if stage != recipe.stage - 1 and not (recipe.lora is not None and stage == recipe.stage):
        raise CheckpointError(f"{folder} is of stage {stage}; {recipe.name} starts from stage {recipe.stage - 1}")
    return folder


def _released_parent(recipe: Recipe, folder: Path) -> Path:
    blocks = read_config(folder).num_nextn_predict_layers
    if blocks != recipe.num_mctp_blocks:
        raise CheckpointError(f"{folder} has {blocks} MCTP blocks, {recipe.name} wants {recipe.num_mctp_blocks}")
    return folder


def released_folder(recipe: Recipe, recipe_folder: Path) -> Path:
    """The folder that stage 1 starts from: a released backbone, fetched from the hub unless the recipe names it.

    Raises CheckpointError when it can neither be found nor fetched.
    """
    if recipe.start is not None:
        folder = recipe_folder / recipe.start
        if not folder.is_dir():
            how = "download the backbone there" if recipe.ears is None else "let `vita-mctp convert plus` write it"
            raise CheckpointError(f"{recipe.name}: start: {folder} is no folder; {how}")
        return folder
    assert recipe.backbone is not None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    hub_id = BACKBONES[recipe.backbone].hub_id
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"cannot fetch {hub_id} ({reason}); download it and give --set start=FOLDER") from error


def start_model(recipe: Recipe, origin: Path | None, tokenizer: TextTokenizer) -> VitaMctpForCausalLM:
    """The stage's model before its first step.

    Args:
        origin: the parent, the released backbone, or a checkpoint of this very stage; None: build `recipe.model`.

    Raises:
        ConfigError: the origin is not of the size that the recipe's `backbone` names, or hears otherwise.
    """
    if origin is None:
        assert recipe.model is not None
        return build_backbone(recipe.model, tokenizer.vocabulary, seed=recipe.seed, attention=recipe.attention)
    dtype = torch.bfloat16 if recipe.precision == "bf16" and (recipe.deepspeed or recipe.lora) else torch.float32
    model = load_model(
        origin, dtype=dtype, attn=recipe.attention, num_mctp_blocks=recipe.num_mctp_blocks, seed=recipe.seed
    )
    _check_size(model, recipe, origin)
    _check_ears(model, recipe, origin)
    if recipe.stage == 1 and model.config.vocab_size != tokenizer.vocabulary.padded_size:
        resize_vocabulary(model, tokenizer.vocabulary.padded_size, seed=recipe.seed)
    return model


def resize_vocabulary(model: VitaMctpForCausalLM, size: int, *, seed: int) -> None:
    """Give embeddings and head `size` rows; new ones are drawn around the mean of the old, as transformers does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(size, mean_resizing=True)
    weight = cast(nn.Linear, model.lm_head).weight
    head = SharedHead(1, 1)  # transformers has put a plain linear layer in its place
    head.in_features, head.out_features, head.weight = weight.shape[1], weight.shape[0], weight
    model.lm_head = head
    model.tie_weights()


def _check_size(model: VitaMctpForCausalLM, recipe: Recipe, origin: Path) -> None:
    if recipe.backbone is None:
        return
    wanted, config = BACKBONES[recipe.backbone], model.config
    got = (config.hidden_size, config.num_backbone_layers, config.num_attention_heads)
    if got != (wanted.hidden_size, wanted.num_layers, wanted.num_heads):
        raise ConfigError(
            f"{origin} has hidden size, layers, heads {got}; {recipe.name} is for {recipe.backbone}: name its parent"
        )


def _check_ears(model: VitaMctpForCausalLM, recipe: Recipe, origin: Path) -> None:
    if isinstance(model, VitaMctpPlusForCausalLM) != (recipe.ears is not None):
        what, wanted = ("codes", "features") if recipe.ears is not None else ("features", "codes")
        raise ConfigError(f"{origin} hears {what}; {recipe.name} is for a model that hears {wanted}: name its parent")
