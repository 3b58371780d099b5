"""Sets that the `datasets` library can stream, as audio files and a manifest.

What each set's page says of it is in `assets/hub_sets.yaml`; the columns are looked for in the first row, so that a set
that has changed since is an error that names what it holds now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from vita_mctp.data.manifest import Form, parse_line
from vita_mctp.environment import require
from vita_mctp.errors import ConfigError, DataError, OutputError
from vita_mctp.progress import track
from vita_mctp.text.chat import ASR_INSTRUCTION, TTS_INSTRUCTION
from vita_mctp.text.vocabulary import AUDIO_TAG
from vita_mctp.yaml_file import read_yaml

MANIFEST_FILE = "manifest.jsonl"
_FILES_PER_FOLDER = 1000


class HubPart(NamedTuple):
    """One repository, configuration and split; data_files: which of its files, None for all."""

    repository: str
    config: str | None
    split: str
    data_files: str | None = None


@dataclass(frozen=True)
class HubSet:
    """question, answer: columns of text; a dot reaches into a column that is an object. audio: column of recordings.

    messages: column with a whole conversation, instead of question and answer.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # as it is read from YAML

    form: Form
    parts: tuple[HubPart, ...]
    audio: str | None = None
    question: tuple[str, ...] = ()
    """Several are joined by an empty line, empty ones left out."""
    answer: str | None = None
    messages: str | None = None


_SETS = read_yaml(Path(__file__).parents[1] / "assets" / "hub_sets.yaml")
HUB_SETS = TypeAdapter(dict[str, HubSet]).validate_python(_SETS)


@dataclass(frozen=True)
class Fetched:
    """skipped: rows that are no valid sample, such as those with an empty text."""

    manifest: Path
    samples: int
    skipped: int


def find_hub_set(name: str) -> HubSet:
    """Raises ConfigError for a name that is not in `HUB_SETS`."""
    if name not in HUB_SETS:
        known = ", ".join(sorted(HUB_SETS))
        raise ConfigError(f"{name!r} is no set that can be streamed; known are {known}; SOURCES.md tells of the others")
    return HUB_SETS[name]


def fetch(hub_set: HubSet, folder: Path, limit: int | None = None) -> Fetched:
    """Write recordings as they are on the hub, and a manifest of at most `limit` rows, to `folder`.

    The manifest gets its name last. Raises MissingExtraError without `datasets`, DataError for a set that cannot be
    streamed or has other columns, OutputError.
    """
    manifest, samples, skipped = folder / MANIFEST_FILE, 0, 0
    part = folder / f".{MANIFEST_FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for number, row in enumerate(track(islice(stream_rows(hub_set), limit), "rows", limit)):
                line = _line(hub_set, row, folder, number)
                file.write(line)
                samples, skipped = samples + bool(line), skipped + (not line)
        part.replace(manifest)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; free space and run it again") from error
    return Fetched(manifest, samples, skipped)


def stream_rows(hub_set: HubSet) -> Iterator[Mapping[str, Any]]:
    """The set's rows as they come; a recording is {"bytes", "path"}, not decoded. Raises what `fetch` raises."""
    require("streaming from the hub", "data", "datasets")
    import datasets

    for part in hub_set.parts:
        try:
            opened = datasets.load_dataset(
                part.repository, part.config, split=part.split, data_files=part.data_files, streaming=True
            )
            if hub_set.audio:
                opened = opened.cast_column(hub_set.audio, datasets.Audio(decode=False))
            yield from _checked(iter(opened), hub_set, part)
        except (OSError, ValueError, RuntimeError, KeyError) as error:  # what datasets raises for hub and network
            raise DataError(
                f"cannot stream {part.repository} ({' '.join(str(error).split())[:300]}); see whether its terms are "
                "accepted (hf auth login), the network is there, and the set is still as HUB_SETS says"
            ) from error


def _checked(rows: Iterator[Mapping[str, Any]], hub_set: HubSet, part: HubPart) -> Iterator[Mapping[str, Any]]:
    columns = [*hub_set.question, hub_set.answer, hub_set.audio, hub_set.messages]
    needed = {column.partition(".")[0] for column in columns if column}
    for number, row in enumerate(rows):
        if number == 0 and (missing := sorted(needed - set(row))):
            raise DataError(
                f"{part.repository} lacks the columns {missing}; it has {sorted(row)}: mend its entry in HUB_SETS"
            )
        yield row


def _line(hub_set: HubSet, row: Mapping[str, Any], folder: Path, number: int) -> bytes:
    """The row's manifest line, its recording written; empty for a row that makes no valid sample."""
    audios: list[str] = []
    messages = _messages(hub_set, row)
    if hub_set.audio:
        recording = row[hub_set.audio] or {}
        if not recording.get("bytes"):
            return b""
        suffix = Path(recording.get("path") or "").suffix or ".audio"
        audios = [f"audio/{number // _FILES_PER_FOLDER:06d}/{number:09d}{suffix}"]
    values = {"messages": messages, "audios": audios, "id": f"{number:09d}"}
    line = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        parse_line(line, folder / MANIFEST_FILE, number + 1)
    except DataError:
        return b""
    for name in audios:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(recording["bytes"])
    return line + b"\n"


def _messages(hub_set: HubSet, row: Mapping[str, Any]) -> list[dict[str, str]]:
    if hub_set.messages:
        return [_turn(each) for each in row[hub_set.messages] or []]
    answer = _column(row, hub_set.answer or "")
    asked = "\n\n".join(filter(None, (_column(row, column) for column in hub_set.question)))
    question, answer = {
        Form.ASR: (f"{ASR_INSTRUCTION}\n{AUDIO_TAG}", answer),
        Form.TTS: (f"{TTS_INSTRUCTION}\n{answer}", AUDIO_TAG if answer else ""),
        Form.SPEECH_QA: (AUDIO_TAG, answer),
        Form.TEXT: (asked, answer),
    }[hub_set.form]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _turn(values: Mapping[str, Any]) -> dict[str, str]:
    """A message of either usual shape: role and content, or from and value."""
    role, content = values.get("role") or values.get("from"), values.get("content") or values.get("value")
    return {"role": str(role or ""), "content": str(content or "")}


def _column(row: Mapping[str, Any], name: str) -> str:
    first, _, rest = name.partition(".")
    value = row.get(first)
    return _column(value or {}, rest) if rest else str(value or "").strip()
