"""Tokenised manifests on disk. S samples, A audios, N codes, B bytes, F frames of D features.

A folder of shards and an index written last; without its index there is no store. A shard is a safetensors file, a
function of its manifest lines, the recordings and the codec alone:

    lines        uint8 (B,)      the manifest's lines, end to end       line_ends   int64 (S,)  in bytes
    line         int64 (S,)      their numbers in the manifest          audio_ends  int64 (S,)  in audios
    codes        int32 (N,)      all codes, end to end                  code_ends   int64 (A,)  in codes
    keys         uint8 (A, 32)   SHA-256 of each recording's bytes      seconds     float64 (A,)

in stores that keep what VITA-Audio-Plus hears, for the audios that are no answers, also

    frames       int16 (F, D)    features, end to end, as the bits of   frame_ends  int64 (A,)  in frames
                                 bfloat16, which its models round to

and, as metadata, one JSON object (`ShardHeader`). Shards are mapped, not loaded; only the samples asked for are read.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vita_mctp.codecs.registry import feature_positions
from vita_mctp.data.manifest import ManifestSample, parse_line
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.schema import Schema
from vita_mctp.types import AudioFeatures

Frames = npt.NDArray[np.int16]
"""(F, D) features as the upper halves of float32, which is bfloat16."""

INDEX_FILE = "index.json"
KEY_BYTES = 32
_HEADER = "shard"  # the only metadata key: safetensors writes several in any order
_OPEN_SHARDS = 256
_LAYOUT = {
    "lines": ("U8", ("bytes",)),
    "line_ends": ("I64", ("samples",)),
    "line": ("I64", ("samples",)),
    "audio_ends": ("I64", ("samples",)),
    "codes": ("I32", ("codes",)),
    "code_ends": ("I64", ("audios",)),
    "keys": ("U8", ("audios", "key")),
    "seconds": ("F64", ("audios",)),
}
"""Type and shape of each tensor of a shard."""
_FEATURE_LAYOUT = {"frames": ("I16", ("frames", "features")), "frame_ends": ("I64", ("audios",))}
_ENDS_IN = {"line_ends": "lines", "audio_ends": "keys", "code_ends": "codes", "frame_ends": "frames"}
"""The tensor whose length the last of the ends is."""


_Count = Annotated[int, Field(ge=0, lt=1 << 48)]


class CodecIdentity(Schema):
    """Which codec made codes: two with equal identities make equal ones. digest: of its files."""

    name: str
    digest: str
    codebook_size: int = Field(ge=1, lt=1 << 31)
    frame_rate: str = Field(pattern=r"^[1-9]\d{0,8}(/[1-9]\d{0,8})?$")
    """Codes per second, as `Fraction` writes it."""
    features: str = ""
    """What also made features, with the digest of its file; "" where the store keeps none."""

    def positions(self, frames: int) -> int:
        """Of a prompt, that so many frames of its features take. Raises ConfigError for an unknown extractor."""
        return feature_positions(self.features.partition(" ")[0], frames)


class _Totals(Schema):
    """What a shard and an index both say of themselves."""

    format: Literal[1]
    codec: CodecIdentity
    samples: _Count
    audios: _Count
    codes: _Count
    seconds: Annotated[float, Field(ge=0, le=1e12)]


class ShardHeader(_Totals):
    source: str
    """SHA-256 of the manifest lines it was made from, left-out ones included."""
    left_out: tuple[_Count, ...] = ()
    """Numbers of the lines whose recordings could not be used."""


class _IndexEntry(Schema):
    file: str
    samples: _Count
    source: str


class _Index(_Totals):
    left_out: _Count
    shards: tuple[_IndexEntry, ...]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if not all(Path(entry.file).name == entry.file for entry in self.shards):
            raise ValueError("shards: got a file outside the folder; wanted names alone")
        if sum(entry.samples for entry in self.shards) != self.samples:
            raise ValueError(f"samples: got {self.samples}; wanted the sum of the shards' samples")
        return self


@dataclass(frozen=True)
class TokenizedAudio:
    """One recording's codes; `key` is the SHA-256 of the bytes they were made from."""

    key: bytes
    codes: tuple[int, ...]
    seconds: float
    frames: Frames | None = field(default=None, compare=False)
    """Its features, if the store keeps them and the recording is heard."""


@dataclass(frozen=True)
class TokenizedLine:
    """A manifest line and its audios."""

    number: int
    line: bytes
    audios: tuple[TokenizedAudio, ...]


@dataclass(frozen=True)
class StoredSample:
    """A sample of the manifest, its audios' codes, and the positions that the features of each take (0: none kept)."""

    sample: ManifestSample
    codes: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]


