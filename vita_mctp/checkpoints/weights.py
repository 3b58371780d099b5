"""The weight files of a checkpoint folder: are they whole, what do they hold, and in how many shards."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_mctp.errors import CheckpointError, ConfigError, OutputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_LONGEST_HEADER = 100_000_000
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB)?", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def verify_folder(folder: Path) -> None:
    """Checks that a folder holds a whole checkpoint in safetensors, in one file or in shards with an index.

    Raises:
        CheckpointError: no safetensors file, a shard missing, a tensor that the index puts elsewhere, or a file cut
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
    found = {tensor.get_dtype() for _, tensor in _stored(folder)}
    types = [_DTYPES[name] for name in sorted(found & _DTYPES.keys())]
    if not types:
        raise CheckpointError(f"{folder} holds {', '.join(sorted(found))}; one of {', '.join(_DTYPES)} is wanted")
    return reduce(torch.promote_types, types)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the safetensors files of a folder that `verify_folder` has passed."""
    return {name: tuple(tensor.get_shape()) for name, tensor in _stored(folder)}


def _stored(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor's name, and safetensors' view of it, of which nothing but the header is read."""
    for file in safetensors_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_slice(name)


def _verify_shards(folder: Path) -> None:
    files = _read_index(folder / INDEX_FILE)
    for shard in sorted(set(files.values())):
        described = {tensor for tensor, file in files.items() if file == shard}
        for tensor in sorted(described ^ _tensor_names(folder / shard)):
            fault = "lacks" if tensor in described else "holds, against the index,"
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
        files = json.loads(file.read_bytes())["weight_map"]
        names = {Path(name).name for name in files.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}): download it again") from error
    for name in set(files.values()) - names:
        raise CheckpointError(f"{file} names {name}, which is not a file of the same folder")
    return cast("dict[str, str]", files)


def parse_size(text: str) -> int:
    """Bytes in "5GB", "300MB" or "4096". Raises ConfigError for anything else and for 0."""
    match = _SIZE.fullmatch(text.strip())
    size = round(float(match.group(1)) * _UNITS[(match.group(2) or "B").upper()]) if match else 0
    if size < 1:
        raise ConfigError(f"{text!r} is no size; give one such as 5GB or 300MB")
    return size


def reshard(source: Path, target: Path, max_shard_size: int) -> list[Path]:
    """Copies a checkpoint folder with its tensors in shards of at most `max_shard_size` bytes, in one if they fit.

    A tensor larger than that gets a shard of its own. One shard is in memory at a time; other files are copied.

    Returns:
        The weight files written, in order.

    Raises:
        CheckpointError: `source` is no whole checkpoint.
        OutputError: `target` has files already, or cannot be written.
    """
    verify_folder(source)
    tensors: dict[str, Tensor] = {}
    for file in safetensors_files(source):
        tensors |= load_file(file)  # mapped from the file, not read
    shards = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    with new_folder(target) as unfinished:
        for shard, names in shards.filename_to_tensors.items():
            save_file({name: tensors[name] for name in names}, unfinished / shard, metadata={"format": "pt"})
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (unfinished / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        copy_others(source, unfinished, lambda path: path.suffix != ".safetensors" and path.name != INDEX_FILE)
    return [target / shard for shard in sorted(shards.filename_to_tensors)]


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when all went well, and is gone when not.

    Raises:
        OutputError: `target` holds something already, or the disk refuses.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target} is there already; give the name of a new folder")
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
