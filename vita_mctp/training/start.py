"""What a stage starts from: its parent's model, a released Qwen2.5, or nothing. V vocabulary, H hidden, D levels."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_mctp.checkpoints.hub import MODEL_PATTERNS, WEIGHTS, Repository, fetch
from vita_mctp.checkpoints.loading import attention_kernel, load_model, read_config
from vita_mctp.checkpoints.opening import model_type_of
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import TRAINED, family_of
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import Vocabulary
from vita_mctp.training.recipe import BACKBONES, ModelShape, Recipe
from vita_mctp.training.run_folder import TRAINING_FILE, read_record

_OWN_FRACTION = 0.3
"""Spread of an audio embedding's own part, relative to what it has in common with its neighbours on the grid."""


def find_parent(recipe: Recipe, recipe_folder: Path, out: Path) -> Path | None:
    """The parent's finished checkpoint: a name in `out`, or a folder relative to the recipe; None in stage 1.

    Stage 4, and every stage of a family with parts, may also go on from a finished one of its own, or from released
    weights, which say nothing of their training.

    Raises CheckpointError unless it is there and of the stage before this one.
    """
    if recipe.parent is None:
        return None
    named = out / recipe.parent / "final"
    folder = named if named.exists() else recipe_folder / recipe.parent
    if not folder.is_dir():
        raise CheckpointError(f"{recipe.name} starts from {recipe.parent}, not found at {named}; train that first")
    may_go_on = recipe.stage == 4 or recipe.family is not None
    if may_go_on and not (folder / TRAINING_FILE).exists():
        return _released_parent(recipe, folder)
    stage = read_record(folder).stage
    if stage != recipe.stage - 1 and not (may_go_on and stage == recipe.stage):
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
            writer = "thinker" if recipe.family else "plus" if recipe.audio_encoder else None
            how = f"let `vita-mctp convert {writer}` write it" if writer else "download the backbone there"
            raise CheckpointError(f"{recipe.name}: start: {folder} is no folder; {how}")
        return folder
    assert recipe.backbone is not None
    files = (("config.json",), ("tokenizer.json",), WEIGHTS)
    hub_id = BACKBONES[recipe.backbone].hub_id
    try:
        return fetch(Repository(hub_id, "the backbone", "see its page", "Apache-2.0", files, MODEL_PATTERNS))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a copy elsewhere is named with --set start=FOLDER") from error


def start_model(recipe: Recipe, origin: Path | None, tokenizer: TextTokenizer) -> Any:
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
    _check_input(model, recipe, origin)
    if recipe.stage == 1 and model.config.vocab_size != tokenizer.vocabulary.padded_size:
        family_of(recipe.model_type).resize_vocabulary(model, tokenizer.vocabulary.padded_size, recipe.seed)
    return model


def check_family(recipe: Recipe, origin: Path) -> None:
    """Raises ConfigError for an origin of another family than the recipe names."""
    if recipe.family not in (None, kind := model_type_of(origin)):
        raise ConfigError(f"{origin} holds a {kind} model; {recipe.name} is for {recipe.family}: name its parent")


def _check_size(model: Any, recipe: Recipe, origin: Path) -> None:
    if recipe.backbone is None:
        return
    shape, config = BACKBONES[recipe.backbone].shape, model.config
    got = (config.hidden_size, config.num_backbone_layers, config.num_attention_heads)
    if got != (shape.hidden_size, shape.num_layers, shape.num_heads):
        raise ConfigError(
            f"{origin} has hidden size, layers, heads {got}; {recipe.name} is for {recipe.backbone}: name its parent"
        )


def _check_input(model: Any, recipe: Recipe, origin: Path) -> None:
    if model.config.model_type != recipe.model_type:
        what, other = ("codes", "features") if recipe.audio_encoder is not None else ("features", "codes")
        raise ConfigError(f"{origin} hears {what}; {recipe.name} is for a model that hears {other}: name its parent")


def build_backbone(shape: ModelShape, vocabulary: Vocabulary, *, seed: int, attention: str) -> Any:
    """A randomly initialised model without MCTP blocks, reproducible from `seed`; leaves the global generator alone."""
    family = family_of(TRAINED[None])
    config = family.config_class(
        vocab_size=vocabulary.padded_size,
        num_hidden_layers=shape.num_layers,
        num_nextn_predict_layers=0,
        speech_token_offset=vocabulary.audio_0,
        eos_token_id=vocabulary.im_end,
        pad_token_id=vocabulary.pad,
        **shape.config_values(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.model_class._from_config(config, attn_implementation=attention_kernel(attention))
        if shape.audio_code_levels is not None:
            codes = slice(vocabulary.audio_0, vocabulary.size)
            grid = grid_embeddings(shape.audio_code_levels, shape.hidden_size, config.initializer_range)
            with torch.no_grad():
                model.model.embed_tokens.weight[codes] = grid
    return model


def grid_embeddings(levels: tuple[int, ...], hidden_size: int, std: float) -> Tensor:
    """(prod(levels), H) embeddings of a finite scalar quantiser's codes, near for codes that are near on its grid.

    Each is the sum, over the grid's D dimensions, of a direction times the coordinate and a vector of its level, and
    a part of its own. Digit d of a code counts units of levels[0] * .. * levels[d-1].
    """
    codes, unit = torch.arange(prod(levels)), 1
    total = torch.zeros(len(codes), hidden_size)
    for count in levels:
        digit = codes // unit % count
        unit *= count
        coordinate = 2 * digit / (count - 1) - 1
        total += coordinate[:, None] * torch.randn(hidden_size) + torch.randn(count, hidden_size)[digit]
    total = total / total.std() + _OWN_FRACTION * torch.randn_like(total)
    return total * (std / total.std())