def frames_of(features: AudioFeatures) -> Frames:
    """Features rounded to bfloat16, to the nearest and half to even."""
    bits = np.ascontiguousarray(features.frames, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.int16)


def shard_file(group: int) -> str:
    return f"shard-{group:06d}.safetensors"


def shard_bytes(lines: Sequence[TokenizedLine], codec: CodecIdentity, source: str, left_out: Sequence[int]) -> bytes:
    """A shard's file."""
    audios = [audio for line in lines for audio in line.audios]
    text, codes = b"".join(line.line for line in lines), [code for audio in audios for code in audio.codes]
    header = ShardHeader(
        format=1,
        codec=codec,
        source=source,
        samples=len(lines),
        audios=len(audios),
        codes=len(codes),
        seconds=sum(audio.seconds for audio in audios),
        left_out=tuple(left_out),
    )
    tensors = {
        "lines": np.frombuffer(text, dtype=np.uint8),
        "line_ends": _ends(len(line.line) for line in lines),
        "line": np.array([line.number for line in lines], dtype=np.int64),
        "audio_ends": _ends(len(line.audios) for line in lines),
        "codes": np.array(codes, dtype=np.int32),
        "code_ends": _ends(len(audio.codes) for audio in audios),
        "keys": np.frombuffer(b"".join(audio.key for audio in audios), dtype=np.uint8).reshape(-1, KEY_BYTES),
        "seconds": np.array([audio.seconds for audio in audios], dtype=np.float64),
    }
    if codec.features:
        kept = [audio.frames for audio in audios if audio.frames is not None]
        tensors["frames"] = np.concatenate(kept) if kept else np.zeros((0, 0), np.int16)
        tensors["frame_ends"] = _ends(0 if audio.frames is None else len(audio.frames) for audio in audios)
    return save(tensors, metadata={_HEADER: json.dumps(header.to_json_values())})


def read_header(path: Path) -> ShardHeader:
    """Raises DataError for a file that is no whole shard of this format."""
    return _Shard(path).header


def read_audios(path: Path) -> dict[bytes, TokenizedAudio]:
    """All audios of a shard by their keys, with features where one of the key has them. Raises DataError."""
    shard = _Shard(path)
    keys, seconds = shard.read("keys"), shard.read("seconds").tolist()
    audios: dict[bytes, TokenizedAudio] = {}
    for number in range(shard.header.audios):
        key, frames = keys[number].tobytes(), shard.frames(number)
        if key not in audios or frames is not None:
            audios[key] = TokenizedAudio(key, shard.codes(number), seconds[number], frames)
    return audios


def index_bytes(headers: Sequence[ShardHeader]) -> bytes:
    """The index of a store whose shards are all there, in order."""
    totals = ("samples", "audios", "codes", "seconds")
    index = _Index(
        format=1,
        codec=headers[0].codec,
        **{name: sum(getattr(header, name) for header in headers) for name in totals},
        left_out=sum(len(header.left_out) for header in headers),
        shards=tuple(
            _IndexEntry(file=shard_file(number), samples=header.samples, source=header.source)
            for number, header in enumerate(headers)
        ),
    )
    return (json.dumps(index.to_json_values(), indent=1) + "\n").encode()


class TokenStore:
    """Read access to a finished folder; a sequence of samples."""

    def __init__(self, folder: str | Path) -> None:
        """Raises DataError for a folder without a whole index."""
        self.folder = Path(folder)
        try:
            index = _Index.read_json(self.folder / INDEX_FILE, DataError)
        except DataError as error:
            raise DataError(f"{folder} holds no finished token store: {error}; finish `vita-mctp tokenize`") from None
        self.codec, self.seconds, self.audios, self.num_codes = index.codec, index.seconds, index.audios, index.codes
        self._shards = index.shards
        self._ends = list(accumulate(shard.samples for shard in index.shards))
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> StoredSample:
        """Raises DataError for a shard that is missing, damaged, or not the one that the index tells of."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard, row = self._find(index)
        return shard.sample(row)

    def features(self, index: int, audio: int) -> AudioFeatures:
        """What was heard of audio number `audio` of a sample that has frames of it. Raises as `[]`."""
        shard, row = self._find(index)
        return shard.features(row, audio)

    def _find(self, index: int) -> tuple[_Shard, int]:
        """The sample's shard and its index there."""
        number = bisect_right(self._ends, index)
        return self._open(number), index - (self._ends[number - 1] if number else 0)

    def _open_shard(self, number: int) -> _Shard:
        entry = self._shards[number]
        shard = _Shard(self.folder / entry.file)
        header = shard.header
        if (header.samples, header.source, header.codec) != (entry.samples, entry.source, self.codec):
            raise DataError(
                f"{shard.path} is not the shard that {INDEX_FILE} tells of; tokenize again into this folder"
            )
        return shard


