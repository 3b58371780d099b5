"""A mixture of sample pools as packed batches: deterministic from a seed, resumable, nothing repeated within an epoch.

Samples come in chunks: which samples a chunk holds depends on the seed and on how often each pool was drawn from before it. A
chunk is packed and its rows are shuffled, so that a position is a few numbers and not a buffer of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml

from vita_mctp.data.packing import PackedRow, PackingReport, pack
from vita_mctp.errors import ConfigError
from vita_mctp.text.chat import Sample
from vita_mctp.training.trainer import Batch
from vita_mctp.types import IntArray

CHUNK = 2048
"""Samples that are packed and shuffled together."""


class Pool(Protocol):
    """Samples of one kind. `epoch` counts how often the pool was gone through; a sample may vary with it."""

    def __len__(self) -> int: ...

    def sample(self, item: int, epoch: int) -> Sample: ...


@dataclass(frozen=True)
class MixtureFile:
    """Shares by pool name (by number of samples, any positive scale), and the answers' interleaving ratio."""

    pools: Mapping[str, float]
    ratio: tuple[int, ...]


def load_mixture(path: Path, known: Sequence[str]) -> MixtureFile:
    """Read a mixture. Raises ConfigError naming what is unknown, missing or not a positive number."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the mixture {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or set(values) != {"ratio", "pools"}:
        raise ConfigError(f"{path}: wanted exactly the keys ratio and pools, got {values!r:.80}")
    pools, ratio = values["pools"], values["ratio"]
    if not isinstance(pools, dict) or not pools or not set(pools) <= set(known):
        raise ConfigError(f"{path}: pools must name some of {', '.join(known)}, got {pools!r}")
    if not all(isinstance(share, int | float) and share > 0 for share in pools.values()):
        raise ConfigError(f"{path}: every pool wants a positive share, got {pools}")
    if not isinstance(ratio, list) or not all(type(count) is int for count in ratio):
        raise ConfigError(f"{path}: ratio must be a list of whole numbers, got {ratio!r}")
    return MixtureFile(pools, tuple(ratio))


class MixtureSource:
    """Packed batches drawn from pools by their shares (`BatchSource`)."""

    def __init__(
        self,
        pools: Mapping[str, tuple[Pool, float]],
        *,
        rows: int,
        row_length: int,
        pad_id: int,
        seed: int,
        chunk: int = CHUNK,
    ) -> None:
        empty = [name for name, (pool, _) in pools.items() if len(pool) == 0]
        if empty or not pools:
            raise ConfigError(f"nothing to train on in {', '.join(empty) or 'the mixture'}; build corpus and tokens first")
        self._pools = [pool for pool, _ in pools.values()]
        shares = np.array([share for _, share in pools.values()], dtype=np.float64)
        self._shares = shares / shares.sum()
        self._rows, self._row_length, self._pad_id, self._seed, self._chunk = rows, row_length, pad_id, seed, chunk
        self._orders: dict[int, tuple[int, IntArray]] = {}
        self.report = PackingReport()
        self._open(0, [0] * len(self._pools))

    def next_batch(self) -> Batch:
        """The next rows, each padded to `row_length`: as many as asked for, but for a few more or less in odd chunks."""
        if self._used == len(self._batches):
            self._open(self._chunk_index + 1, self._drawn_after)
        rows = self._batches[self._used]
        self._used += 1
        return _batch([row.padded(self._row_length, self._pad_id) for row in rows])

    def state(self) -> dict[str, Any]:
        return {"chunk": self._chunk_index, "drawn": self._drawn, "used": self._used}

    def restore(self, state: dict[str, Any]) -> None:
        if len(state["drawn"]) != len(self._pools):
            raise ConfigError(f"the checkpoint's position is in {len(state['drawn'])} pools, the mixture has {len(self._pools)}")
        self._open(state["chunk"], state["drawn"])
        self._used = state["used"]

    def _open(self, chunk: int, drawn: Sequence[int]) -> None:
        """Draw and pack a chunk, after `drawn[i]` samples of pool i in all earlier ones."""
        self._chunk_index, self._drawn, self._used = chunk, list(drawn), 0
        rng = np.random.default_rng((self._seed, chunk))
        wanted = np.bincount(rng.choice(len(self._pools), self._chunk, p=self._shares), minlength=len(self._pools))
        samples = [sample for pool, count in enumerate(wanted) for sample in self._draw(pool, drawn[pool], int(count))]
        self._drawn_after = [before + int(count) for before, count in zip(drawn, wanted, strict=True)]
        rows = list(pack(samples, self._row_length, buffer=len(samples) + 1, report=self.report))
        order = rng.permutation(len(rows))
        parts = np.array_split(order, max(1, round(len(rows) / self._rows)))
        self._batches = [[rows[index] for index in part] for part in parts]

    def _draw(self, number: int, drawn: int, count: int) -> Iterator[Sample]:
        """`count` samples of a pool from its `drawn`-th on, each epoch in an order of its own."""
        pool = self._pools[number]
        for position in range(drawn, drawn + count):
            epoch, place = divmod(position, len(pool))
            yield pool.sample(int(self._order(number, epoch)[place]), epoch)

    def _order(self, number: int, epoch: int) -> IntArray:
        cached = self._orders.get(number)
        if cached is None or cached[0] != epoch:
            rng = np.random.default_rng((self._seed, number, epoch))
            self._orders[number] = cached = (epoch, rng.permutation(len(self._pools[number])))
        return cached[1]


def _batch(rows: Sequence[PackedRow]) -> Batch:
    stacked = (np.stack([getattr(row, name) for row in rows]) for name in ("input_ids", "labels", "position_ids"))
    return Batch(*(torch.from_numpy(array) for array in stacked))
