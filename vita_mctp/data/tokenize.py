"""A manifest's audio to token shards, by one process or many.

Shard g holds the manifest's lines g * n + 1 to (g + 1) * n, so shards do not depend on how the work is split. Each
recording is known by the SHA-256 of its bytes: a shard that is already there lends its codes to recordings that have
not changed, which is how an interrupted run goes on and how a changed recording is noticed. Shards are written whole;
the index follows when all are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from vita_mctp.codecs.base import AudioFeatureExtractor, AudioTokenizer
from vita_mctp.codecs.registry import audio_tokenizer, feature_extractor
from vita_mctp.codecs.sensevoice import STATISTICS_FILE
from vita_mctp.data.manifest import Audio, GivenCodes, ManifestSample, parse_line, read_lines
from vita_mctp.data.recordings import MAX_SECONDS, decode, read_bytes
from vita_mctp.data.token_store import (
    INDEX_FILE,
    CodecIdentity,
    TokenizedAudio,
    TokenizedLine,
    frames_of,
    index_bytes,
    read_audios,
    read_header,
    shard_bytes,
    shard_file,
)
from vita_mctp.errors import AudioError, CheckpointError, DataError, OutputError
from vita_mctp.files import write_whole

LINES_PER_SHARD = 1024
FRONT_END = "sensevoice"


@dataclass(frozen=True)
class CodecSource:
    """Where a tokenizer is loaded from, in each process anew; by its name in `codec.registry` and its folder.

    features: folder of SenseVoiceSmall's am.mvn, to keep also what VITA-Audio-Plus hears.
    """

    name: str
    folder: Path
    device: str = "cpu"
    features: Path | None = None


@dataclass(frozen=True)
class LoadedCodec:
    identity: CodecIdentity
    tokenizer: AudioTokenizer
    extractor: AudioFeatureExtractor | None = None


@dataclass(frozen=True)
class TokenizeOptions:
    """skip_bad: leave out samples with a recording that cannot be used, instead of stopping at the first."""

    lines_per_shard: int = LINES_PER_SHARD
    max_seconds: float = MAX_SECONDS
    skip_bad: bool = False


@dataclass(frozen=True)
class ShardSpec:
    """One shard's work: `count` lines of the manifest from byte `offset` on, the first being line `first_line`."""

    manifest: Path
    group: int
    offset: int
    first_line: int
    count: int
    source: str
    """SHA-256 of these lines."""


@dataclass(frozen=True)
class ShardDone:
    """What became of one shard. seconds: of audio in it; encoded: of audio that no earlier shard had."""

    group: int
    codec: CodecIdentity
    samples: int
    seconds: float
    encoded: float
    bad: tuple[str, ...]
    """What is wrong with the samples left out."""


