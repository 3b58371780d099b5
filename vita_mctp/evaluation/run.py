"""A benchmark run: cases are answered, then the answers heard and scored. Killed anywhere, it goes on where it stopped.

The run's folder, in the order in which it fills:

    run.json        what was asked for; another run cannot go on in the same folder
    cases.jsonl     the samples, and questions/ with their recordings where they come from the hub
    answers.jsonl   one entry for each case, in the order they came, and audio/ID.wav
    rows.jsonl      one row for each case, failures too: what judges heard and rules said; at the end in the set's order
    summary.json    the metrics, computed from the rows, and all that they depend on

How many processes share the work decides nothing but the time it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from vita_mctp.environment import look_around, quiet_libraries
from vita_mctp.errors import ConfigError
from vita_mctp.evaluation.benchmarks import ASR, TASKS, Benchmark, Case, find_benchmark, read_cases
from vita_mctp.evaluation.judges import Transcriber, judge_version, open_judge
from vita_mctp.evaluation.metrics import AnswerEntry, Metric, ResultRow, by_tag, metrics
from vita_mctp.evaluation.pool import Journal, Progress, as_lines, complete, read_lines
from vita_mctp.evaluation.systems import System, SystemConfig
from vita_mctp.evaluation.work import Scorer, answering, scoring
from vita_mctp.files import write_output
from vita_mctp.schema import Schema

CASES, ANSWERS, ROWS, SUMMARY = "cases.jsonl", "answers.jsonl", "rows.jsonl", "summary.json"
_FIRST_SOUND_PERCENTILES = (50, 95)


class RunConfig(Schema):
    """All that a run's rows depend on. rules, judges: None takes the benchmark's; no judges hear no sound.

    task: of a benchmark that is the path of one's own manifest. data: the set's folder; None streams it. sound: rules
    for how answers sound. limit: of samples, from the first; partial: a folder with fewer samples than the set will do.
    """

    benchmark: str
    task: str | None = None
    system: SystemConfig
    rules: tuple[str, ...] | None = None
    judges: tuple[str, ...] | None = None
    data: str | None = None
    sound: tuple[str, ...] = ()
    limit: int | None = Field(default=None, gt=0, le=1 << 31)
    partial: bool = False

    def completed(self, benchmark: Benchmark) -> RunConfig:
        """With the benchmark's rules and judges where none are named."""
        rules = benchmark.rules if self.rules is None else self.rules
        judges = benchmark.judges if self.judges is None else self.judges
        return self.model_copy(update={"rules": rules, "judges": () if benchmark.task == ASR else judges})


class RunFile(Schema):
    """run.json: the config, and what else decides what comes of it. versions: of the rules, by name. samples: the
    fingerprint of a manifest of one's own.
    """

    config: RunConfig
    samples: str = ""
    weights: str
    versions: dict[str, str]
    judge_versions: tuple[str, ...]


@dataclass(frozen=True)
class RunResult:
    """A finished run: its rows, what summary.json says, and the metrics over all rows."""

    rows: tuple[ResultRow, ...]
    summary: dict[str, Any]
    metrics: tuple[Metric, ...]


