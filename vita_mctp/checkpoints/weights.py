"""The weight files of a checkpoint folder: are they whole, what do they hold, and in how many shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors import SafetensorError, safe_open

from vita_mctp.arrays import Shapes, check_shapes, load_arrays
from vita_mctp.errors import CheckpointError, OutputError
from vita_mctp.types import FloatArray

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def verify_folder(folder: Path) -> None:
    """Checks that a folder holds a whole checkpoint in safetensors, in one file or in shards with an index.

    Raises:
        CheckpointError: no safetensors file, a shard missing or cut short, or a tensor that index or shards lack; the
            message names the file and the tensor.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint folder: it has no config.json")
    is_single = (folder / SINGLE_FILE).is_file()
    if not is_single and not (folder / INDEX_FILE).is_file():
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        hint = f"; {pickled[0]} is pickled and is never loaded: convert it to safetensors" if pickled else ""
        raise CheckpointError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    held = _stored(folder)
    if not is_single and (lone := sorted(held.keys() ^ _read_index(folder / INDEX_FILE).keys())):
        where = "a shard" if lone[0] in held else INDEX_FILE
        raise CheckpointError(f"{folder}: only {where} holds {lone[0]}; wanted files of one checkpoint: get them again")


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files of a folder that `verify_folder` has passed."""
    single = folder / SINGLE_FILE
    if single.is_file():
        return [single]
    return [folder / shard for shard in sorted(set(_read_index(folder / INDEX_FILE).values()))]


def stored_dtype(folder: Path) -> torch.dtype:
    """The floating-point type of a checkpoint's tensors; the widest, should they differ.

    Raises:
        CheckpointError: none of them is of such a type.
    """
    import torch

    found = {dtype for _, dtype in _stored(folder).values()}
    types = [getattr(torch, _DTYPES[name]) for name in sorted(found & _DTYPES.keys())]
    if not types:
        raise CheckpointError(f"{folder} holds {', '.join(sorted(found))}; one of {', '.join(_DTYPES)} is wanted")
    return reduce(torch.promote_types, types)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the safetensors files of a folder that `verify_folder` has passed."""
    return {name: shape for name, (shape, _) in _stored(folder).items()}


def read_weights(folder: Path, needed: Shapes) -> dict[str, FloatArray]:
    """The tensors of a folder as float32, exactly those needed.

    Raises:
        CheckpointError: as `verify_folder`; or a tensor is missing, surplus or of another shape.
    """
    verify_folder(folder)
    check_shapes(tensor_shapes(folder), needed, folder, "download it again")
    return {name: array for file in safetensors_files(folder) for name, array in load_arrays(file).items()}


def _stored(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor, of which nothing but the files' headers is read.

    Raises CheckpointError for a file that is not whole.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in safetensors_files(folder):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: download the whole checkpoint")
        try:
            with safe_open(file, framework="np") as tensors:
                views = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                found |= {name: (tuple(view.get_shape()), view.get_dtype()) for name, view in views.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is cut short or damaged ({error}): download it again") from error
    return found


def _read_index(file: Path) -> dict[str, str]:
    """The shard that holds each tensor."""
    try:
        files = json.loads(file.read_bytes())["weight_map"]
        names = {Path(name).name for name in files.values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}): download it again") from error
    if not files:
        raise CheckpointError(f"{file} names no tensor; wanted each with its file: download it again")
    for name in set(files.values()) - names:
        raise CheckpointError(f"{file} names {name}, which is not a file of the same folder")
    return cast("dict[str, str]", files)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when all went well, and is gone when not.

    Raises:
        OutputError: `target` holds something already, or the disk refuses.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target} is there already; give the name of a new folder")
    target = target.absolute()  # "." has no name
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.replace(target)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
        raise OutputError(f"cannot write {target}: {error}; free some room or give another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def copy_others(source: Path, target: Path, chosen: Callable[[Path], bool]) -> None:
    """Copies the files and folders of `source` that are chosen and that `target` has not."""
    for path in sorted(source.iterdir()):
        if not chosen(path) or (target / path.name).exists() or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
