"""Manifests: what there is to train on, one JSON object a line, in the released forms.

    {"messages": [{"role": "user", "content": "Convert the speech to text.\\n<|audio|>"},
                  {"role": "assistant", "content": "two plus three"}],
     "audios": ["clips/0001.flac"], "id": "0001"}

Each `<|audio|>` in the messages stands for the next of `audios`. An audio is

    "clips/0001.flac"                                  a file; relative paths start at the manifest's folder
    "clips.tar::0001.flac"                             a member of a tar file
    {"tar": "clips.tar", "offset": 512, "size": 9000}  a range of bytes of a tar file, which is the whole recording
    {"codes": [17, 4, 99], "codec": "nano"}            audio codes, made by the codec of that name

`id` is optional. The form of a sample follows from its messages (`Form`). Reading is line by line and strict: whatever
is wrong with a line is one DataError that begins with `file:line`; `ManifestCheck` finds every one.
"""

from __future__ import annotations

import json
import re
import stat
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from vita_mctp.audio import read_wave
from vita_mctp.errors import AudioError, DataError
from vita_mctp.schema import Schema
from vita_mctp.text.chat import ASR_INSTRUCTION, TTS_INSTRUCTION, Message, role_of
from vita_mctp.text.vocabulary import AUDIO_TAG
from vita_mctp.types import Role, Wave

MAX_LINE_BYTES = 1 << 24
MAX_SECONDS = 600.0
MAX_BYTES = 1 << 30
"""Over an hour of the most wasteful format; a file larger than this is no recording of one utterance."""
TAR_MEMBER = "::"
_NO_NUL = r"^[^\x00]*$"
_CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext|(?:begin|end|context)_of_audio|audio_\d+)\|>")


class Form(StrEnum):
    """What a sample teaches."""

    ASR = "asr"
    TTS = "tts"
    SPEECH_QA = "speech_qa"
    TEXT = "text"


@dataclass(frozen=True)
class Recording:
    """A whole file, or of a tar file one `member`, or `span`: its first byte and number of bytes."""

    path: Path
    member: str | None = None
    span: tuple[int, int] | None = None


class GivenCodes(Schema):
    """Codes instead of a recording; `codec` is the name of the one that made them."""

    codes: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...], Field(min_length=1)]
    codec: str = Field(min_length=1)


Audio = Recording | GivenCodes


@dataclass(frozen=True)
class ManifestSample:
    """One line. `where` is its `file:line`."""

    messages: tuple[Message, ...]
    audios: tuple[Audio, ...]
    where: str
    id: str | None = None

    @property
    def heard(self) -> tuple[bool, ...]:
        """Of each audio, whether it is in a question or a system text and not in an answer."""
        return tuple(
            role_of(message) is not Role.ASSISTANT
            for message in self.messages
            for _ in range(message.content.count(AUDIO_TAG))
        )

    @property
    def form(self) -> Form:
        """ASR and TTS by their instruction, else speech QA with any audio and text without."""
        if not self.audios:
            return Form.TEXT
        asked = [message.content for message in self.messages if role_of(message) is Role.USER]
        if any(ASR_INSTRUCTION in content for content in asked):
            return Form.ASR
        return Form.TTS if any(TTS_INSTRUCTION in content for content in asked) else Form.SPEECH_QA


class Line(NamedTuple):
    """A line of a manifest without its line break; `offset` is its first byte in the file."""

    number: int
    offset: int
    content: bytes


def read_manifest(path: str | Path) -> Iterator[ManifestSample]:
    """Samples in order; DataError at the first line that is malformed, and for an empty or unreadable manifest."""
    path = Path(path)
    for line in read_lines(path):
        yield parse_line(line.content, path, line.number)


