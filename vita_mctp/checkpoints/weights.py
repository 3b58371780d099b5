"""Looks at the safetensors files of a checkpoint folder before a model is built from them. Only headers are read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from vita_mctp.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PROBLEMS = {
    "missing_keys": ("lacks", "the config wants it (new MCTP blocks are made by load_model(num_mctp_blocks=...))"),
    "unexpected_keys": ("holds", "the config describes no such tensor"),
}
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_LONGEST_HEADER = 100_000_000
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def verify_folder(folder: Path) -> None:
    """Checks that a folder holds a whole checkpoint in safetensors, in one file or in shards with an index.

    Raises:
        CheckpointError: no safetensors file, a shard missing, a tensor that the index places elsewhere, or a file cut
            short; the message names the file and the tensor.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint folder: it has no config.json")
    if (folder / SINGLE_FILE).is_file():
        _tensor_names(folder / SINGLE_FILE)
    elif (folder / INDEX_FILE).is_file():
        _verify_shards(folder)
    else:
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        hint = f"; {pickled[0]} is pickled and is never loaded: convert it to safetensors" if pickled else ""
        raise CheckpointError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")


def model_type_of(folder: Path) -> str:
    """What the folder's config.json says that it is.

    Raises:
        CheckpointError: it says nothing that can be read.
    """
    file = folder / "config.json"
    try:
        return str(json.loads(file.read_bytes())["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}): download it again") from error


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
    found: set[str] = set()
    for file in safetensors_files(folder):
        with safe_open(file, framework="pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    types = [_DTYPES[name] for name in sorted(found & _DTYPES.keys())]
    if not types:
        raise CheckpointError(f"{folder} holds {', '.join(sorted(found))}; one of {', '.join(_DTYPES)} is wanted")
    return reduce(torch.promote_types, types)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the safetensors files of a folder that `verify_folder` has passed."""
    shapes: dict[str, tuple[int, ...]] = {}
    single = folder / SINGLE_FILE
    for file in (
        [single] if single.is_file() else {folder / shard for shard in _read_index(folder / INDEX_FILE).values()}
    ):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def _verify_shards(folder: Path) -> None:
    placed = _read_index(folder / INDEX_FILE)
    for shard in sorted(set(placed.values())):
        wanted = {tensor for tensor, file in placed.items() if file == shard}
        for tensor in sorted(wanted ^ _tensor_names(folder / shard)):
            fault = "lacks" if tensor in wanted else "holds, against the index,"
            raise CheckpointError(f"{folder / shard} {fault} {tensor}: index and shards are not of one checkpoint")


def _tensor_names(file: Path) -> set[str]:
    """The tensors of a safetensors file, all of them whole."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: download the whole checkpoint")
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        fault = f"cut short{_where_cut(file)} or damaged ({error})"
        raise CheckpointError(f"{file} is {fault}: download it again") from error


def _where_cut(file: Path) -> str:
    """Names the first tensor that ends beyond its safetensors file (8 bytes of header size, JSON header, data)."""
    with file.open("rb") as stream, contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        start = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(start - 8, _LONGEST_HEADER)))
        ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        cut = [name for name in sorted(ends, key=lambda name: ends[name]) if start + ends[name] > file.stat().st_size]
        return f" within {cut[0]}" if cut else ""
    return ""


def _read_index(file: Path) -> dict[str, str]:
    """The shard that holds each tensor."""
    try:
        placed = json.loads(file.read_bytes())["weight_map"]
        names = {Path(name).name for name in placed.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}): download it again") from error
    for name in set(placed.values()) - names:
        raise CheckpointError(f"{file} names {name}, which is not a file of the same folder")
    return cast("dict[str, str]", placed)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars, and its loading report: here that becomes one error."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


def refuse_incomplete(name: str | Path, loaded: Mapping[str, Any]) -> None:
    """Turns transformers' loading report into an error unless checkpoint and model hold the same tensors.

    Raises:
        CheckpointError: names the first tensor that is missing, surplus or of another shape, and counts the others.
    """
    for tensor, stored, wanted in sorted(loaded["mismatched_keys"]):
        raise CheckpointError(f"{name}: {tensor} has shape {tuple(stored)}, the config wants {tuple(wanted)}")
    for problem, (verb, reason) in _PROBLEMS.items():
        tensors = sorted(loaded[problem])
        if tensors:
            others = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise CheckpointError(f"{name} {verb} {tensors[0]}{others}: {reason}")
