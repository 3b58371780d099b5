"""A benchmark run: cases are answered, the answers heard, both scored. Killed anywhere, it goes on where it stopped.

The run's folder, in the order in which it fills:

    run.json        what was asked for; another run cannot go on in the same folder
    cases.jsonl     the samples, and questions/ with their recordings where they come from the hub
    answers.jsonl   one entry for each case, in the order they came, and audio/ID.wav
    heard.jsonl     the judge's transcripts of the same
    sound.jsonl     figures of how they sound, where some are asked for
    verdicts.jsonl  a language model's, where one judges the answers
    rows.jsonl      one row for each case, failures too, in the set's order; made anew of all the above
    summary.json    the figures, computed from the rows, and all that they depend on

How many processes share the work decides nothing but the time it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vita_mctp.environment import Environment
from vita_mctp.errors import ConfigError
from vita_mctp.evaluation.answer_scores import LLM_PREFIX, AnswerRule, answer_rule
from vita_mctp.evaluation.cases import Case, case_of
from vita_mctp.evaluation.datasets import ASR, SQA, TTS, BenchmarkSet, read_cases
from vita_mctp.evaluation.journal import Journal, cannot_write, parse_lines
from vita_mctp.evaluation.judge import Listener
from vita_mctp.evaluation.pool import Entry, Progress, Work, complete
from vita_mctp.evaluation.results import SOUND, SPEECH, TEXT, Answers, Figure, ResultRow, Score, figures, score_text
from vita_mctp.evaluation.systems import Asking, System
from vita_mctp.evaluation.text_scores import TextRule, text_rule
from vita_mctp.evaluation.work import Answering, Hearing, Sounding, check_sound
from vita_mctp.files import write_whole
from vita_mctp.nano.rows import NO_AUDIO, NO_TEXT
from vita_mctp.types import Task

ROWS, SUMMARY = "rows.jsonl", "summary.json"
TASKS = {ASR: Task.ASR, TTS: Task.TTS, SQA: Task.SPEECH_TO_SPEECH}


@dataclass(frozen=True)
class Order:
    """All that a run's rows depend on. data: the set's folder; None streams it. judge: None hears no sound.

    sound: rules for how answers sound. limit: of samples, from the first; partial: a folder with fewer samples than the
    set will do.
    """

    dataset: str
    asking: Asking
    rules: tuple[str, ...]
    judge: str | None
    data: str | None = None
    sound: tuple[str, ...] = ()
    limit: int | None = None
    partial: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rules": list(self.rules), "sound": list(self.sound)}


@dataclass(frozen=True)
class Tools:
    """How to open, in each process, what answers and what listens; the number is the process's, from 0.

    judge_version: the listener and its packages; None when nothing is heard. weights: the hash of what answers.
    device: where it computes.
    """

    open_system: Callable[[int], System]
    open_judge: Callable[[int], Listener] | None
    judge_version: str | None
    weights: str
    device: str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """A finished run: what summary.json says, and the same as figures."""

    summary: dict[str, Any]
    figures: tuple[Figure, ...]


def evaluate(
    benchmark: BenchmarkSet,
    order: Order,
    folder: Path,
    tools: Tools,
    around: Environment,
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """Runs, or goes on with, the run in `folder`, and writes its rows and summary.

    Raises ConfigError for a folder that holds another run, DataError for a set that is not as published,
    EndpointError when a server fails: what was done is kept.
    """
    scorers = _Scorers.of(benchmark, order, folder)
    _claim(folder, order, tools)
    cases = _cases(benchmark, order, folder)
    versions = scorers.versions | check_sound(order.sound, cases)

    def do(name: str, work: Work, wanted: Sequence[Case]) -> dict[str, Entry]:
        return complete(Journal(folder / name), work, wanted, processes, progress)

    answers = do("answers.jsonl", Answering(tools.open_system, TASKS[benchmark.task], folder), cases)
    audible = [case for case in cases if answers[case.id]["audio"] is not None]
    heard = do("heard.jsonl", Hearing(tools.open_judge, folder), audible) if tools.open_judge is not None else {}
    sound = do("sound.jsonl", Sounding(order.sound, folder), audible) if order.sound else {}
    names = tuple(dict.fromkeys(name for entry in sound.values() for name in entry["figures"])) or order.sound
    rows = [scorers.row(case, answers[case.id], heard.get(case.id), sound.get(case.id), names) for case in cases]
    found = figures(rows, order.asking.seed)
    summary = _summary(benchmark, order, tools, around, versions, rows, found)
    _write(folder / ROWS, "".join(row.as_line() for row in rows))
    _write(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return Outcome(summary, tuple(found))


@dataclass(frozen=True)
class _Scorers:
    """The rules of a run, and what they are asked about."""

    texts: tuple[TextRule, ...]
    answers: tuple[Answers, ...]
    sides: tuple[str, ...]

    @classmethod
    def of(cls, benchmark: BenchmarkSet, order: Order, folder: Path) -> _Scorers:
        if benchmark.task == TTS and order.judge is None:
            raise ConfigError("the task tts is scored by what a judge hears; name one")
        sides = {ASR: (TEXT,), TTS: (SPEECH,), SQA: (TEXT, SPEECH)[: 1 if order.judge is None else 2]}
        if benchmark.task != SQA:
            return cls(tuple(text_rule(name) for name in order.rules), (), sides[benchmark.task])
        verdicts = Journal(folder / "verdicts.jsonl")
        answers = [Answers(answer_rule(n), verdicts if n.startswith(LLM_PREFIX) else None) for n in order.rules]
        return cls((), tuple(answers), sides[SQA])

    @property
    def versions(self) -> dict[str, str]:
        rules: list[TextRule | AnswerRule] = [*self.texts, *(answers.rule for answers in self.answers)]
        return {rule.name: rule.version for rule in rules}

    def row(
        self, case: Case, answer: Entry, heard: Entry | None, sound: Entry | None, names: Sequence[str]
    ) -> ResultRow:
        """names: of the figures of sound; a sample without them scores 0 in each."""
        failure = answer["failure"] or self._lacking(answer)
        transcript = "" if heard is None else heard["transcript"]
        for entry in (heard, sound):
            failure = failure or (entry and entry["failure"])
        said = {TEXT: answer["text"], SPEECH: transcript}
        scores: list[Score] = []
        for side in self.sides:
            scores += [score_text(rule, case, said[side], side) for rule in self.texts]
            for rule in self.answers:
                score, undecided = rule.score(case, said[side], side)
                scores.append(score)
                failure = failure or undecided
        measured = {} if sound is None else sound["figures"]
        scores += [Score(name, SOUND, measured.get(name, 0.0), 1, "", "") for name in names]
        kept = {name: value for name, value in answer.items() if name not in ("id", "failure")}
        known = (case.id, case.prompt, case.references)
        return ResultRow(*known, transcript=transcript, scores=tuple(scores), failure=failure, **kept)

    def _lacking(self, answer: Entry) -> str | None:
        if SPEECH in self.sides and answer["audio"] is None:
            return NO_AUDIO
        return NO_TEXT if self.sides == (TEXT,) and not answer["text"] else None


def _claim(folder: Path, order: Order, tools: Tools) -> None:
    """Writes run.json, or finds that it asks for the same, of the same weights and judge."""
    path, behind = folder / "run.json", {"weights": tools.weights, "judge_version": tools.judge_version}
    wanted = json.loads(json.dumps(order.as_dict() | behind))
    if not path.exists():
        _write(path, json.dumps(wanted) + "\n")
        return
    (kept,) = parse_lines(path.read_text(encoding="utf-8"), path, dict)
    if differing := sorted(key for key in wanted.keys() | kept.keys() if wanted.get(key) != kept.get(key)):
        told = "; ".join(f"{key} was {kept.get(key)!r} and is {wanted.get(key)!r}" for key in differing)
        raise ConfigError(f"{folder} holds another run ({told}); name another folder, or ask for the same to go on")


def _cases(benchmark: BenchmarkSet, order: Order, folder: Path) -> list[Case]:
    """As read the first time; a run that goes on does not depend on the hub."""
    path = folder / "cases.jsonl"
    if path.exists():
        return parse_lines(path.read_text(encoding="utf-8"), path, case_of)
    data = None if order.data is None else Path(order.data)
    cases = read_cases(benchmark, data, folder / "questions", order.limit, partial=order.partial)
    _write(path, "".join(json.dumps(case.as_dict(), ensure_ascii=False) + "\n" for case in cases))
    return cases


def _summary(
    benchmark: BenchmarkSet,
    order: Order,
    tools: Tools,
    around: Environment,
    versions: dict[str, str],
    rows: Sequence[ResultRow],
    found: Sequence[Figure],
) -> dict[str, Any]:
    seconds, sound = sum(row.total_seconds for row in rows), sum(row.audio_seconds for row in rows)
    return {
        "task": benchmark.task,
        "dataset": {name: value for name, value in asdict(replace(benchmark, hub=None)).items() if name != "hub"},
        "order": order.as_dict(),
        "weights": tools.weights,
        "device": tools.device,
        "mode": ", ".join(dict.fromkeys(row.mode for row in rows if row.mode)) or order.asking.mode,
        "judge": tools.judge_version,
        "rules": versions,
        "n_total": len(rows),
        "n_failed": sum(row.failure is not None for row in rows),
        "whole_set": len(rows) == benchmark.samples,
        "figures": [{"rule": each.rule, "on": each.on, **asdict(each.estimate)} for each in found],
        "tokens_per_second": sum(row.tokens for row in rows) / seconds if seconds else None,
        "real_time_factor": seconds / sound if sound else None,
        "environment": asdict(around),
    }


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error) from None
