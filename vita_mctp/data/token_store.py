"""Tokenised samples on disk: a folder of safetensors shards and an index written last.

A shard holds N samples end to end: `ids` int32 (T,), `trained` bool (T,), `offsets` int64 (N + 1,). A position's label
is its id where `trained`, else IGNORED. Shards are mapped, not loaded; only the samples asked for are read.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vita_mctp.errors import DataError, OutputError
from vita_mctp.text.chat import IGNORED, Sample

INDEX_FILE = "index.json"
SAMPLES_PER_SHARD = 20_000


def write_token_store(
    folder: str | Path, samples: Iterable[Sample], samples_per_shard: int = SAMPLES_PER_SHARD
) -> TokenStore:
    """Write `samples` to `folder` and open it. Files appear whole or not at all; without its index there is no store.

    Raises DataError for a sample with audio features, OutputError if the folder cannot be written.
    """
    folder = Path(folder)
    shards: list[dict[str, Any]] = []
    remaining = iter(samples)
    _remove_index(folder)
    while chunk := list(islice(remaining, samples_per_shard)):
        name = f"shard-{len(shards):05d}.safetensors"
        _write_whole(folder / name, _shard_bytes(chunk))
        shards.append({"file": name, "samples": len(chunk), "tokens": sum(map(len, chunk))})
    _write_whole(folder / INDEX_FILE, json.dumps({"shards": shards}, indent=1).encode())
    return TokenStore(folder)


class TokenStore:
    """Read access to a written folder; a sequence of samples."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._files, counts, self.tokens = _read_index(self._folder / INDEX_FILE)
        self._ends = list(accumulate(counts))
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        within = index - (self._ends[shard - 1] if shard else 0)
        try:
            return self._read(shard, within)
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"shard {self._folder / self._files[shard]} is damaged ({error}); tokenise again"
            ) from error

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def _read(self, shard: int, within: int) -> Sample:
        if shard not in self._open:
            file = safe_open(str(self._folder / self._files[shard]), framework="np")
            self._open[shard] = (file.get_tensor("offsets"), file.get_slice("ids"), file.get_slice("trained"))
        offsets, ids, trained = self._open[shard]
        span = slice(int(offsets[within]), int(offsets[within + 1]))
        labels = np.where(trained[span], ids[span], IGNORED)
        return Sample(tuple(ids[span].tolist()), tuple(labels.tolist()))


def _shard_bytes(samples: list[Sample]) -> bytes:
    if any(sample.features for sample in samples):
        raise DataError(
            "a token store holds discrete samples; this one has audio features, store its recording instead"
        )
    ids = np.concatenate([np.asarray(sample.ids, dtype=np.int32) for sample in samples])
    labels = np.concatenate([np.asarray(sample.labels, dtype=np.int32) for sample in samples])
    if not np.array_equal(np.where(labels == IGNORED, ids, labels), ids):
        raise DataError("a token store wants labels that equal their ids or are ignored")
    offsets = np.array([0, *accumulate(map(len, samples))], dtype=np.int64)
    return save({"ids": ids, "trained": labels != IGNORED, "offsets": offsets})


def _remove_index(folder: Path) -> None:
    """Make the folder, and undo the store that may be in it before its shards change."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}; free space or choose another folder")


def _read_index(path: Path) -> tuple[list[str], list[int], int]:
    """(shard files, samples in each, tokens in all)."""
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
        return [s["file"] for s in shards], [s["samples"] for s in shards], sum(s["tokens"] for s in shards)
    except OSError as error:
        raise DataError(f"{path.parent} holds no finished token store: {error.strerror}; write it first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no index of a token store ({error!r}); write the store again") from error
