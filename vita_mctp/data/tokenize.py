"""A manifest's audio to token shards: dealt to ranks, and within a rank to processes.

Shard g holds the manifest's lines g * n + 1 to (g + 1) * n, so shards do not depend on how the work is split. Each
recording is known by the SHA-256 of its bytes: a shard that is already there lends its codes to recordings that have
not changed, which is how an interrupted run goes on and how a changed recording is noticed. Shards are written whole;
the index follows when all are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from vita_mctp.codecs.features import STATISTICS_FILE
from vita_mctp.codecs.registry import audio_tokenizer, feature_extractor
from vita_mctp.data.manifest import (
    MAX_SECONDS,
    Audio,
    GivenCodes,
    ManifestSample,
    decode,
    parse_line,
    read_bytes,
    read_lines,
)
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
from vita_mctp.errors import AudioError, CheckpointError, ConfigError, DataError, OutputError
from vita_mctp.files import cannot_write, write_output
from vita_mctp.processes import run_jobs
from vita_mctp.progress import track

LINES_PER_SHARD = 1024
FRONT_END, WHISPER = "sensevoice", Path("whisper")


@dataclass(frozen=True)
class CodecSource:
    """Name and folder of an audio tokenizer. features: to keep features too, of SenseVoiceSmall the folder of its
    am.mvn, WHISPER of Whisper, which needs none."""

    name: str
    folder: Path
    device: str = "cpu"
    features: Path | None = None


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


def _writing(
    folder: Path, source: CodecSource, digest: str, options: TokenizeOptions, worker: int
) -> Callable[[ShardSpec], ShardDone]:
    """Makes a shard with what an earlier one of its name knows, and puts it there unless it is there already.

    On one thread: more of them compute no faster on a busy machine.
    """
    import torch

    torch.set_num_threads(1)
    encoder = _Encoder(source, digest, options.max_seconds)

    def write(spec: ShardSpec) -> ShardDone:
        path = folder / shard_file(spec.group)
        encoder.begin(_known(path, encoder.identity))
        data, done = _tokenize_shard(spec, encoder, options.skip_bad)
        if not _holds(path, data):
            try:
                (folder / INDEX_FILE).unlink(missing_ok=True)
                _remove_parts(path)
            except OSError as error:
                raise cannot_write(path, error) from error
            write_output(path, data)
        return done

    return write


def _tokenize_shard(spec: ShardSpec, encoder: _Encoder, skip_bad: bool) -> tuple[bytes, ShardDone]:
    """A shard's file. Raises DataError."""
    kept: list[TokenizedLine] = []
    left_out: list[int] = []
    bad: list[str] = []
    for sample, number, line in _samples(spec):
        try:
            kept.append(TokenizedLine(number, line, encoder.audios(sample)))
        except DataError as error:
            if not skip_bad:
                raise
            left_out.append(number)
            bad.append(str(error))
    seconds = sum(audio.seconds for line in kept for audio in line.audios)
    done = ShardDone(spec.group, encoder.identity, len(kept), seconds, encoder.encoded, tuple(bad))
    return shard_bytes(kept, encoder.identity, spec.source, left_out), done


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
            write_output(index, data)
    except OutputError:
        if not _holds(index, data):  # else another rank has written it, and removed this one's part
            raise
    _remove_parts(index)
    return True


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _remove_parts(path: Path) -> None:
    """What killed processes left of writing `path`."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


class _Encoder:
    """Codes of a shard's recordings, each different one encoded once; `encoded` seconds so far."""

    def __init__(self, source: CodecSource, digest: str, max_seconds: float) -> None:
        """digest: of the codec's folder now. Raises ConfigError, CheckpointError."""
        self._tokenizer = audio_tokenizer(source.name, source.folder, source.device)
        self._extractor, made_by = None, ""
        if source.features == WHISPER:
            self._extractor, made_by = feature_extractor(WHISPER.name, WHISPER), WHISPER.name
        elif source.features is not None:
            self._extractor = feature_extractor(FRONT_END, source.features)
            statistics = (source.features / STATISTICS_FILE).read_bytes()
            made_by = f"{FRONT_END} {hashlib.sha256(statistics).hexdigest()}"
        size, rate = self._tokenizer.codebook_size, str(self._tokenizer.frame_rate * self._tokenizer.num_codebooks)
        self.identity = CodecIdentity(
            name=source.name, digest=digest, codebook_size=size, frame_rate=rate, features=made_by
        )
        self._max_seconds = max_seconds

    def begin(self, known: dict[bytes, TokenizedAudio]) -> None:
        """Another shard. known: codes by key, which spare encoding and change nothing else."""
        self._known, self.encoded = known, 0.0

    def audios(self, sample: ManifestSample) -> tuple[TokenizedAudio, ...]:
        keeps = self._extractor is not None
        return tuple(
            self._audio(audio, keeps and heard, f"{sample.where}: audios[{number}]")
            for number, (audio, heard) in enumerate(zip(sample.audios, sample.heard, strict=True))
        )

    def _audio(self, audio: Audio, heard: bool, where: str) -> TokenizedAudio:
        """heard: its features are kept too."""
        if isinstance(audio, GivenCodes):
            if heard:
                raise DataError(f"{where}: got codes; wanted a recording, to keep its features: give its path")
            return self._given(audio, where)
        data = read_bytes(audio, where)
        key = hashlib.sha256(data).digest()
        known = self._known.get(key)
        if known is None or (heard and known.frames is None):
            known = self._known[key] = self._encode(data, key, heard, where)
        return known if heard else replace(known, frames=None)

    def _encode(self, data: bytes, key: bytes, heard: bool, where: str) -> TokenizedAudio:
        wave, extractor = decode(data, where, self._max_seconds), self._extractor
        try:
            codes = self._tokenizer.encode(wave)
            frames = frames_of(extractor.encode(wave)) if heard and extractor is not None else None
        except AudioError as error:
            raise DataError(f"{where}: {error}") from error
        self.encoded += wave.seconds
        return TokenizedAudio(key, tuple(codes.ids.reshape(-1).tolist()), wave.seconds, frames)

    def _given(self, audio: GivenCodes, where: str) -> TokenizedAudio:
        codec = self.identity
        if audio.codec != codec.name or max(audio.codes) >= codec.codebook_size:
            raise DataError(
                f"{where}: got codes up to {max(audio.codes)} of the codec {audio.codec}; wanted those of {codec.name} "
                f"in [0, {codec.codebook_size}): give the recording instead"
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


_DEFAULTS = TokenizeOptions()


@dataclass(frozen=True)
class Tokenized:
    """What one rank did. finished: the store is whole, other ranks' shards included."""

    shards: int
    samples: int
    seconds: float
    encoded: float
    bad: int
    finished: bool


def tokenize_manifest(
    manifest: Path,
    folder: Path,
    codec: CodecSource,
    options: TokenizeOptions = _DEFAULTS,
    *,
    rank: int = 0,
    world_size: int = 1,
    processes: int = 1,
    progress: Callable[[ShardDone], None] = lambda done: None,
) -> Tokenized:
    """Tokenize this rank's shards, every `world_size`-th from `rank` on; write the index once nobody's is missing.

    Raises DataError with the manifest's file and line, ConfigError for a rank that does not exist, OutputError.
    """
    if not 0 <= rank < world_size or processes < 1 or options.lines_per_shard < 1:
        raise ConfigError(
            f"wanted 0 <= rank < world size, and at least 1 process and 1 line a shard; got rank {rank}, "
            f"world size {world_size}, {processes} processes, {options.lines_per_shard} lines"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    specs, done = plan_shards(manifest, options.lines_per_shard), list[ShardDone]()
    writing = partial(_writing, folder, codec, codec_digest(codec), options)
    with _threads_kept():
        mine = specs[rank::world_size]
        for each in track(run_jobs("tokenizing", writing, mine, processes), "shards", len(mine)):
            progress(each)
            done.append(each)
    finished = finish_store(specs, folder, done[0].codec) if done else (folder / INDEX_FILE).is_file()
    samples, bad = sum(each.samples for each in done), sum(len(each.bad) for each in done)
    seconds, encoded = sum(each.seconds for each in done), sum(each.encoded for each in done)
    return Tokenized(len(done), samples, seconds, encoded, bad, finished)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """torch computes on as many threads as before, whatever number is set meanwhile."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
