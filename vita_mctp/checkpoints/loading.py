"""Opens a checkpoint folder as a model: its configuration, its weights' type and device, and whether they fit.

Quantisation is of weights alone: linear layers of backbone and blocks shrink to int8 or int4; embeddings, head and
norms stay as stored. The head is shared by all levels and often tied to the embeddings: its errors would touch every
token.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.utils import is_flash_attn_2_available

from vita_mctp.checkpoints.opening import family_in
from vita_mctp.checkpoints.options import AUTO, Quantization, check_device, check_dtype
from vita_mctp.checkpoints.weights import stored_dtype, tensor_shapes, verify_folder
from vita_mctp.errors import CheckpointError, ConfigError, MissingExtraError, OutOfMemoryError, VitaError
from vita_mctp.models.registry import Shapes, family_of
from vita_mctp.progress import track
from vita_mctp.schema import read_json

KERNELS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention", "flash": "flash_attention_2"}

_BYTES_PER_WEIGHT: dict[str, float] = {"int8": 1.0, "int4": 0.5 + 4 / 128}
"""int4 also keeps a scale and a zero point, of two bytes each, for a group of 128."""
_GROUP_SIZES = (128, 64, 32)
_MEMINFO = Path("/proc/meminfo")


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    attn: str = "sdpa",
    quantize: Quantization | None = None,
    num_mctp_blocks: int | None = None,
    seed: int = 0,
) -> Any:
    """The model stored in a folder, in eval mode, every tensor of it accounted for; its class is the one stored.

    Args:
        folder: config.json and safetensors in the released layout of its family.
        dtype: of the loaded weights, whatever is stored; None = as stored.
        device: where they go, layer by layer: no more than the model itself is ever in memory.
        attn: eager, sdpa, flex or flash (or transformers' longer names).
        quantize: makes the linear layers of backbone and blocks int8 or int4 on the way; int4 wants bfloat16.
        num_mctp_blocks: None = as stored; more than stored = grown to that many.
        seed: of what growing draws when there was no block.

    Raises:
        CheckpointError: a file or tensor is missing, surplus, cut short or of another shape than the config says.
        ConfigError: unknown `attn`, another kind of model, fewer blocks asked for than stored, or new ones quantised.
        MissingExtraError: flash attention or quantisation is asked for and not installed.
        OutOfMemoryError: the weights do not fit the device.
    """
    folder = Path(folder)
    verify_folder(folder)
    family, config = family_in(folder), read_config(folder)
    stored_blocks = config.num_nextn_predict_layers
    if num_mctp_blocks is not None and num_mctp_blocks < stored_blocks:
        raise ConfigError(f"{folder} has {stored_blocks} MCTP blocks, cannot load {num_mctp_blocks}")
    if quantize is not None and num_mctp_blocks not in (None, stored_blocks):
        raise ConfigError("new MCTP blocks are there to be trained, which quantised ones cannot be: leave one out")
    kernel, target, stored = attention_kernel(attn), parse_device(device), stored_dtype(folder)
    precision = dtype or stored
    if quantize == "int4" and precision != torch.bfloat16:
        raise ConfigError(f"int4 weights compute in bfloat16, not in {precision}: take --dtype bfloat16, or int8")
    needed = memory_needed(tensor_shapes(folder), precision, quantize, family.shrinks)
    refuse_too_large(folder, needed, target)
    with explained_out_of_memory(folder, needed, target):
        # as stored, weights stay mapped from their files until `move_model` gives each layer its own
        model = family.load_weights(folder, config, stored, kernel)
        move_model(model, target, precision, quantize)
        if num_mctp_blocks is not None:
            family.grow(model, num_mctp_blocks, seed)
    return model.eval()


def read_config(folder: Path) -> Any:
    """The folder's configuration, of its family's class.

    Raises:
        CheckpointError: config.json is damaged, or one of its values has a wrong type, is out of bounds or contradicts
            another one.
        ConfigError: it describes a kind of model that no family is.
    """
    family, file = family_in(folder), folder / "config.json"
    try:
        return family.read_config(folder, read_json(file), lambda: tensor_shapes(folder))
    except CheckpointError:
        raise
    except (VitaError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} is damaged ({reason}): download it again") from error


def attention_kernel(attn: str) -> str:
    """transformers' name for it. Raises ConfigError for an unknown one, MissingExtraError for one not installed."""
    kernel = KERNELS.get(attn, attn)
    if kernel not in KERNELS.values():
        raise ConfigError(f"unknown attention kernel {attn!r}: wanted one of {', '.join(KERNELS)}")
    if kernel == "flash_attention_2" and not is_flash_attn_2_available():
        raise MissingExtraError("attn='flash' needs flash-attn and a CUDA GPU: install it, or use attn='sdpa'")
    return kernel


def parse_dtype(name: str | torch.dtype) -> torch.dtype | None:
    """None for "auto": as stored. Raises ConfigError for an unknown name."""
    if isinstance(name, torch.dtype):
        return name
    check_dtype(name)
    return None if name == AUTO else getattr(torch, name)


def parse_device(name: str | torch.device) -> torch.device:
    """Raises ConfigError for a device that is unknown or not there."""
    check_device(str(name))
    return torch.device(name)


def move_model(
    model: nn.Module, device: torch.device, dtype: torch.dtype, quantize: Quantization | None = None
) -> None:
    """Moves a model layer by layer, in place, so that never more than one layer is there twice.

    Parameters get `dtype`; buffers, which hold rotary frequencies in float32, keep theirs.
    """
    shrink = _quantizer(quantize, device) if quantize else None
    shrinks = family_of(model.config.model_type).shrinks if shrink else None  # type: ignore[union-attr, arg-type]
    for layer_name, layer in track(list(model.named_modules()), "loading layers"):
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(device, dtype)
        for name, buffer in layer.named_buffers(recurse=False):
            layer.register_buffer(name, buffer.to(device), persistent=name not in layer._non_persistent_buffers_set)
        if shrink and shrinks and isinstance(layer, nn.Linear) and shrinks.fullmatch(layer_name):
            shrink(layer)


def memory_needed(
    shapes: Shapes, dtype: torch.dtype, quantize: Quantization | None = None, shrinks: re.Pattern[str] | None = None
) -> int:
    """Bytes that weights of these names and shapes take. shrinks: those of them that are quantised."""
    total = 0.0
    for name, shape in shapes.items():
        small = quantize and shrinks and shrinks.fullmatch(name.removesuffix(".weight"))
        total += torch.Size(shape).numel() * (_BYTES_PER_WEIGHT[quantize] if quantize and small else dtype.itemsize)
    return round(total)


def memory_available(device: torch.device) -> int | None:
    """Free bytes of a device; None where there is no telling."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and _MEMINFO.is_file():
        lines = (line.split() for line in _MEMINFO.read_text().splitlines())
        return next((int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"), None)
    return None


def refuse_too_large(name: str | os.PathLike[str], needed: int, device: torch.device) -> None:
    """Raises OutOfMemoryError when the weights cannot fit: the kernel would end the process without a word."""
    available = memory_available(device)
    if available is not None and needed > available:
        raise OutOfMemoryError(_does_not_fit(name, needed, device, f"{_gigabytes(available)} are free"))


@contextlib.contextmanager
def explained_out_of_memory(name: str | os.PathLike[str], needed: int, device: torch.device) -> Iterator[None]:
    """Turns an allocator's error into OutOfMemoryError with the way out; every other error passes."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(_does_not_fit(name, needed, device, "the rest is taken")) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise OutOfMemoryError(_does_not_fit(name, needed, device, "the rest is taken")) from error


def _does_not_fit(name: str | os.PathLike[str], needed: int, device: torch.device, state: str) -> str:
    return (
        f"{name} does not fit: its weights alone take {_gigabytes(needed)} of memory on {device}, and {state}; "
        "try --dtype bfloat16, --quantize int8 or int4, or another --device"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.1f} GB"


def _quantizer(kind: Quantization, device: torch.device) -> Callable[[nn.Linear], None]:
    """Quantises one linear layer in place, on its device.

    int8 has a scale for each output; int4 a scale and a zero point for each group of 128 inputs (64 or 32 where these
    do not divide them; a layer that 32 does not divide stays as it is). int4 computes in bfloat16.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def quantize(layer: nn.Linear) -> None:
        settings = Int8WeightOnlyConfig(set_inductor_config=False) if kind == "int8" else _int4(layer, device)
        if settings is not None:
            quantize_(layer, settings, filter_fn=lambda module, name: True)

    return quantize


def _int4(layer: nn.Linear, device: torch.device) -> Any:
    group = next((size for size in _GROUP_SIZES if layer.in_features % size == 0), None)
    if group is None:
        return None
    if device.type == "cuda":
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(group, set_inductor_config=False, int4_packing_format="tile_packed_to_4d")
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group, set_inductor_config=False)
