"""LoRA adapters merged into their base, as VocalNet's authors merge those of stage 1: in float16, adaptor included.

A LoRA folder holds adapter_config.json, adapter_model.safetensors, and the weights trained beside the adapters, which
the authors pickle; they are read as tensors alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from torch import Tensor

from vita_mctp.checkpoints.weights import safetensors_files, verify_folder
from vita_mctp.codecs.released import load_tensors
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema

_OTHERS = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
_REMEDY = "get it again"
_A, _B = ".lora_A.weight", ".lora_B.weight"


class LoraValues(Schema):
    """Of adapter_config.json what decides the sum; peft's other keys pass."""

    model_config = ConfigDict(extra="ignore")

    r: Annotated[int, Field(ge=1, le=1 << 16)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)]
    use_dora: Annotated[bool, Field()] = False
    use_rslora: Annotated[bool, Field()] = False
    rank_pattern: dict[str, Any] = Field(default_factory=dict)
    alpha_pattern: dict[str, Any] = Field(default_factory=dict)


def merge_lora(base: Path, adapter: Path) -> dict[str, Tensor]:
    """W + alpha / r * B A for every adapted weight, and all others, by name, float16.

    Raises CheckpointError for a file that is missing or cut short, and for adapters of another kind, without their
    counterpart, or of a weight that `base` lacks.
    """
    values = LoraValues.read_json(adapter / "adapter_config.json")
    if values.use_dora or values.use_rslora or values.rank_pattern or values.alpha_pattern:
        raise CheckpointError(f"{adapter} holds adapters of one's own ranks or scales; wanted plain LoRA of one rank")
    verify_folder(base)
    stored = [load_tensors(file, _REMEDY) for file in safetensors_files(base)]
    merged = {name: tensor.half() for tensors in stored for name, tensor in tensors.items()}
    found = load_tensors(adapter / "adapter_model.safetensors", _REMEDY)
    adapters = {_plain(name): tensor for name, tensor in found.items()}
    for name in sorted(adapters):
        if name.endswith(_B) and name.removesuffix(_B) + _A in adapters:
            continue
        weight = name.removesuffix(_A) + ".weight"
        if not name.endswith(_A) or name.removesuffix(_A) + _B not in adapters or weight not in merged:
            raise CheckpointError(f"{adapter} has {name}, which fits no weight of {base}; they are not of one model")
        down, up = adapters[name].half(), adapters[name.removesuffix(_A) + _B].half()
        if (up.shape[0], down.shape[1]) != tuple(merged[weight].shape) or up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{adapter}: {name} has shape {tuple(down.shape)}, which does not fit {weight}")
        merged[weight] = merged[weight] + (up @ down) * (values.lora_alpha / values.r)
    return merged | {_plain(name): tensor.half() for name, tensor in _others(adapter).items()}


def _plain(name: str) -> str:
    """Without the prefixes of peft and of the class around."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith("model.model.") else name


def _others(adapter: Path) -> dict[str, Tensor]:
    found = next((adapter / name for name in _OTHERS if (adapter / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{adapter} lacks {_OTHERS[1]}, the adaptor's weights; get the whole folder")
    return load_tensors(found, _REMEDY)
