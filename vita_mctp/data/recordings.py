"""The bytes of a manifest's recordings, from files and tar files."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from vita_mctp.audio import read_wave
from vita_mctp.data.manifest import AudioFile, TarMember, TarRange
from vita_mctp.errors import AudioError, DataError
from vita_mctp.types import Wave

MAX_SECONDS = 600.0
MAX_BYTES = 1 << 30
"""Over an hour of the most wasteful format; a file larger than this is no recording of one utterance."""

Recording = AudioFile | TarMember | TarRange


def read_bytes(recording: Recording, where: str) -> bytes:
    """The whole recording in its own format. Raises DataError beginning with `where`."""
    path, offset, size = _location(recording, where)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never end
            raise DataError(f"{where}: {path} is no regular file; give a recording's path")
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(min(size, MAX_BYTES + 1))
    except OSError as error:
        raise DataError(f"{where}: cannot read {path}: {error.strerror}; mend the path or get the file") from error
    if not data:
        raise DataError(f"{where}: {path} holds no bytes at {offset}, a recording is wanted; get the file again")
    if len(data) > MAX_BYTES:
        raise DataError(f"{where}: {path} has over {MAX_BYTES >> 30} GB, one recording is wanted; cut it")
    if not isinstance(recording, AudioFile) and len(data) < size:
        end = offset + len(data)
        raise DataError(f"{where}: {path} ends at byte {end}, the recording at {offset + size}; get it again")
    return data


def decode(data: bytes, where: str, max_seconds: float = MAX_SECONDS) -> Wave:
    """A recording's samples. Raises DataError for what is no usable speech, see `audio.read_wave`."""
    try:
        return read_wave(data, max_seconds)
    except AudioError as error:
        raise DataError(f"{where}: {error}") from error


def _location(recording: Recording, where: str) -> tuple[Path, int, int]:
    """(file, first byte, number of bytes)."""
    if isinstance(recording, AudioFile):
        return recording.path, 0, MAX_BYTES + 1
    if isinstance(recording, TarRange):
        return recording.tar, recording.offset, recording.size
    tar = recording.tar
    try:
        members = _members(tar, tar.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"{where}: cannot read {tar}: {error.strerror}; mend the path or get the file") from error
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:  # what damaged headers give
        raise DataError(f"{where}: {tar} is no tar file, or is cut short ({error}); get it again") from error
    if recording.member not in members:
        known = ", ".join(list(members)[:3]) or "none"
        raise DataError(f"{where}: {tar} has no member {recording.member}; the first of {len(members)} are {known}")
    return tar, *members[recording.member]


@lru_cache(maxsize=64)
def _members(tar: Path, changed: int) -> Mapping[str, tuple[int, int]]:
    """(first byte, size) of each regular member of an uncompressed tar file, as it was at time `changed`."""
    with tarfile.open(tar, "r:") as archive:
        return {member.name: (member.offset_data, member.size) for member in archive if member.isreg()}
