"""The nano model's table: from the speech it is judged by to the page of figures."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vita_mctp.audio import write_wave
from vita_mctp.checkpoints.settings import find_model
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.environment import CommandCost, look_around, measure_command, weights_hash
from vita_mctp.errors import CheckpointError
from vita_mctp.evaluation.journal import cannot_write
from vita_mctp.evaluation.judge import Judge
from vita_mctp.evaluation.text_scores import text_rule
from vita_mctp.nano.report import Run, markdown
from vita_mctp.nano.rows import Row, write_rows
from vita_mctp.nano.runner import plan_trials, run_trials
from vita_mctp.nano.samples import Sample, make_samples
from vita_mctp.nano.summary import Summary, summarise
from vita_mctp.speech_lm import SpeechLM

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class NanoOptions:
    """What to measure and where to put it.

    n: samples of each group. work: the folder of speech, rows.jsonl and summary.json. out: the Markdown page.
    measure_cold: also start `vita-mctp ask` in a process of its own.
    """

    model: str
    n: int
    modes: tuple[str, ...]
    work: Path
    out: Path
    seed: int = 0
    measure_cold: bool = True

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        what = ("--model", self.model, "--n", str(self.n), "--modes", *self.modes, "--seed", str(self.seed))
        return shlex.join(("vita-mctp", "evaluate", "nano", *what, "--out", str(self.out)))


def evaluate_nano(
    speech_lm: SpeechLM, options: NanoOptions, judge: Judge | None = None, progress: Progress | None = None
) -> Summary:
    """Makes the speech, runs every trial, and writes rows, summary and page; progress hears (done, in all).

    Raises ConfigError for an unknown mode or n, MissingExtraError without the extra `eval` or a synthesiser,
    OutputError when a file cannot be written.
    """
    text_rule("plain")  # before hours of work, not after them
    for mode in options.modes:
        parse_mode(mode, num_blocks=0)
    judge = judge or Judge.of_domain()
    around = look_around()
    samples = make_samples(options.work / "speech", options.n)
    trials = plan_trials(samples, options.modes)
    cold = _measure_cold(options, samples.questions[0]) if options.measure_cold else None
    rows = write_rows(options.work / "rows.jsonl", run_trials(speech_lm, judge, trials, options.seed))
    summary = summarise(list(_counted(rows, len(trials), progress)), options.seed)
    weights = speech_lm.model
    place = f"{str(weights.dtype).removeprefix('torch.')} on {weights.device}"
    named = (options.model, weights_hash(find_model(options.model)), place)
    run = Run(options.command, *named, options.seed, around, cold)
    _write(options.work / "summary.json", json.dumps({"run": asdict(run), **summary.as_dict()}, indent=1) + "\n")
    _write(options.out, markdown(summary, run))
    return summary


def _counted(rows: Iterator[Row], total: int, progress: Progress | None) -> Iterator[Row]:
    for done, row in enumerate(rows, start=1):
        if progress is not None:
            progress(done, total)
        yield row


def _measure_cold(options: NanoOptions, sample: Sample) -> CommandCost:
    """One `vita-mctp ask`, as a user starts it."""
    question, answer = options.work / "question.wav", options.work / "answer.wav"
    write_wave(question, sample.wave)
    ask: Sequence[str] = ("ask", str(question), "-o", str(answer), "--model", options.model)
    cost = measure_command((sys.executable, "-m", "vita_mctp.cli", *ask))
    if cost.exit_code:
        raise CheckpointError(f"vita-mctp {' '.join(ask)} ended with exit code {cost.exit_code}; run it to see why")
    return cost


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from None
