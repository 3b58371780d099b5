"""Merges or splits the safetensors files of a checkpoint, one tensor in memory at a time.

A shard is written as safetensors defines it: 8 bytes of header size, a JSON header with each tensor's type, shape and
place, then the tensors' bytes, which are copied as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from vita_mctp.checkpoints.weights import INDEX_FILE, SINGLE_FILE, safetensors_files, verify_folder
from vita_mctp.errors import CheckpointError, ConfigError, OutputError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB)?", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_HEADER_SIZE = 8
_ALIGNMENT = 8
_WEIGHTS = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class _Stored:
    """Where a tensor's bytes lie: `size` of them from `offset` on in `file`."""

    name: str
    dtype: str
    shape: list[int]
    file: Path
    offset: int
    size: int


def parse_size(text: str) -> int:
    """Bytes in "5GB", "300MB" or "4096". Raises ConfigError for anything else and for 0."""
    match = _SIZE.fullmatch(text.strip())
    size = round(float(match.group(1)) * _UNITS[(match.group(2) or "B").upper()]) if match else 0
    if size < 1:
        raise ConfigError(f"{text!r} is no size; give one such as 5GB or 300MB")
    return size


def reshard(source: Path, target: Path, max_shard_size: int) -> list[Path]:
    """Copies a checkpoint folder with its tensors in shards of at most `max_shard_size` bytes, in one if they fit.

    A tensor larger than that gets a shard of its own. Every other file of the folder is copied as it is.

    Returns:
        The weight files written, in order.

    Raises:
        CheckpointError: `source` is no whole checkpoint.
        OutputError: `target` has files already, or cannot be written.
    """
    verify_folder(source)
    shards = _fill([tensor for file in safetensors_files(source) for tensor in _tensors(file)], max_shard_size)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    with new_folder(target) as unfinished:
        if len(shards) == 1:
            names = [SINGLE_FILE]
        for name, tensors in zip(names, shards, strict=True):
            _write_shard(unfinished / name, tensors)
        if len(shards) > 1:
            _write_index(unfinished / INDEX_FILE, dict(zip(names, shards, strict=True)))
        copy_others(source, unfinished, lambda path: not path.name.endswith(_WEIGHTS))
    return [target / name for name in names]


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


def copy_others(source: Path, target: Path, wanted: Callable[[Path], bool]) -> None:
    """Copies the files and folders of `source` that are wanted and that `target` has not."""
    for path in sorted(source.iterdir()):
        if not wanted(path) or (target / path.name).exists() or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _fill(tensors: list[_Stored], limit: int) -> list[list[_Stored]]:
    shards: list[list[_Stored]] = []
    room = 0
    for tensor in sorted(tensors, key=lambda tensor: _natural(tensor.name)):
        if not shards or tensor.size > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.size
    return shards


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _tensors(file: Path) -> list[_Stored]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_HEADER_SIZE), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    start = _HEADER_SIZE + length
    return [
        _Stored(name, entry["dtype"], entry["shape"], file, start + first, end - first)
        for name, entry in header.items()
        if name != "__metadata__"
        for first, end in [entry["data_offsets"]]
    ]


def _write_shard(file: Path, tensors: list[_Stored]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(_HEADER_SIZE, "little") + text)
        for tensor in tensors:
            with tensor.file.open("rb") as stream:
                stream.seek(tensor.offset)
                _copy_bytes(stream, out, tensor.size)
        out.flush()
        os.fsync(out.fileno())


def _copy_bytes(source: BinaryIO, target: BinaryIO, size: int, piece: int = 1 << 24) -> None:
    while size:
        read = source.read(min(size, piece))
        if not read:
            raise CheckpointError(f"{source.name} changed while it was copied: try again")
        target.write(read)
        size -= len(read)


def _write_index(file: Path, shards: dict[str, list[_Stored]]) -> None:
    total = sum(tensor.size for tensors in shards.values() for tensor in tensors)
    places = {tensor.name: shard for shard, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