def read_lines(path: Path, offset: int = 0, number: int = 1) -> Iterator[Line]:
    """Lines from byte `offset` on, which is where line `number` begins. Raises DataError when there are none.

    A line over MAX_LINE_BYTES comes cut to one byte more, which `parse_line` refuses.
    """
    empty = True
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while content := file.readline(MAX_LINE_BYTES + 1):
                empty = False
                whole = len(content) <= MAX_LINE_BYTES
                yield Line(number, offset, content.removesuffix(b"\n").removesuffix(b"\r") if whole else content)
                while len(content) > MAX_LINE_BYTES and not content.endswith(b"\n"):
                    content = file.readline(MAX_LINE_BYTES + 1)
                offset, number = file.tell(), number + 1
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the manifest {path}: {reason}; give a JSONL file") from error
    if empty:
        raise DataError(f"the manifest {path} is empty; wanted a JSON object a line: write it again")


def parse_line(line: bytes, path: Path, number: int) -> ManifestSample:
    """The sample of line `number` of the manifest `path`. Raises DataError."""
    where = f"{path}:{number}"
    _check_json(line, where)
    values = _Line.parse_json(line, where, DataError)
    audios = tuple(_located(audio, path.parent) for audio in values.audios)
    return ManifestSample(tuple(Message(m.role, m.content) for m in values.messages), audios, where, values.id)


def _check_json(line: bytes, where: str) -> None:
    """Refuses what is no JSON, and what pydantic's parser lets pass: keys that occur twice."""
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"{where}: the line has over {MAX_LINE_BYTES >> 20} MB; write one JSON object a line")
    if not line.strip():
        raise DataError(f"{where}: the line is empty; wanted a JSON object: delete it")
    try:
        json.loads(line.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is no UTF-8; convert the manifest to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: no JSON object ({' '.join(str(error).split())}); write one object a line") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"a key occurs twice among {', '.join(keys[:5])[:100]}")


def _file_or_member(text: str) -> str:
    tar, found, member = text.partition(TAR_MEMBER)
    if not tar or (found and not member):
        raise ValueError(f"got {text[:80]!r}; wanted a path, or tar{TAR_MEMBER}member")
    return text


def _spoken_or_written(content: str) -> str:
    if control := _CONTROL.search(content):
        raise ValueError(f"got {control.group()[:40]}, which stands for no text; take it out")
    if not content.strip():
        raise ValueError(f"got nothing but {content[:10]!r}; wanted text or {AUDIO_TAG}")
    return content


class _Message(Schema):
    role: Literal["system", "user", "human", "assistant", "gpt"]
    content: Annotated[str, AfterValidator(_spoken_or_written)]


class _TarRange(Schema):
    tar: str = Field(min_length=1, pattern=_NO_NUL)
    offset: int = Field(ge=0, lt=1 << 63)
    size: int = Field(ge=1, lt=1 << 63)


def _kind(values: Any) -> str:
    if isinstance(values, str):
        return "path"
    return "codes" if isinstance(values, dict) and "codes" in values else "range"


_Audio = Annotated[
    Annotated[str, Field(pattern=_NO_NUL), AfterValidator(_file_or_member), Tag("path")]
    | Annotated[_TarRange, Tag("range")]
    | Annotated[GivenCodes, Tag("codes")],
    Discriminator(_kind),
]


class _Line(Schema):
    messages: tuple[_Message, ...]
    audios: tuple[_Audio, ...] = ()
    id: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _a_conversation(self) -> Self:
        if not self.messages:
            raise ValueError("messages is empty; wanted a question and its answer: add them")
        tags = [message.content.count(AUDIO_TAG) for message in self.messages]
        if sum(tags) != len(self.audios):
            raise ValueError(f"{sum(tags)} {AUDIO_TAG} tags and {len(self.audios)} audios; give one audio for each tag")
        roles = [role_of(Message(message.role, "")) for message in self.messages]
        if roles[-1] is not Role.ASSISTANT:
            raise ValueError(f"the last message is of the role {self.messages[-1].role!r}; wanted an answer: add it")
        spoken = max((count for role, count in zip(roles, tags, strict=True) if role is Role.ASSISTANT))
        if spoken > 1:
            raise ValueError(f"an answer has {spoken} {AUDIO_TAG} tags; wanted at most one: join its speech")
        return self


def _located(audio: str | _TarRange | GivenCodes, folder: Path) -> Audio:
    if isinstance(audio, GivenCodes):
        return audio
    if isinstance(audio, _TarRange):
        return Recording(folder / audio.tar, span=(audio.offset, audio.size))
    path, _, member = audio.partition(TAR_MEMBER)
    return Recording(folder / path, member or None)


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
        raise DataError(f"{where}: {path} holds no bytes at {offset}; wanted a recording: get it again")
    if len(data) > MAX_BYTES:
        raise DataError(f"{where}: {path} has over {MAX_BYTES >> 30} GB; wanted one recording: cut it")
    if (recording.member or recording.span) and len(data) < size:
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
    tar = recording.path
    if recording.member is None:
        return tar, *(recording.span or (0, MAX_BYTES + 1))
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


USUAL_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000})
"""Hz; another rate is nearly always a damaged header."""
_PERCENTILES = {"shortest": 0, "p5": 5, "median": 50, "p95": 95, "longest": 100}


