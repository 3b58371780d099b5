"""What training reads: a mixture as an endless sequence of packed rows, the same one on any number of ranks.

    pools = open_pools(mixture, root, chat, ratios)   # below `root`, under each set's `path`, a store of `tokenize`
    stream = RowStream(mixture, pools, row_length=8192, rank=r, world_size=W, state=saved or None)
    for row in stream:      # rank r has rows r, r + W, r + 2 W, ... of the one global sequence
        ...
        saved = stream.state()   # small JSON values, equal on all ranks that have taken equally many rows

A state says how many rows all ranks together have taken, so it may be resumed on another number of ranks: nothing is
repeated or lost. Rows are unpadded (`PackedRow.padded`); samples stand one behind the other, and positions restart at
each, so that attention can be block-diagonal.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vita_mctp.data.mixture import Mixture, MixtureSampler
from vita_mctp.data.token_store import INDEX_FILE, TokenStore
from vita_mctp.data.units import UnitStore
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.models.registry import Chat
from vita_mctp.schema import Schema
from vita_mctp.text.chat import IGNORED, Clip, FeatureSpan, Sample, SpokenAnswer, in_a_rhythm
from vita_mctp.text.interleave import Ratio
from vita_mctp.types import IntArray

CHUNK = 2048
"""Samples that training packs and shuffles together; more fill rows better and lie further from their order."""


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Samples one behind the other. input_ids, labels, position_ids: int64 (T,); `ends[i]` is where sample i stops."""

    input_ids: IntArray
    labels: IntArray
    position_ids: IntArray
    ends: tuple[int, ...]
    features: tuple[FeatureSpan, ...] = ()
    spoken: tuple[SpokenAnswer, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    def padded(self, length: int, pad_id: int) -> PackedRow:
        """The row at `length`, padding being a segment of its own with no labels."""
        missing = length - len(self)
        if missing < 0:
            raise ConfigError(f"a row of {len(self)} tokens cannot be padded to {length}; pack with that length")
        if not missing:
            return self
        return replace(
            self,
            input_ids=np.concatenate([self.input_ids, np.full(missing, pad_id, dtype=np.int64)]),
            labels=np.concatenate([self.labels, np.full(missing, IGNORED, dtype=np.int64)]),
            position_ids=np.concatenate([self.position_ids, np.arange(missing, dtype=np.int64)]),
            ends=(*self.ends, length),
        )


@dataclass
class PackingReport:
    """Running counts of a packing."""

    samples: int = 0
    tokens: int = 0
    rows: int = 0
    over_long: int = 0
    """Samples longer than a row, left out."""
    longest: int = 0
    """Tokens of the longest sample met, left out or not."""

    def fill(self, max_length: int) -> float:
        """Fraction of the rows' positions that hold a token of a sample."""
        return self.tokens / (self.rows * max_length) if self.rows else 0.0

    def admit(self, sample: Sample, max_length: int) -> bool:
        """Whether the sample fits a row; one that does not is counted here and packed nowhere."""
        self.longest = max(self.longest, len(sample))
        self.over_long += len(sample) > max_length
        return len(sample) <= max_length

    def add_row(self, members: Sequence[Sample]) -> None:
        self.rows += 1
        self.samples += len(members)
        self.tokens += sum(map(len, members))


def join(samples: Sequence[Sample]) -> PackedRow:
    """The row of `samples` in their order, unpadded. Clips of features are numbered through the row."""
    ends = tuple(accumulate(map(len, samples)))
    placed = list(zip((0, *ends), samples, strict=False))
    spans = [(start, span) for start, sample in placed for span in sample.features]
    return PackedRow(
        input_ids=np.concatenate([np.asarray(sample.ids, dtype=np.int64) for sample in samples]),
        labels=np.concatenate([np.asarray(sample.labels, dtype=np.int64) for sample in samples]),
        position_ids=np.concatenate([np.arange(len(sample), dtype=np.int64) for sample in samples]),
        ends=ends,
        features=tuple(replace(span, clip=clip, start=at + span.start) for clip, (at, span) in enumerate(spans)),
        spoken=tuple(sample.spoken.moved(start) for start, sample in placed if sample.spoken is not None),
    )


def best_fit_decreasing(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Bins of indices into `lengths`: each, longest first, goes into the fullest bin with room for it.

    No length may exceed `max_length`. Bins and their members come back in order of arrival.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fullest = bisect_left(room, (length, 0))
        if fullest < len(room):
            free, number = room.pop(fullest)
            bins[number].append(index)
        else:
            free, number = max_length, len(bins)
            bins.append([index])
        insort(room, (free - length, number))
    return sorted(map(sorted, bins))


STREAMED = 0.5
"""Fraction of answers that a talker learns with the mask of a stream (VocalNet's authors toss a coin)."""


@dataclass(frozen=True)
class Pool:
    """`size` samples of one kind. make(item, variant): sample number `item`, rendered by any `variant` >= 0."""

    size: int
    make: Callable[[int, int], Sample]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows packed from the draws at `carried` positions and at the next ones from `position` on."""

    position: int
    carried: tuple[int, ...]
    """Positions of samples that the chunk before left over."""
    packed: PackingReport
    """Counts up to this chunk."""
    barren: int = 0
    """Draws before it, in a row, of which none fitted."""
    rows: tuple[tuple[Sample, ...], ...] = ()
    next: _Chunk | None = None
    """The one behind it, still without rows."""


_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _State(Schema):
    """Rows `used` of those packed from the draws `carried` and from `position` on."""

    order: str
    position: _Count
    carried: tuple[_Count, ...]
    used: _Count
    packed: dict[Literal["samples", "tokens", "rows", "over_long", "longest"], _Count]


class RowStream:
    """Packed rows of `rank`, from the beginning or from a state."""

    def __init__(
        self,
        mixture: Mixture,
        pools: Mapping[str, Pool],
        *,
        row_length: int,
        rank: int = 0,
        world_size: int = 1,
        chunk: int = CHUNK,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """pools: by the names of the mixture's sets. state: what `state()` gave, on any number of ranks.

        Raises ConfigError for a set without a pool, a rank that does not exist, or the state of another stream.
        """
        if row_length < 1 or chunk < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"a stream wants row_length and chunk of at least 1 and 0 <= rank < world_size; got row_length "
                f"{row_length}, chunk {chunk}, rank {rank}, world_size {world_size}"
            )
        sizes = {name: pool.size for name, pool in pools.items()}
        self._sampler = MixtureSampler(mixture, sizes)
        self._pools, self._seed = pools, mixture.seed
        self._row_length, self._size = row_length, chunk
        self._rank, self._world_size = rank, world_size
        self._order = _digest(mixture, sorted(sizes.items()), row_length, chunk)
        self._start, self._used = _read_state(state, self._order) if state else (_Chunk(0, (), PackingReport()), 0)
        self._open: deque[_Chunk] = deque()

    def __iter__(self) -> Iterator[PackedRow]:
        return self

    def __next__(self) -> PackedRow:
        members = self._row(self._used + self._rank)
        self._used += self._world_size
        return join(members)

    def state(self) -> dict[str, Any]:
        """Where all ranks are once each has taken as many rows as this one; JSON values of at most a few kB."""
        self._row(self._used)
        first = self._open[0]
        begins = {"position": first.position, "carried": list(first.carried), "used": self._used}
        return {"order": self._order, **begins, "packed": asdict(first.packed)}

    @property
    def report(self) -> PackingReport:
        """Counts of all rows packed so far, those of other ranks and of before a resumption included."""
        return self._last.packed

    @property
    def epoch_size(self) -> int:
        """Samples in one epoch of the mixture, over-long ones included."""
        return self._sampler.epoch_size

    @property
    def _last(self) -> _Chunk:
        """The chunk to open next."""
        following = self._open[-1].next if self._open else self._start
        assert following is not None
        return following

    def _row(self, index: int) -> tuple[Sample, ...]:
        """The row `index` >= used rows behind the first open chunk's beginning; forgets chunks used up."""
        while sum(len(chunk.rows) for chunk in self._open) <= index:
            self._open.append(self._pack(self._last))
        while self._used >= len(self._open[0].rows):
            passed = len(self._open.popleft().rows)
            self._used, index = self._used - passed, index - passed
        rows = [row for chunk in self._open for row in chunk.rows]
        return rows[index]

    def _pack(self, chunk: _Chunk) -> _Chunk:
        """The same chunk with its rows, shuffled, and with the one that follows."""
        report = replace(chunk.packed)
        stop = chunk.position + self._size
        samples = {position: self._sample(position) for position in chunk.carried}
        fresh = {position: self._sample(position) for position in range(chunk.position, stop)}
        fitting = {position: sample for position, sample in fresh.items() if report.admit(sample, self._row_length)}
        barren = 0 if fitting else chunk.barren + self._size
        if barren > self.epoch_size:
            raise DataError(
                f"none of the {barren} samples drawn last fits a row of {self._row_length} tokens, the shortest of "
                f"them has {min(map(len, fresh.values()))}; raise row_length"
            )
        samples |= fitting
        positions, lengths = list(samples), [len(sample) for sample in samples.values()]
        bins = best_fit_decreasing(lengths, self._row_length)
        left = min(bins, key=lambda members: sum(lengths[n] for n in members)) if bins else []
        full = [[positions[n] for n in members] for members in bins if members is not left]
        order = np.random.default_rng((self._seed, chunk.position)).permutation(len(full))
        rows = tuple(tuple(samples[position] for position in full[number]) for number in order)
        for row in rows:
            report.add_row(row)
        following = _Chunk(stop, tuple(positions[n] for n in left), report, barren)
        return replace(chunk, rows=rows, next=following)

    def _sample(self, position: int) -> Sample:
        draw = self._sampler.draw(position)
        # An item comes back at a position that has nothing to do with its first one, so its variants alternate freely.
        return self._pools[draw.name].make(draw.index, position)


def _digest(mixture: Mixture, *sizes: Any) -> str:
    """Two streams with the same digest have the same rows."""
    return hashlib.blake2b(repr((mixture, *sizes)).encode(), digest_size=8).hexdigest()


def _read_state(state: Mapping[str, Any], order: str) -> tuple[_Chunk, int]:
    saved = _State.parse(dict(state), "a saved position in a mixture")
    if saved.order != order:
        raise ConfigError(
            "the saved position belongs to another order of samples: the mixture, the sizes of its sets, row_length or "
            "chunk were changed; undo that, or begin the mixture anew"
        )
    return _Chunk(saved.position, saved.carried, PackingReport(**saved.packed)), saved.used


def open_pools(mixture: Mixture, root: Path, chat: Chat, *ratios: Ratio) -> dict[str, Pool]:
    """Pools of the sets that the mixture draws from: token stores, or folders of one list as `UnitStore` reads it.

    ratios: how text and speech of answers are interleaved; see `in_a_rhythm` for more than one.

    Raises DataError for a set that is not tokenised, ConfigError for sets of different codecs, or of one with more
    codes than the tokenizer has.
    """
    num_audio, codebooks = chat.codes
    stores = {
        each.name: UnitStore(file, num_audio, codebooks) if (file := _list_in(folder)) else TokenStore(folder)
        for each in mixture.sets
        if each.ratio > 0 and (folder := root / each.path)
    }
    _check_codecs({name: each for name, each in stores.items() if isinstance(each, TokenStore)}, num_audio)
    return {name: _pool(store, chat, ratios) for name, store in stores.items()}


def _list_in(folder: Path) -> Path | None:
    """The one JSON file of a folder that is no token store."""
    files = [] if (folder / INDEX_FILE).is_file() else list(folder.glob("*.json"))
    return files[0] if len(files) == 1 else None


def _pool(store: TokenStore | UnitStore, chat: Chat, ratios: tuple[Ratio, ...]) -> Pool:
    def make(item: int, variant: int) -> Sample:
        stored = store[item]
        clips = [Clip(codes, taken or None) for codes, taken in zip(stored.codes, stored.positions, strict=True)]
        try:
            messages, ratio = in_a_rhythm(stored.sample.messages, ratios, variant)
            sample = chat.sample(messages, clips, ratio)
        except DataError as error:
            raise DataError(f"{stored.sample.where}: {error}") from error
        spans = tuple(replace(span, load=partial(store.features, item, span.clip)) for span in sample.features)
        spoken = sample.spoken and replace(sample.spoken, streaming=Random(variant).random() > STREAMED)
        return replace(sample, features=spans, spoken=spoken)

    return Pool(len(store), make)


def _check_codecs(stores: Mapping[str, TokenStore], num_audio: int) -> None:
    spoken = {name: store.codec for name, store in stores.items() if store.audios}
    by_codec = {codec: name for name, codec in spoken.items()}
    if len(by_codec) > 1:
        which = ", ".join(f"{name} by {codec.name} {codec.digest[:8]}" for codec, name in by_codec.items())
        raise ConfigError(f"the sets of one mixture want one codec, got {which}; tokenize them with the same files")
    for codec, name in by_codec.items():
        if codec.codebook_size > num_audio:
            raise ConfigError(
                f"{name} holds codes of {codec.name} in [0, {codec.codebook_size}), the tokenizer has {num_audio} "
                "audio tokens; take the tokenizer made for this codec"
            )
