"""Speech units of VocalNet's data: npy files that hold a pickled dict, read without running anything in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from vita_mctp.errors import DataError
from vita_mctp.types import IntArray

_ALLOWED = {
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
"""All that a dict of arrays is made of."""
_FORM = "wanted an integer array, or a dict with one under speech_token"


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_units(path: Path, num_units: int) -> IntArray:
    """The units (L,) of an answer, each one that follows its like left out, as the released models were trained.

    Raises DataError for a file that cannot be read, holds something else, or has a unit outside [0, num_units).
    """
    try:
        loaded = _load(path)
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError) as error:
        raise DataError(f"{path} has no units ({error}); {_FORM}") from None
    found = loaded.get("speech_token") if isinstance(loaded, dict) else loaded
    units = np.asarray(found)
    if units.dtype.kind not in "iu" or units.ndim > 2 or not units.size:
        raise DataError(f"{path} holds {units.dtype} of {units.shape}; {_FORM}")
    flat = units.reshape(-1).astype(np.int64)
    if flat.min() < 0 or flat.max() >= num_units:
        raise DataError(f"{path} has units {flat.min()}..{flat.max()}; wanted them in [0, {num_units})")
    return without_repeats(flat)


def without_repeats(units: IntArray) -> IntArray:
    """(L,) -> (l,)."""
    kept: IntArray = units[np.append(True, units[1:] != units[:-1])]
    return kept


def _load(path: Path) -> Any:
    content = io.BytesIO(path.read_bytes())
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    if dtype.kind != "O":
        return np.load(path, allow_pickle=False)
    loaded = _PlainUnpickler(content).load()
    return loaded.item() if shape == () else loaded
