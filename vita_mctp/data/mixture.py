"""Mixtures of data sets: how much of each an epoch holds, in which order, from any position on.

A mixture file:

    seed: 42
    sets:
      - {name: librispeech, path: asr/librispeech, ratio: 1.0}
      - {name: voice_assistant, path: qa/voice_assistant, ratio: 2.0}

`ratio` is the sampling ratio of the VITA-Audio paper's Table 2: how many times an epoch goes through the set. An epoch
that takes a part only is followed by one that takes the next part: nothing returns before its whole set has been seen.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from vita_mctp.errors import ConfigError
from vita_mctp.schema import Schema
from vita_mctp.yaml_file import read_yaml

MAX_RATIO = 1e6
_ROUNDS = 6
_MASK = (1 << 64) - 1


_Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


class MixtureSet(Schema):
    """One data set of a mixture; `path` is relative to the data root, by default the name."""

    name: _Text
    path: _Text
    ratio: float = Field(1.0, ge=0, le=MAX_RATIO)

    @model_validator(mode="before")
    @classmethod
    def _path_of_the_name(cls, values: Any) -> Any:
        return {"path": values["name"], **values} if isinstance(values, dict) and "name" in values else values


class Mixture(Schema):
    """Named sets with sampling ratios, and the seed of their order."""

    sets: tuple[MixtureSet, ...]
    seed: int = Field(0, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.sets]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"sets: got {names}; wanted at least one set, each name once")
        return self

    @classmethod
    def from_file(cls, path: str | Path) -> Mixture:
        """Read a YAML mixture; ConfigError for a file that cannot be read, an unknown key or a wrong value."""
        return cls.parse(read_yaml(Path(path)), str(path))


@dataclass(frozen=True)
class Draw:
    """Sample number `index` of the set called `name`."""

    name: str
    index: int


class MixtureSampler:
    """The endless order in which a mixture's samples are drawn. Position p always gives the same draw.

    A position is the whole state: whoever resumes goes on from the last one.
    """

    def __init__(self, mixture: Mixture, sizes: Mapping[str, int]) -> None:
        """sizes: number of samples of each set, by name. ConfigError for a set without a size or an empty epoch."""
        missing = [each.name for each in mixture.sets if sizes.get(each.name, 0) < 1 and each.ratio > 0]
        if missing:
            raise ConfigError(f"the mixture draws from {missing}, which have no samples; known are {sorted(sizes)}")
        drawn = [each for each in mixture.sets if each.ratio > 0]
        self._seed = mixture.seed
        self._names = [each.name for each in drawn]
        self._sizes = [sizes[each.name] for each in drawn]
        self._counts = [max(1, round(each.ratio * sizes[each.name])) for each in drawn]
        self._ends = list(accumulate(self._counts))
        if not drawn:
            raise ConfigError("every set of the mixture has the sampling ratio 0; raise one")

    @property
    def epoch_size(self) -> int:
        """Draws in one epoch."""
        return self._ends[-1]

    def draw(self, position: int) -> Draw:
        """What stands at `position` >= 0 of the order."""
        epoch, within = divmod(position, self.epoch_size)
        slot = _shuffled(self.epoch_size, (self._seed, 0, epoch))[within]
        number = bisect_right(self._ends, slot)
        count, size = self._counts[number], self._sizes[number]
        drawn = epoch * count + slot - (self._ends[number] - count)
        turn, index = divmod(drawn, size)
        return Draw(self._names[number], _shuffled(size, (self._seed, 1 + number, turn))[index])


@lru_cache(maxsize=1024)
def _shuffled(size: int, key: tuple[int, ...]) -> ShuffledRange:
    return ShuffledRange(size, key)


class ShuffledRange:
    """A permutation of range(size) that depends on `key` alone, never laid out: it takes no memory, however large.

    A balanced Feistel network over the smallest even number of bits that holds `size` is a bijection; walking its cycle
    until the value is below `size` makes it one of [0, size) (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002).
    """

    def __init__(self, size: int, key: tuple[int, ...]) -> None:
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(repr((size, *key)).encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(_ROUNDS)]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._size:
            raise IndexError(f"position {index} of {self._size}")
        value = self._encrypt(index)
        while value >= self._size:  # at most 3 of 4 values lie outside, so this ends soon
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        half, mask = self._half, (1 << self._half) - 1
        left, right = value >> half, value & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << half | right


def _mix(value: int) -> int:
    """The finaliser of splitmix64."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
