"""Weights as numpy arrays, read from safetensors without torch, and whether they are those that are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from vita_mctp.errors import CheckpointError
from vita_mctp.types import FloatArray

Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = ("F32", "F16", "BF16", "F64")


def read_arrays(path: Path, needed: Shapes, remedy: str) -> dict[str, FloatArray]:
    """The tensors of a safetensors file as float32, exactly those needed.

    Raises CheckpointError: the file is missing or cut short, or a tensor is missing, surplus, of another shape or not
    finite.
    """
    try:
        arrays = load_arrays(path)
    except (FileNotFoundError, PermissionError) as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; {remedy}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut short or damaged ({type(error).__name__}): {remedy}") from None
    check_shapes({name: array.shape for name, array in arrays.items()}, needed, path, remedy)
    check_finite(arrays, path, remedy)
    return arrays


def load_arrays(path: Path) -> dict[str, FloatArray]:
    """Every tensor of a safetensors file as float32. Raises what safetensors does, CheckpointError for other types."""
    with safe_open(path, framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if (kind := tensors.get_slice(name).get_dtype()) not in _FLOATS:
                raise CheckpointError(f"{path}: {name} is {kind}; wanted one of {', '.join(_FLOATS)}: convert it")
        return {name: tensors.get_tensor(name).astype(np.float32) for name in tensors.keys()}  # noqa: SIM118


def check_shapes(found: Shapes, needed: Shapes, path: Path, remedy: str, optional: Shapes | None = None) -> None:
    """Raises CheckpointError, which names the first tensor that is missing, surplus or of another shape."""
    known = {**needed, **(optional or {})}
    if missing := [name for name in needed if name not in found]:
        raise CheckpointError(f"{path} lacks {_first(missing)}, which its configuration wants: {remedy}")
    if surplus := [name for name in found if name not in known]:
        raise CheckpointError(f"{path} holds {_first(surplus)}, which its configuration does not describe: {remedy}")
    for name, shape in found.items():
        if shape != known[name]:
            raise CheckpointError(f"{path}: {name} has shape {shape}; its configuration wants {known[name]}: {remedy}")


def check_finite(arrays: Mapping[str, FloatArray], path: Path, remedy: str) -> None:
    """Raises CheckpointError, which names the first tensor with a value that is not finite."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; {remedy}")


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