def evaluate(
    config: RunConfig,
    folder: Path,
    *,
    device: str = "cpu",
    processes: int = 1,
    open_system: Callable[[int], System] | None = None,
    weights: str | None = None,
    open_transcriber: Callable[[str, int], Transcriber] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Runs, or goes on with, the run in `folder`, and writes its rows and summary.

    device: where the model and the judges compute; "cuda" takes the GPUs in turn, one for each process.
    open_system: an adapter in place of what config names, opened once in each process, by whose number, from 0; then
    weights, the hash of what answers, is for the caller to give. open_transcriber: in place of the judges of that name.
    Raises ConfigError for a folder that holds another run, DataError for a set that is not as published,
    EndpointError when a server fails: what was done is kept.
    """
    benchmark = find_benchmark(config.benchmark, config.task)
    config = config.completed(benchmark)
    judges, task = config.judges or (), TASKS[benchmark.task]
    open_scorer = partial(Scorer, task, config.rules or (), judges, config.sound, folder)
    scorer = open_scorer()
    if open_system is None:
        config.system.check()
        open_system, weights = partial(_open_system, config.system, device), config.system.weights()
    known = tuple(judge_version(name) if open_transcriber is None else name for name in judges)
    open_transcriber = open_transcriber or partial(_open_judge, benchmark.language, device)
    samples, hash_of = benchmark.fingerprint, weights or "not here"
    run = RunFile(config=config, samples=samples, weights=hash_of, versions=scorer.versions, judge_versions=known)
    _claim(folder / "run.json", run)
    cases = _cases(benchmark, config, folder)
    scorer.check(cases)
    answer = partial(answering, open_system, task, folder)
    answers = complete(Journal(folder / ANSWERS, AnswerEntry), "answering", answer, cases, processes, progress)
    score = partial(scoring, open_scorer, open_transcriber, judges, answers)
    scored = complete(Journal(folder / ROWS, ResultRow), "scoring", score, cases, processes, progress)
    rows = tuple(scored[case.id] for case in cases)
    summary = _summary(benchmark, run, device, rows)
    result = RunResult(rows, summary, tuple(metrics(rows, config.system.seed)))
    write_output(folder / ROWS, as_lines(rows).encode())
    write_output(folder / SUMMARY, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    return result


def _open_system(config: SystemConfig, device: str, worker: int) -> System:
    quiet_libraries()
    return config.open(_device_of(device, worker))


def _open_judge(language: str, device: str, name: str, worker: int) -> Transcriber:
    return open_judge(name, language, _device_of(device, worker))


def _device_of(device: str, worker: int) -> str:
    if device != "cuda":
        return device
    import torch

    return f"cuda:{worker % max(torch.cuda.device_count(), 1)}"


def _claim(path: Path, run: RunFile) -> None:
    """Writes run.json, or finds that it asks for the same, of the same weights and judges.

    A folder without an answer holds no run yet, only what stopped one, such as a part of a set without `--partial`.
    """
    kept, asked = _flat(RunFile.read_json(path, ConfigError)) if path.exists() else {}, _flat(run)
    differing = sorted(key for key in asked if not kept or asked[key] != kept[key])
    if kept and differing and path.with_name(ANSWERS).exists():
        words = "; ".join(f"{key} was {kept[key]!r} and is {asked[key]!r}" for key in differing)
        raise ConfigError(
            f"{path.parent} holds another run ({words}); name another folder, or ask for the same to go on"
        )
    if differing:
        write_output(path, as_lines([run]).encode())
        path.with_name(CASES).unlink(missing_ok=True)


def _flat(run: RunFile) -> dict[str, Any]:
    return {**run.model_dump(exclude={"config"}), **run.config.model_dump()}


def _cases(benchmark: Benchmark, config: RunConfig, folder: Path) -> list[Case]:
    """As read the first time; a run that goes on does not depend on the hub."""
    path = folder / CASES
    if path.exists():
        return read_lines(path, Case)
    data = None if config.data is None else Path(config.data)
    cases = read_cases(benchmark, data, folder / "questions", config.limit, partial=config.partial)
    write_output(path, as_lines(cases).encode())
    return cases


def _summary(benchmark: Benchmark, run: RunFile, device: str, rows: Sequence[ResultRow]) -> dict[str, Any]:
    seed = run.config.system.seed
    keys = ("name", "task", "language", "source", "part", "licence", "samples")
    return {
        "task": benchmark.task,
        "benchmark": {key: getattr(benchmark, key) for key in keys},
        "config": run.config.to_json_values(),
        "weights": run.weights,
        "device": device,
        "mode": ", ".join(dict.fromkeys(row.mode for row in rows if row.mode)) or run.config.system.mode,
        "judges": list(run.judge_versions),
        "rules": run.versions,
        "whole_set": len(rows) == benchmark.samples,
        **_measured(rows, seed),
        **_speed(rows),
        "by": {
            tag: {value: _measured(part, seed) for value, part in by_tag(rows, tag).items()} for tag in benchmark.tags
        },
        "environment": asdict(look_around()),
    }


def _measured(rows: Sequence[ResultRow], seed: int) -> dict[str, Any]:
    return {
        "n_total": len(rows),
        "n_failed": sum(row.failure is not None for row in rows),
        "metrics": [{"rule": each.rule, "on": each.on, **asdict(each.estimate)} for each in metrics(rows, seed)],
    }


def _speed(rows: Sequence[ResultRow]) -> dict[str, Any]:
    """first_sound_*: percentiles of the seconds to the first sound. real_time_factor: all computing over all sound."""
    seconds, audio = sum(row.total_seconds for row in rows), sum(row.audio_seconds for row in rows)
    firsts = [row.first_sound_seconds for row in rows if row.first_sound_seconds is not None]
    return {
        "tokens_per_second": sum(row.tokens for row in rows) / seconds if seconds else None,
        "real_time_factor": seconds / audio if audio else None,
        **{f"first_sound_p{q}": float(np.percentile(firsts, q)) if firsts else None for q in _FIRST_SOUND_PERCENTILES},
    }
