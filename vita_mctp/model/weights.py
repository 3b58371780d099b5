"""Looks at the safetensors files of a checkpoint folder before a model is built from them. Only headers are read."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from vita_mctp.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PROBLEMS = {
    "missing_keys": ("lacks", "the config wants it (new MCTP blocks are made by load_model(num_mctp_blocks=...))"),
    "unexpected_keys": ("holds", "the config describes no such tensor"),
}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def verify_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a checkpoint folder, after checking that all of its files are whole.

    Raises:
        CheckpointError: no safetensors file, a shard missing, a tensor that the index places elsewhere, or a file cut
            short; the message names the file and the tensor.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is no checkpoint folder: it has no config.json")
    if (folder / INDEX_FILE).is_file():
        return _verify_shards(folder)
    if not (folder / SINGLE_FILE).is_file():
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        hint = f"; {pickled[0]} is pickled and is never loaded: convert it to safetensors" if pickled else ""
        raise CheckpointError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    return read_shapes(folder / SINGLE_FILE)


def _verify_shards(folder: Path) -> dict[str, tuple[int, ...]]:
    index = _read_json((folder / INDEX_FILE).read_bytes(), folder / INDEX_FILE)
    placed = index.get("weight_map")
    if not isinstance(placed, dict):
        raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map: download it again")
    stored: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(placed.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX_FILE} names {name}, which is not a file of the same folder")
        shapes = read_shapes(folder / name)
        wanted = {tensor for tensor, file in placed.items() if file == name}
        for tensor in sorted(wanted ^ set(shapes)):
            fault = "lacks" if tensor in wanted else "holds, against the index,"
            raise CheckpointError(f"{folder / name} {fault} {tensor}: index and shards are not of one checkpoint")
        stored |= shapes
    return stored


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a safetensors file (8 bytes header length, JSON header, data).

    Raises:
        CheckpointError: the file is missing, is not safetensors, or ends before one of its tensors does.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: download the whole checkpoint")
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise CheckpointError(f"{file} ({size} bytes) is cut short or not a safetensors file: download it again")
        header = _read_json(stream.read(length), file)
    header.pop("__metadata__", None)
    for tensor, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if 8 + length + entry["data_offsets"][1] > size:
            raise CheckpointError(f"{file} ({size} bytes) is cut short within {tensor}: download it again")
    return {tensor: tuple(entry["shape"]) for tensor, entry in header.items()}


def _read_json(text: bytes, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}): download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged (no JSON object): download it again")
    return content


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' loading report and progress bar, since the report becomes one error here."""
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
