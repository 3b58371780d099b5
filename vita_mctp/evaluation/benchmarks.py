"""A benchmark: what it is, how its samples are read and scored; and what a sample is: a question, and what is right.

`published` has those of the field, read from a folder in their published layout or streamed from the hub; others are
made on the spot. Rules and judges are those that the field and paper 003 score a set by; a run may ask for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from vita_mctp.data.hub import HubSet, stream_rows
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.files import write_output
from vita_mctp.schema import Schema
from vita_mctp.types import Task

ASR, TTS, SQA = "asr", "tts", "sqa"
TASKS = {ASR: Task.ASR, TTS: Task.TTS, SQA: Task.SPEECH_TO_SPEECH}

MANIFEST_SUFFIX = ".jsonl"

_REGISTRY = ("vita_mctp.evaluation.published", "vita_mctp.nano.cases", "vita_mctp.nano.human")
"""Modules with `BENCHMARKS`, imported when one is looked for: a higher level brings its own along."""

_UNFIT = ("/", "\\", "\0")


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


def distinct(answers: Any) -> tuple[str, ...]:
    """A text or a list of texts, in order, without blanks around them, empty ones and repetitions."""
    texts = [str(each).strip() for each in (answers if isinstance(answers, list | tuple) else [answers])]
    return tuple(dict.fromkeys(filter(None, texts)))


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


Reader = Callable[[Path, str], Iterator[Case]]
"""(the set's folder, the part of it: a split or a file) -> its cases. Raises DataError for what is not as published."""

Maker = Callable[[Path, str, int | None], Iterator[Case]]
"""(the folder to make them in, the part, how many at most) -> its cases."""


@dataclass(frozen=True)
class Benchmark:
    """part: the split, or the file, as the reader takes it. samples: of the whole part; None where releases differ.

    reader: of the published folder. hub: where it can be streamed from. maker: of a set that is not published but made.
    judges: what transcribes the answers' sound, the main one first; none for asr. tags: for whose values metrics are
    also given one by one. fingerprint: of the samples, where they may change between two starts of a run.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # as it is read from YAML

    name: str
    task: str
    language: str
    source: str
    part: str
    licence: str
    samples: int | None
    rules: tuple[str, ...]
    judges: tuple[str, ...] = ()
    reader: Reader | None = None
    hub: HubSet | None = None
    maker: Maker | None = None
    tags: tuple[str, ...] = ()
    fingerprint: str = ""

    def describe(self) -> str:
        """One line for a list of all."""
        size = "size varies" if self.samples is None else f"{self.samples} samples"
        way = "made on the spot" if self.reader is None else f"layout {self.reader.__name__}"
        return (
            f"{self.name}: {self.task}, {self.language}, {size}; {way}{', streamed' if self.hub else ''}; "
            f"{self.licence}; {self.source}"
        )


def all_benchmarks() -> dict[str, Benchmark]:
    """By name."""
    return {each.name: each for module in _REGISTRY for each in import_module(module).BENCHMARKS}


def find_benchmark(name: str, task: str | None = None) -> Benchmark:
    """By its name, or by the path of a manifest, of which the samples of `task` are one.

    Raises ConfigError for a name that is not known, or is another task's, DataError as `own_benchmark`.
    """
    if name.endswith(MANIFEST_SUFFIX):
        from vita_mctp.evaluation.published import own_benchmark

        return own_benchmark(Path(name), task or ASR)
    known = {each.name: each for each in all_benchmarks().values() if task in (None, each.task)}
    if name not in known:
        raise ConfigError(
            f"{name!r} is no benchmark{f' of the task {task}' if task else ''}; known are {', '.join(known)}"
        )
    return known[name]


def read_cases(
    benchmark: Benchmark, folder: Path | None, store: Path, limit: int | None = None, *, partial: bool = False
) -> list[Case]:
    """The first `limit` samples from the published layout in `folder`, or, without one, from the hub.

    store: where recordings from the hub, or made ones, are kept. partial: fewer samples than the whole set has will do.
    Raises DataError for a set that is not as published or, unless limited or partial, not whole; ConfigError where the
    hub does not have it.
    """
    where = benchmark.name if folder is None else str(folder)
    cases = check_ids(islice(_all_cases(benchmark, folder, store, limit), limit), where)
    if not cases:
        raise DataError(f"{where} has no samples of {benchmark.name}; give the folder that holds the set as published")
    if benchmark.samples not in (None, len(cases)) and limit is None and not partial:
        raise DataError(
            f"{where} has {len(cases)} samples, {benchmark.name} has {benchmark.samples}; get it all, or say --partial"
        )
    return cases


def _all_cases(benchmark: Benchmark, folder: Path | None, store: Path, limit: int | None) -> Iterator[Case]:
    if benchmark.maker is not None:
        return benchmark.maker(folder or store, benchmark.part, limit)
    if folder is not None and benchmark.reader is not None:
        return benchmark.reader(folder, benchmark.part)
    if benchmark.hub is not None:
        return _streamed(benchmark, benchmark.hub, store)
    raise ConfigError(f"{benchmark.name} cannot be streamed; get it from {benchmark.source} and give its folder")


def _streamed(benchmark: Benchmark, hub: HubSet, store: Path) -> Iterator[Case]:
    """Rows of the hub, numbered. A recording that a row lacks is not written, which fails its sample later."""
    assert hub.audio is not None and hub.answer is not None
    for number, row in enumerate(stream_rows(hub)):
        name, answer = f"{number:06d}", row[hub.answer]
        if benchmark.task == TTS:
            yield say_case(name, answer)
            continue
        recording: Mapping[str, Any] = row[hub.audio] or {}
        audio = (store / name).with_suffix(Path(recording.get("path") or "").suffix or ".wav")
        if recording.get("bytes"):
            write_output(audio, recording["bytes"])
        if benchmark.task == ASR:
            yield transcribe_case(name, audio, answer)
        else:
            yield answer_case(name, audio, row[hub.question[0]], distinct(answer))
