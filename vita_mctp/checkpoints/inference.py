"""Loads a checkpoint folder for decoding alone, without transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from vita_mctp.checkpoints.placement import explained_out_of_memory, memory_needed, parse_dtype, place, refuse_too_large
from vita_mctp.checkpoints.weights import safetensors_files, stored_dtype, verify_folder
from vita_mctp.errors import VitaError
from vita_mctp.models.vita.inference import GenerationValues, InferenceConfig, VitaMctpForInference

GENERATION_FILE = "generation_config.json"


def load_for_inference(folder: Path, dtype: str | None, device: torch.device) -> VitaMctpForInference | None:
    """The model of a folder that is plain throughout; None for any other, or a damaged one: `load_model` says why.

    dtype: as for `SpeechLM.from_pretrained`.
    Raises CheckpointError for weight files that are not whole, OutOfMemoryError for weights that do not fit.
    """
    verify_folder(folder)
    try:
        config = InferenceConfig.read_json(folder / "config.json")
        stated = folder / GENERATION_FILE
        generation = json.loads(stated.read_bytes()) if stated.is_file() else {}
    except (OSError, ValueError, VitaError):
        return None
    if not config.is_sound or not isinstance(generation, dict):
        return None
    tensors: dict[str, torch.Tensor] = {}
    for file in safetensors_files(folder):
        with safe_open(file, framework="pt") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    model = VitaMctpForInference.of(config, GenerationValues(generation), tensors)
    if model is None:
        return None
    precision = parse_dtype(dtype or config.dtype or config.torch_dtype or "float32") or stored_dtype(folder)
    needed = memory_needed({name: tuple(tensor.shape) for name, tensor in tensors.items()}, precision)
    refuse_too_large(folder, needed, device)
    with explained_out_of_memory(folder, needed, device):
        place(model, device, precision)
    return model
