"""What a recipe is before it runs: what it trains, on how much, in how much memory, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vita_mctp.checkpoints.loading import read_config
from vita_mctp.errors import ConfigError
from vita_mctp.models.registry import family_of
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.training.optimizer import adapter_weights, set_trainable
from vita_mctp.training.recipe import BACKBONES, Recipe, load_recipe

PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "H20": 148e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16, from NVIDIA's data sheets, by a part of the device's name. Looked up in this order."""

PADDED_VOCABULARY = 168072
"""VITA-Audio's: Qwen2.5's tokens, the 20 released additions and 16,384 audio codes, padded to a multiple of 8."""

GPUS = (1, 8, 16)
ASSUMED_MFU = 0.35
PLANNED_FOR = ("H20", "A100", "H100")
_GIB = 2**30
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)


def plan(recipe_path: Path, out: Path, settings: Sequence[str] = ()) -> str:
    """Lines about a recipe, from its sizes alone; trains and downloads nothing.

    Raises:
        ConfigError: the recipe is wrong, or neither it nor its parent in `out` says how large the model is.
    """
    recipe = load_recipe(recipe_path, settings)
    config = _planned_config(recipe, recipe_path.parent, out)
    family = family_of(recipe.model_type)
    with torch.device("meta"):
        model = family.model_class(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    if recipe.lora is None:
        trainable = set_trainable(model, freeze_backbone=recipe.freeze_backbone, parts=recipe.trains)
    else:
        trainable = adapter_weights(model, recipe.lora, recipe.trains)
    context = recipe.data.row_length
    flops = family.flops_per_token(config, backbone_trains=not recipe.freeze_backbone, context=context)
    tokens = recipe.num_steps * recipe.data.tokens_per_step
    blocks = f" {recipe.num_mctp_blocks} blocks," if recipe.family is None else ""
    lines = [
        f"{recipe.name}: stage {recipe.stage},{blocks} from {recipe.parent or recipe.start or 'the backbone'}",
        _trained_line(recipe, trainable, total),
        f"data: {recipe.num_steps:,} steps of {recipe.data.tokens_per_step:,} tokens in rows of {context:,}: "
        f"{tokens / 1e9:.2f} G tokens",
        f"work: {flops / 1e9:.1f} GFLOP per token, {flops * tokens:.2e} FLOP; at {ASSUMED_MFU:.0%} MFU (assumed) "
        + ", ".join(f"{_gpu_hours(flops * tokens, name):,.0f} {name} hours" for name in PLANNED_FOR),
    ]
    lines += [beside] if (beside := family.work_beside(model)) else []
    lines += _memory_lines(recipe, config, total, trainable)
    return "\n".join(lines) + "\n"


def peak_flops(device_name: str) -> float | None:
    """Of one device in bfloat16; None for one that is not in the table."""
    return next((flops for name, flops in PEAK_BF16_FLOPS.items() if name in device_name), None)


def _planned_config(recipe: Recipe, recipe_folder: Path, out: Path) -> Any:
    """The configuration that the stage will have. Where the tokenizer is yet to be made, its text tokens are not in."""
    family, shape, vocabulary = family_of(recipe.model_type), recipe.model, PADDED_VOCABULARY
    if recipe.backbone is not None:
        shape = BACKBONES[recipe.backbone].shape
        vocabulary = vocabulary if recipe.family is None else BACKBONES[recipe.backbone].vocabulary
    elif recipe.tokenizer is not None:
        vocabulary = TextTokenizer.from_folder(recipe_folder / recipe.tokenizer).vocabulary.padded_size
    elif shape is not None:
        vocabulary = shape.num_audio_codes
    if shape is not None:
        layers, sizes = shape.num_layers, shape.config_values() | {"vocab_size": vocabulary}
    else:
        start = _start_config(recipe, recipe_folder, out)
        if recipe.family is not None:
            return start
        layers, sizes = start.num_backbone_layers, {name: getattr(start, name) for name in _SIZES}
    return family.config_class(
        num_hidden_layers=layers + recipe.num_mctp_blocks,
        num_nextn_predict_layers=recipe.num_mctp_blocks,
        **sizes,
        **family.new_values(sizes["hidden_size"]),
    )


def _start_config(recipe: Recipe, recipe_folder: Path, out: Path) -> Any:
    folder = out / str(recipe.parent) / "final" if recipe.start is None else recipe_folder / recipe.start
    if not (folder / "config.json").is_file():
        what = f"train {recipe.parent} first" if recipe.start is None else "name another start"
        raise ConfigError(f"{recipe.name} has the size of what it starts from, and there is no {folder}; {what}")
    return read_config(folder)


def _trained_line(recipe: Recipe, trainable: int, total: int) -> str:
    parts = "".join(f", the {part}" for part in recipe.trains)
    if recipe.lora is not None:
        return (
            f"trained: adapters of rank {recipe.lora.rank}{parts}, {trainable:,} weights beside the model's {total:,}"
        )
    encoder = "" if recipe.audio_encoder is None and recipe.family is None else " but the audio encoder"
    frozen = "the MCTP blocks" if recipe.family is None else parts.removeprefix(", ")
    what = frozen if recipe.freeze_backbone else f"everything{encoder}"
    return f"trained: {what}, {trainable:,} of {total:,} weights"


def _gpu_hours(flops: float, device: str) -> float:
    return flops / (PEAK_BF16_FLOPS[device] * ASSUMED_MFU) / 3600


def _memory_lines(recipe: Recipe, config: Any, total: int, trainable: int) -> list[str]:
    """Bytes a weight: 2 for itself, 2 for its gradient, 12 for Adam and the float32 copy (ZeRO, arXiv 1910.02054)."""
    positions = recipe.data.row_length * recipe.data.rows_per_forward
    if recipe.lora is not None:
        return [f"memory: {(2 * total + 16 * trainable) / _GIB:.0f} GiB for weights and adapters, beside activations"]
    activations = family_of(recipe.model_type).activation_bytes(config, positions)
    lines = ["memory of each GPU, GiB: weights, gradients, optimizer (bf16), beside activations:"]
    for stage in (1, 2, 3):
        cells = []
        for gpus in GPUS:
            weights = 2 * total / (gpus if stage == 3 else 1)
            gradients = 2 * trainable / (gpus if stage >= 2 else 1)
            cells.append(f"{(weights + gradients + 12 * trainable / gpus) / _GIB:.0f} on {gpus}")
        lines.append(f"  ZeRO-{stage}: " + ", ".join(cells))
    kept = "layer inputs, hidden states and a chunk of logits" if recipe.gradient_checkpointing else "at least"
    return [*lines, f"  activations: {kept}, {activations / _GIB:.1f}"]
