"""Where a model's weights go and in which type, and what to say when they do not fit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from vita_mctp.checkpoints.quantization import BYTES_PER_WEIGHT, Quantization, quantizer, shrinks
from vita_mctp.errors import ConfigError, OutOfMemoryError

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_MEMINFO = Path("/proc/meminfo")


def parse_dtype(name: str) -> torch.dtype | None:
    """None for "auto": as stored. Raises ConfigError for an unknown name."""
    if name == AUTO:
        return None
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; known: {', '.join([*DTYPES, AUTO])}")
    return DTYPES[name]


def parse_device(name: str | torch.device) -> torch.device:
    """Raises ConfigError for a device that is unknown or not there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise ConfigError(
            f"the device {str(name)!r} is unknown or not there; give cpu, or cuda where doctor shows one"
        ) from None
    return device


def place(model: nn.Module, device: torch.device, dtype: torch.dtype, quantize: Quantization | None = None) -> None:
    """Moves a model layer by layer, in place, so that never more than one layer is there twice.

    Parameters get `dtype`; buffers, which hold rotary frequencies in float32, keep theirs.
    """
    shrink = quantizer(quantize, device) if quantize else None
    for layer_name, layer in model.named_modules():
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(device, dtype)
        for name, buffer in layer.named_buffers(recurse=False):
            layer.register_buffer(name, buffer.to(device), persistent=name not in layer._non_persistent_buffers_set)
        if shrink and isinstance(layer, nn.Linear) and shrinks(layer_name):
            shrink(layer)


def memory_needed(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, quantize: Quantization | None = None) -> int:
    """Bytes that the weights take, from the names and shapes of a checkpoint's tensors."""
    total = 0.0
    for name, shape in shapes.items():
        size = BYTES_PER_WEIGHT[quantize] if quantize is not None and shrinks(name) else dtype.itemsize
        total += torch.Size(shape).numel() * size
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
