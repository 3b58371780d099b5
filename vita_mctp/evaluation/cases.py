"""What goes into an evaluation and what comes out of it: questions, cases, and one row for each with its scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from vita_mctp.errors import DataError
from vita_mctp.evaluation.intervals import Estimate, ratio
from vita_mctp.schema import Schema

TEXT, SPEECH, SOUND = "text", "speech", "sound"
"""What was scored: what the system wrote, what a judge heard it say, or how it sounds."""

_UNFIT = ("/", "\\", "\0")
Line = TypeVar("Line", bound=Schema)


class Question(Schema):
    """All that a system learns of a sample. What is right is not in it, so that nothing can depend on its length.

    text: the words to say, for tts; empty otherwise. audio: the recording to hear, for asr and sqa. voice: a recording
    of the voice to speak in, where the set has one. Neither file need exist: one that is missing fails its sample.
    """

    id: str
    text: str = ""
    audio: Path | None = None
    voice: Path | None = None


class Case(Schema):
    """A question, its words where the set tells them, and what is right: a transcript, or answers that all count.

    tags: what the sample is one of, such as the kind of question; metrics can be computed for each value of a tag.
    """

    question: Question
    prompt: str
    references: tuple[str, ...]
    tags: dict[str, str] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.question.id


def transcribe_case(name: str, audio: Path, transcript: str, **tags: str) -> Case:
    """A sample of speech recognition."""
    return Case(question=Question(id=name, audio=audio), prompt="", references=(transcript,), tags=tags)


def say_case(name: str, text: str, voice: Path | None = None, **tags: str) -> Case:
    """A sample of speech synthesis: what is right is what was to be said."""
    return Case(question=Question(id=name, text=text, voice=voice), prompt=text, references=(text,), tags=tags)


def answer_case(name: str, audio: Path, prompt: str, answers: Iterable[str], **tags: str) -> Case:
    """A spoken question."""
    return Case(question=Question(id=name, audio=audio), prompt=prompt, references=tuple(answers), tags=tags)


def check_ids(cases: Iterable[Case], where: str) -> list[Case]:
    """The cases, whose ids name their files. Raises DataError for an id that names no file or two samples."""
    found: dict[str, Case] = {}
    for case in cases:
        if case.id in found:
            raise DataError(f"{where} has two samples with the id {case.id!r}; wanted: a name for each; rename one")
        if case.id in ("", ".", "..") or any(sign in case.id for sign in _UNFIT):
            raise DataError(f"{where} has the id {case.id!r}; wanted: an id that can name a file; give another one")
        found[case.id] = case
    return list(found.values())


class Score(Schema):
    """One rule's result for one sample. A metric is sum(part) / sum(whole) over its samples.

    part, whole: edits and reference length; a sample's own rate, and 1, for a rule that means rates; 1 or 0, and 1, for
    answers; the value, and 1, for sound. reference, hypothesis: the texts as compared. reason: an answer rule's, or why
    there was nothing to score.
    """

    rule: str
    on: str
    part: float
    whole: float
    reference: str
    hypothesis: str
    reason: str = ""


class ResultRow(Schema):
    """One sample, whatever came of it. audio, a path in the run's folder, is None where no sound came.

    transcripts: by judge. mode: of decoding, where the system has such. failure: what went wrong, or None; such a
    sample is scored by what it brought: nothing at all is every word deleted, or a wrong answer. Seconds count from
    the moment the question is handed over.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    tags: dict[str, str] = Field(default_factory=dict)
    text: str
    audio: str | None
    transcripts: dict[str, str]
    scores: tuple[Score, ...]
    mode: str | None
    tokens: int
    total_seconds: float
    first_sound_seconds: float | None
    audio_seconds: float
    failure: str | None


@dataclass(frozen=True)
class Metric:
    """One rule over all samples."""

    rule: str
    on: str
    estimate: Estimate


def metrics(rows: Sequence[ResultRow], seed: int = 0) -> list[Metric]:
    """Every rule's metric over all rows, in the order of the first row's scores."""
    return [Metric(*key, ratio(parts, wholes, seed)) for key, (parts, wholes) in counted(rows).items()]


def counted(rows: Sequence[ResultRow]) -> Mapping[tuple[str, str], tuple[list[float], list[float]]]:
    """(rule, on) -> every sample's part, and every sample's whole, in the order of the rows."""
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for score in (score for row in rows for score in row.scores):
        parts, wholes = found.setdefault((score.rule, score.on), ([], []))
        parts.append(score.part)
        wholes.append(score.whole)
    return found


def by_tag(rows: Sequence[ResultRow], tag: str) -> dict[str, list[ResultRow]]:
    """The rows with each value of a tag, in order; rows without the tag are in none."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        if tag in row.tags:
            groups.setdefault(row.tags[tag], []).append(row)
    return groups


def read_lines(path: Path, schema: type[Line]) -> list[Line]:
    """The objects of a file of JSON lines. Raises DataError for a file that is not there, or naming the wrong line."""
    try:
        return parse_lines(path.read_text(encoding="utf-8"), path, schema)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; wanted: the folder of a finished run") from None


def parse_lines(text: str, path: Path, schema: type[Line]) -> list[Line]:
    """What the lines say. Raises DataError naming the line that says something else."""
    lines = text.removesuffix("\n").split("\n") if text else []
    return [_parse(line, f"{path}:{number}", schema) for number, line in enumerate(lines, start=1)]


def _parse(line: str, where: str, schema: type[Line]) -> Line:
    try:
        values: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: {error}; wanted: a JSON object; run the evaluation again") from None
    return schema.parse(values, where, DataError)


def as_lines(values: Iterable[Schema]) -> str:
    """What `parse_lines` takes."""
    return "".join(json.dumps(value.to_json_values(), ensure_ascii=False) + "\n" for value in values)