class _Shard:
    """One open file, checked but for the values of its codes and lines, which are checked as they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(str(path), framework="np")
            header = (self._file.metadata() or {}).get(_HEADER, "{}")
            self.header = ShardHeader.parse_json(header, "its metadata", DataError)
            self._layout = _LAYOUT | (_FEATURE_LAYOUT if self.header.codec.features else {})
            self._slices = {name: self._file.get_slice(name) for name in self._layout}
            self._ends = {name: self.read(name) for name in _ENDS_IN.keys() & self._layout.keys()}
        except (OSError, SafetensorError, DataError) as error:
            raise DataError(f"{path} is no whole token shard ({error}); tokenize again into this folder") from error
        self._check()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        whole = stop is None  # an empty tensor cannot be sliced
        array: npt.NDArray[Any] = self._file.get_tensor(name) if whole else self._slices[name][start:stop]
        return array

    def sample(self, index: int) -> StoredSample:
        number = int(self.read("line", index, index + 1)[0])
        sample = parse_line(self.read("lines", *self._span("line_ends", index)).tobytes(), self.path, number)
        first, last = self._span("audio_ends", index)
        if last - first != len(sample.audios):
            raise self._damaged(f"line {number} has {len(sample.audios)} audios, stored are {last - first}")
        audios, keeps = range(first, last), "frames" in self._slices
        frames = tuple(self._count("frame_ends", audio) if keeps else 0 for audio in audios)
        if keeps and any(heard != (count > 0) for heard, count in zip(sample.heard, frames, strict=True)):
            raise self._damaged(f"line {number} has {frames} frames; wanted those of what is heard alone")
        positions = tuple(self._positions(count) if count else 0 for count in frames)
        return StoredSample(sample, tuple(self.codes(audio) for audio in audios), positions)

    def codes(self, audio: int) -> tuple[int, ...]:
        codes = self.read("codes", *self._span("code_ends", audio))
        size = self.header.codec.codebook_size
        if not len(codes) or codes.min() < 0 or codes.max() >= size:
            raise self._damaged(f"audio {audio} wants codes in [0, {size}), at least one")
        return tuple(codes.tolist())

    def frames(self, audio: int) -> Frames | None:
        if "frames" not in self._slices or not self._count("frame_ends", audio):
            return None
        return self.read("frames", *self._span("frame_ends", audio))

    def features(self, index: int, audio: int) -> AudioFeatures:
        frames = self.frames(self._span("audio_ends", index)[0] + audio)
        if frames is None:
            raise self._damaged(f"sample {index} has no features of audio {audio}")
        wide = (frames.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # the inverse of `frames_of`
        features = AudioFeatures(wide, self._positions(len(frames)))
        if not np.isfinite(features.frames).all():
            raise self._damaged(f"the features of audio {audio} of sample {index} are no finite numbers")
        return features

    def _positions(self, frames: int) -> int:
        try:
            return self.header.codec.positions(frames)
        except ConfigError as error:
            raise self._damaged(f"its features: {error}") from None

    def _count(self, name: str, index: int) -> int:
        start, stop = self._span(name, index)
        return stop - start

    def _span(self, name: str, index: int) -> tuple[int, int]:
        ends = self._ends[name]
        return int(ends[index - 1]) if index else 0, int(ends[index])

    def _check(self) -> None:
        header = self.header
        sizes = {"samples": header.samples, "audios": header.audios, "codes": header.codes, "key": KEY_BYTES}
        shapes = {name: self._slices[name].get_shape() for name in self._layout}
        for name, (dtype, axes) in self._layout.items():
            shape, found = shapes[name], self._slices[name].get_dtype()
            known = [sizes.get(axis, size) for axis, size in zip(axes, shape, strict=False)]
            if (found, shape, len(shape)) != (dtype, known, len(axes)):
                raise self._damaged(
                    f"{name} is {found} {shape}, not {dtype} {[sizes.get(axis, axis) for axis in axes]}"
                )
        for name, ends in self._ends.items():
            total = shapes[_ENDS_IN[name]][0]
            if (np.diff(ends, prepend=0) < 0).any() or (int(ends[-1]) if len(ends) else 0) != total:
                raise self._damaged(f"{name} does not rise to {total}")

    def _damaged(self, what: str) -> DataError:
        return DataError(f"the token shard {self.path} is damaged: {what}; tokenize again into this folder")


def _ends(lengths: Any) -> npt.NDArray[np.int64]:
    return np.fromiter(accumulate(lengths), dtype=np.int64)
