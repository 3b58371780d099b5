"""A mixture of sample pools as packed batches, the same ones from any position on.

Samples are drawn in chunks. A chunk is packed as a whole and its rows are shuffled, so that a position is two numbers
and not a buffer of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vita_mctp.data.mixture import Mixture, MixtureSampler
from vita_mctp.data.packing import PackedRow, PackingReport, pack
from vita_mctp.text.chat import Sample
from vita_mctp.training.trainer import Batch

CHUNK = 2048
"""Samples that are packed and shuffled together."""


@dataclass(frozen=True)
class Pool:
    """`size` samples of one kind. make(item, variant): sample number `item`, rendered by any `variant` >= 0."""

    size: int
    make: Callable[[int, int], Sample]


class MixtureSource:
    """Packed batches drawn from pools by a mixture (`BatchSource`)."""

    def __init__(
        self,
        mixture: Mixture,
        pools: Mapping[str, Pool],
        *,
        rows: int,
        row_length: int,
        pad_id: int,
        chunk: int = CHUNK,
    ) -> None:
        """rows, row_length: size of a batch. Raises ConfigError when a pool of the mixture is missing or empty."""
        self._pools = pools
        self._sampler = MixtureSampler(mixture, {name: pool.size for name, pool in pools.items()})
        self._seed = mixture.seed
        self._rows, self._row_length, self._pad_id, self._chunk = rows, row_length, pad_id, chunk
        self.report = PackingReport()
        self._open(0)

    def next_batch(self) -> Batch:
        """The next rows, each padded to `row_length`; the rows of a chunk are dealt evenly, so about `rows` of them."""
        if self._used == len(self._batches):
            self._open(self._number + 1)
        rows = self._batches[self._used]
        self._used += 1
        return _batch([row.padded(self._row_length, self._pad_id) for row in rows])

    def state(self) -> dict[str, Any]:
        return {"chunk": self._number, "used": self._used}

    def restore(self, state: dict[str, Any]) -> None:
        self._open(state["chunk"])
        self._used = state["used"]

    def _open(self, number: int) -> None:
        self._number, self._used = number, 0
        start = number * self._chunk
        draws = enumerate(self._sampler.draws(start, start + self._chunk), start)
        # An item comes back at a position that has nothing to do with its first one, so its variants alternate freely.
        samples = [self._pools[draw.name].make(draw.index, position) for position, draw in draws]
        rows = list(pack(samples, self._row_length, buffer=len(samples) + 1, report=self.report))
        order = np.random.default_rng((self._seed, number)).permutation(len(rows))
        parts = np.array_split(order, max(1, round(len(rows) / self._rows)))
        self._batches = [[rows[index] for index in part] for part in parts]


def _batch(rows: Sequence[PackedRow]) -> Batch:
    stacked = (np.stack([getattr(row, name) for row in rows]) for name in ("input_ids", "labels", "position_ids"))
    return Batch(*(torch.from_numpy(array) for array in stacked))