def plan_shards(manifest: Path, lines_per_shard: int = LINES_PER_SHARD) -> list[ShardSpec]:
    """Every shard of a manifest, in order. Raises DataError for one that is empty or cannot be read."""
    specs = []
    for group, chunk in groupby(read_lines(manifest), lambda line: (line.number - 1) // lines_per_shard):
        lines = list(chunk)
        source = hashlib.sha256(b"".join(line.content + b"\n" for line in lines)).hexdigest()
        specs.append(ShardSpec(manifest, group, lines[0].offset, lines[0].number, len(lines), source))
    return specs


def codec_digest(source: CodecSource) -> str:
    """SHA-256 over the names and contents of all files in the codec's folder. Raises CheckpointError."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in source.folder.rglob("*") if path.is_file() and path.name[0] != "."):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(source.folder).as_posix()} {content}\n".encode())
    except OSError as error:
        raise CheckpointError(f"cannot read the codec {source.folder}: {error.strerror}; get it again") from error
    return digest.hexdigest()


@lru_cache(maxsize=1)
def load_codec(source: CodecSource, digest: str) -> LoadedCodec:
    """The tokenizer; `digest` is that of its folder now. Raises ConfigError, CheckpointError."""
    tokenizer = audio_tokenizer(source.name, source.folder, source.device)
    extractor, made_by = None, ""
    if source.features is not None:
        extractor = feature_extractor(FRONT_END, source.features)
        statistics = (source.features / STATISTICS_FILE).read_bytes()
        made_by = f"{FRONT_END} {hashlib.sha256(statistics).hexdigest()}"
    identity = CodecIdentity(
        name=source.name,
        digest=digest,
        codebook_size=tokenizer.codebook_size,
        frame_rate=str(tokenizer.frame_rate),
        features=made_by,
    )
    return LoadedCodec(identity, tokenizer, extractor)


def write_shard(spec: ShardSpec, folder: Path, source: CodecSource, digest: str, options: TokenizeOptions) -> ShardDone:
    """Make the shard, with what an earlier one of its name knows, and put it in `folder` unless it is there already.

    Raises DataError with the manifest's file and line, OutputError.
    """
    path, codec = folder / shard_file(spec.group), load_codec(source, digest)
    data, done = tokenize_shard(spec, codec, options, _known(path, codec.identity))
    try:
        if not _holds(path, data):
            (folder / INDEX_FILE).unlink(missing_ok=True)
            _remove_parts(path)
            write_whole(path, data)
    except OSError as error:
        raise not_written(path, error) from error
    return done


def tokenize_shard(
    spec: ShardSpec, codec: LoadedCodec, options: TokenizeOptions, known: Mapping[bytes, TokenizedAudio]
) -> tuple[bytes, ShardDone]:
    """A shard's file. known: codes by key, which spare encoding and change nothing else. Raises DataError."""
    encoder = _Encoder(codec, options.max_seconds, known)
    kept: list[TokenizedLine] = []
    left_out: list[int] = []
    bad: list[str] = []
    for sample, number, line in _samples(spec):
        try:
            kept.append(TokenizedLine(number, line, encoder.audios(sample)))
        except DataError as error:
            if not options.skip_bad:
                raise
            left_out.append(number)
            bad.append(str(error))
    seconds = sum(audio.seconds for line in kept for audio in line.audios)
    done = ShardDone(spec.group, codec.identity, len(kept), seconds, encoder.encoded, tuple(bad))
    return shard_bytes(kept, codec.identity, spec.source, left_out), done


def finish_store(specs: list[ShardSpec], folder: Path, codec: CodecIdentity) -> bool:
    """Write the index if every shard is there; False if some are still another rank's to write. Raises OutputError."""
    headers = []
    for spec in specs:
        try:
            header = read_header(folder / shard_file(spec.group))
        except DataError:
            return False
        if (header.source, header.codec) != (spec.source, codec):
            return False
        headers.append(header)
    index, data = folder / INDEX_FILE, index_bytes(headers)
    try:
        if not _holds(index, data):
            write_whole(index, data)
        _remove_parts(index)
    except OSError as error:
        if not _holds(index, data):  # else another rank has written it, and removed this one's part
            raise not_written(index, error) from error
    return True


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _remove_parts(path: Path) -> None:
    """What killed processes left of writing `path`."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}; free space or choose another folder, and run it again")


class _Encoder:
    """Codes of recordings, each different one encoded once; `encoded` seconds so far."""

    def __init__(self, codec: LoadedCodec, max_seconds: float, known: Mapping[bytes, TokenizedAudio]) -> None:
        self._codec, self._max_seconds, self._known = codec, max_seconds, dict(known)
        self.encoded = 0.0

    def audios(self, sample: ManifestSample) -> tuple[TokenizedAudio, ...]:
        keeps = self._codec.extractor is not None
        return tuple(
            self._audio(audio, keeps and heard, f"{sample.where}: audios[{number}]")
            for number, (audio, heard) in enumerate(zip(sample.audios, sample.heard, strict=True))
        )

    def _audio(self, audio: Audio, heard: bool, where: str) -> TokenizedAudio:
        """heard: its features are kept too."""
        if isinstance(audio, GivenCodes):
            if heard:
                raise DataError(f"{where}: got codes, a recording is wanted to keep its features; give its path")
            return self._given(audio, where)
        data = read_bytes(audio, where)
        key = hashlib.sha256(data).digest()
        known = self._known.get(key)
        if known is None or (heard and known.frames is None):
            known = self._known[key] = self._encode(data, key, heard, where)
        return known if heard else replace(known, frames=None)

    def _encode(self, data: bytes, key: bytes, heard: bool, where: str) -> TokenizedAudio:
        wave, extractor = decode(data, where, self._max_seconds), self._codec.extractor
        try:
            codes = self._codec.tokenizer.encode(wave)
            frames = frames_of(extractor.encode(wave)) if heard and extractor is not None else None
        except AudioError as error:
            raise DataError(f"{where}: {error}") from error
        self.encoded += wave.seconds
        return TokenizedAudio(key, tuple(codes.ids.tolist()), wave.seconds, frames)

    def _given(self, audio: GivenCodes, where: str) -> TokenizedAudio:
        codec = self._codec.identity
        if audio.codec != codec.name or max(audio.codes) >= codec.codebook_size:
            raise DataError(
                f"{where}: got codes up to {max(audio.codes)} of the codec {audio.codec}, codes of {codec.name} in "
                f"[0, {codec.codebook_size}) are wanted; give the recording instead"
            )
        key = hashlib.sha256(np.array(audio.codes, dtype="<i4").tobytes()).digest()
        return TokenizedAudio(key, audio.codes, float(len(audio.codes) / Fraction(codec.frame_rate)))


def _samples(spec: ShardSpec) -> Iterator[tuple[ManifestSample, int, bytes]]:
    """(sample, number, line) of a shard's lines. Raises DataError, also if they are no longer those planned."""
    digest = hashlib.sha256()
    for line in islice(read_lines(spec.manifest, spec.offset, spec.first_line), spec.count):
        digest.update(line.content + b"\n")
        yield parse_line(line.content, spec.manifest, line.number), line.number, line.content
    if digest.hexdigest() != spec.source:
        raise DataError(f"{spec.manifest}:{spec.first_line}: the manifest changed while it was read; run it again")


def _known(path: Path, codec: CodecIdentity) -> dict[bytes, TokenizedAudio]:
    """What an earlier shard knows; nothing if there is none, it is damaged, or of another codec."""
    try:
        return read_audios(path) if read_header(path).codec == codec else {}
    except DataError:
        return {}


Progress = Callable[[ShardDone], None]