class ManifestCheck:
    """Reads manifests one after the other; ids may not repeat in any of them. Of a bad sample only the line counts."""

    def __init__(self, report: Callable[[str], None], max_seconds: float = MAX_SECONDS) -> None:
        """report: called with each problem, `file:line: what is wrong`."""
        self.lines = self.problems = 0
        self._report, self._max_seconds = report, max_seconds
        self._first_of: dict[str, str] = {}
        self._forms, self._rates, self._codecs = Counter[str](), Counter[int](), Counter[str]()
        self._seconds, self._characters = array("d"), array("q")

    def summary(self) -> dict[str, Any]:
        """JSON values; lengths as shortest, 5th percentile, median, 95th and longest."""
        return {
            "lines": self.lines,
            "problems": self.problems,
            "samples": dict(sorted(self._forms.items())),
            "hours": round(sum(self._seconds) / 3600, 4),
            "recordings": len(self._seconds),
            "sample_rates": {str(rate): count for rate, count in sorted(self._rates.items())},
            "given_codes": dict(sorted(self._codecs.items())),
            "seconds": _spread(self._seconds),
            "characters": _spread(self._characters),
        }

    def read(self, path: Path) -> None:
        """Check every line of `path`, and decode every recording."""
        try:
            for line in read_lines(path):
                self.lines += 1
                self._check(line, path)
        except DataError as error:
            self._complain(str(error))

    def _check(self, line: Line, path: Path) -> None:
        try:
            sample = parse_line(line.content, path, line.number)
        except DataError as error:
            self._complain(str(error))
            return
        problems = [*self._repeated_id(sample), *self._bad_audios(sample)]
        for problem in problems:
            self._complain(problem)
        if not problems:
            self._forms[sample.form.value] += 1
            self._characters.append(sum(len(message.content) for message in sample.messages))

    def _repeated_id(self, sample: ManifestSample) -> Iterator[str]:
        if sample.id in self._first_of:
            first = self._first_of[sample.id]
            yield f"{sample.where}: the id {sample.id!r} is that of {first} too; give each sample its own"
        elif sample.id is not None:
            self._first_of[sample.id] = sample.where

    def _bad_audios(self, sample: ManifestSample) -> Iterator[str]:
        for number, audio in enumerate(sample.audios):
            where = f"{sample.where}: audios[{number}]"
            if isinstance(audio, GivenCodes):
                self._codecs[audio.codec] += 1
                continue
            try:
                wave = decode(read_bytes(audio, where), where, self._max_seconds)
            except DataError as error:
                yield str(error)
                continue
            self._rates[wave.sample_rate] += 1
            self._seconds.append(wave.seconds)
            if wave.sample_rate not in USUAL_RATES:
                yield f"{where} has the unusual sample rate of {wave.sample_rate} Hz; see to its header"

    def _complain(self, problem: str) -> None:
        self.problems += 1
        self._report(problem)


def _spread(values: array[Any]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(np.frombuffer(values, dtype=values.typecode), list(_PERCENTILES.values()))
    return {name: round(float(value), 3) for name, value in zip(_PERCENTILES, found, strict=True)}
