"""The nano benchmark: `evaluate_nano` runs its parts in every mode, and nano-voice twice without a model, as the floors
that the judge's own errors set: the answer voice itself, and its copy through the codec; and the page of all its runs.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vita_mctp.audio import read_wave
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.environment import CommandCost, load_in_words, look_around, measure_command, weights_hash
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.evaluation.benchmarks import (
    ASR,
    SQA,
    TTS,
    Question,
)
from vita_mctp.evaluation.metrics import SOUND, SPEECH, TEXT, Estimate
from vita_mctp.evaluation.pool import Progress
from vita_mctp.evaluation.report import interval, percent, table
from vita_mctp.evaluation.run import RunConfig, RunResult, evaluate
from vita_mctp.evaluation.systems import FINISHED, FinishedAnswers, LocalModel, Reply, System, SystemConfig
from vita_mctp.evaluation.text_scores import text_rule
from vita_mctp.evaluation.work import OWN
from vita_mctp.files import write_output
from vita_mctp.nano.cases import (
    BY_LOOP,
    JUDGE,
    PROMPTED,
    RIGHT_ANSWERS,
    SENTENCES,
    WHISPER,
    question_groups,
    recording,
    speak_samples,
)
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import AudioCodes, Task, Wave


def judges_here() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Judges and rules of sound; Whisper and DistillMOS where the extra `judge` is installed."""
    if all(find_spec(package) for package in ("faster_whisper", "distillmos")):
        return (JUDGE, BY_LOOP, WHISPER, PROMPTED), ("distillmos",)
    return (JUDGE, BY_LOOP), ()


@dataclass(frozen=True)
class CodecCopy:
    """A system that says what `recordings` says, through the codec of a model and back, at the same length."""

    speech_lm: SpeechLM
    recordings: Path

    def answer(self, question: Question, task: Task) -> Reply:
        wave = read_wave(self.recordings / f"{question.id}.wav")
        codes = self.speech_lm.hear(wave)
        if not isinstance(codes, AudioCodes):
            name = self.speech_lm.audio_frontend.name
            raise ConfigError(f"{name} gives features; wanted: codes that can be decoded; leave copies out")
        copy = self.speech_lm.audio_decoder.decode(codes)
        length = round(wave.seconds * copy.sample_rate)
        return Reply(wave=Wave(np.ascontiguousarray(copy.samples[:length]), copy.sample_rate))


@dataclass(frozen=True)
class NanoOptions:
    """What to measure and where to put it.

    n: samples of each group. work: the folder of speech, runs and summary.json. out: the Markdown page.
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
        values = ("--model", self.model, "--n", str(self.n), "--modes", *self.modes, "--seed", str(self.seed))
        return shlex.join(("vita-mctp", "evaluate", "nano", *values, "--out", str(self.out)))


def evaluate_nano(
    speech_lm: SpeechLM, options: NanoOptions, progress: Progress | None = None, **testing: Any
) -> dict[str, RunResult]:
    """Runs everything, writes the page, and summary.json at the end of all; the runs by name.

    original, copy: the floors; asr-MODE, sqa-MODE, tts-MODE: the model. Killed, the same command goes on; finished, it
    starts anew. testing: goes to each `evaluate`.
    Raises ConfigError for an unknown mode or n, MissingExtraError without the extra `eval` or a synthesiser,
    OutputError when a file cannot be written.
    """
    text_rule("plain")  # before hours of work, not after them
    for mode in options.modes:
        parse_mode(mode, num_blocks=0)
    model, speech, end = speech_lm.language_model, options.work / "speech", options.work / "summary.json"
    about: dict[str, Any] = {
        "command": options.command,
        "model": options.model,
        "weights": weights_hash(find_model(options.model)),
        "device": f"{model.dtype} on {model.device}",
        "seed": options.seed,
        "environment": asdict(look_around()),
    }
    if end.exists():
        shutil.rmtree(options.work / "runs", ignore_errors=True)
        end.unlink()
    corpus, waves = speak_samples(speech, options.n), speech / "waves"
    judges, sound = judges_here()
    question = recording(corpus, "eval_questions", 0)[0]
    about["cold"] = asdict(_measure_cold(options, question)) if options.measure_cold else None
    runs: dict[str, RunResult] = {}

    def run(name: str, benchmark: str, config: SystemConfig, system: System, per_n: int) -> None:
        runs[name] = evaluate(
            RunConfig(
                benchmark=benchmark,
                system=config,
                data=str(speech),
                limit=per_n * options.n,
                judges=judges,
                sound=() if benchmark.endswith(ASR) else sound,
            ),
            options.work / "runs" / name,
            device=model.device,
            open_system=lambda worker: system,
            weights=about["weights"],
            progress=progress,
            **testing,
        )

    floor = SystemConfig(model=f"{FINISHED}{waves}", seed=options.seed)
    run("original", "nano-voice", floor, FinishedAnswers(waves), 2)
    copied = floor.model_copy(update={"model": f"codec of {options.model}"})
    run("copy", "nano-voice", copied, CodecCopy(speech_lm, waves), 2)
    for mode in options.modes:
        config = SystemConfig(model=options.model, mode=mode, seed=options.seed)
        for task, per_n in ((ASR, len(question_groups())), (SQA, len(question_groups())), (TTS, 1)):
            run(f"{task}-{mode}", f"nano-{task}", config, LocalModel(speech_lm, config), per_n)
    write_output(options.out, markdown(about, {name: each.summary for name, each in runs.items()}).encode())
    write_output(end, (json.dumps(about, indent=1) + "\n").encode())
    return runs


def _measure_cold(options: NanoOptions, question: Path) -> CommandCost:
    """One `vita-mctp ask`, as a user starts it."""
    ask = ("ask", str(question), "-o", str(options.work / "answer.wav"), "--model", options.model)
    cost = measure_command((sys.executable, "-m", "vita_mctp.cli", *ask))
    if cost.exit_code:
        raise CheckpointError(f"vita-mctp {' '.join(ask)} ended with exit code {cost.exit_code}; run it to see why")
    return cost


_HELD_OUT = """\
The questions are held out in every form: as speech, as text, in every voice; each asks for a fact that other questions
ask for. The unseen voices are heard nowhere in training. The sentences are random ones in the answers' style, mostly
untrue, and never trained on. The judge, PocketSphinx with its own US English acoustic model, shares nothing with the
model but the domain's words and turns of phrase: its bigram comes from 20,000 such random sentences and every answer
once. Its own errors on the original voice are the floor of what can be reached."""
_COLUMNS = """\
- **n (failed)**: samples, and how many of them ended without text, without sound, with an error, or unfinished. All of
  them stay in every denominator: no text is every word deleted, no sound is a wrong answer.
- **WER**: substitutions, deletions and insertions of all samples over all words of their references (jiwer), lower
  case, without punctuation. Lower is better; it can exceed 100.
- **ASR WER**: the model's transcript of the question against its words.
- **text right**: the written answer is the right one, word for word. **heard right**: the judge, with its bigram,
  hears the right answer, word for word.
- **WER2, WER1**: what the judge hears in the wave, with a bigram of the domain's answer-like sentences (right and wrong
  alike) and in a word loop, where any word may follow any other: against the right answer (for sentences: the sentence
  to say), and, "own", against what the model itself wrote.
- **Whisper** (with the extra `judge`): base, which knows nothing of the domain; **prompted**: it has read four answers.
  Its numbers are written as words. **MOS**: DistillMOS's guess of people's opinion, 1 to 5; flite's own voice gets the
  first row's.
- **first sound**: seconds from the end of the question to the first decoded samples, in a warm process.
  **RTF**: computing seconds per second of answer, over all answers.
- Brackets: bootstrap 95 % interval over samples (1,000 draws)."""

_TEXT_RIGHT, _WER = ("exact", TEXT), ("plain", TEXT)
_HEARD = (("exact", SPEECH), ("plain", SPEECH), ("plain", f"{SPEECH}, {BY_LOOP}"))
_OWN_HEARD = (("plain", OWN), ("plain", f"{OWN}, {BY_LOOP}"))
_BY_WHISPER = [(rule, f"{SPEECH}, {judge}") for rule in ("exact", "plain") for judge in (WHISPER, PROMPTED)]
_MOS = ("distillmos mos", SOUND)
"""Columns of metrics: a rule, and what it was asked about."""


def markdown(about: dict[str, Any], runs: dict[str, dict[str, Any]]) -> str:
    """The whole page of the runs' summaries; rates in percent with their intervals."""
    modes = [name.removeprefix(f"{SQA}-") for name in runs if name.startswith(f"{SQA}-")]
    parts = [
        "# The nano model, heard by an independent judge",
        f"    {about['command']}",
        _HELD_OUT,
        "## Spoken questions, percent",
        _questions(modes, runs),
        "## Spoken sentences, percent",
        _sentences(modes, runs),
        *_whisper(modes, runs),
        "## Speed",
        _speeds(modes, runs),
        _cold(about["cold"]),
        "## Columns",
        _COLUMNS,
        "## Measured",
        _measured(about),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(
    part: dict[str, Any], columns: Sequence[tuple[str, str]], written: Callable[[Estimate], str] = percent
) -> list[str]:
    """Some of the metrics of a part of a run's summary."""
    found = {
        (each["rule"], each["on"]): Estimate(*(each[key] for key in ("value", "low", "high", "n")))
        for each in part["metrics"]
    }
    return [written(found[column]) for column in columns]


def _count(*parts: dict[str, Any]) -> str:
    return f"{parts[0]['n_total']} ({', '.join(str(part['n_failed']) for part in parts)})"


def _questions(modes: Sequence[str], runs: dict[str, dict[str, Any]]) -> str:
    head = ("mode", "voices", "n (failed: ASR, answer)", "ASR WER", "text right", "heard right", "WER2", "WER1")
    rows = []
    for mode in modes:
        for group, answered in runs[f"{SQA}-{mode}"]["by"]["voices"].items():
            transcribed = runs[f"{ASR}-{mode}"]["by"]["voices"][group]
            metrics = _cells(transcribed, [_WER]) + _cells(answered, [_TEXT_RIGHT, *_HEARD, *_OWN_HEARD])
            rows.append((mode, group, _count(transcribed, answered), *metrics))
    return table((*head, "own WER2", "own WER1"), rows)


def _sentences(modes: Sequence[str], runs: dict[str, dict[str, Any]]) -> str:
    speakers = {"original": "answer voice itself", "copy": "answer voice, copied by the codec"}
    speakers |= {f"{TTS}-{mode}": f"model, {mode}" for mode in modes}
    rows = [
        (who, said, _count(runs[name]["by"]["said"][said]), *_cells(runs[name]["by"]["said"][said], _HEARD))
        for said in (SENTENCES, RIGHT_ANSWERS)
        for name, who in speakers.items()
        if said in runs[name]["by"]["said"]
    ]
    return table(("who speaks", "what", "n (failed)", "heard right", "WER2", "WER1"), rows)


def _whisper(modes: Sequence[str], runs: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The section of what Whisper heard and how natural it was, where it was asked."""
    if not any(each["on"] == SOUND for each in runs["original"]["metrics"]):
        return ()
    opinion = partial(interval, scale=1, digits=2)
    parts = [
        (name, part, runs[name]["by"][tag][part])
        for name in ("original", "copy", *(f"{task}-{mode}" for mode in modes for task in (SQA, TTS)))
        for tag in ("voices", "said")
        for part in runs[name]["by"].get(tag, ())
    ]
    rows = [
        (
            name,
            what,
            str(part["n_total"]),
            *_cells(part, _BY_WHISPER),
            *_cells(part, [_MOS], opinion),
        )
        for name, what, part in parts
    ]
    head = ("run", "voices, or what is said", "n", "right", "right, prompted", "WER", "WER, prompted", "MOS")
    return "## Heard by Whisper, percent; and how natural", table(head, rows)


def _speeds(modes: Sequence[str], runs: dict[str, dict[str, Any]]) -> str:
    head = ("mode", "answers", "tokens/s", "first sound p50, s", "first sound p95, s", "RTF")
    rows = []
    for mode in modes:
        run = runs[f"{SQA}-{mode}"]
        seconds = [run[key] for key in ("first_sound_p50", "first_sound_p95", "real_time_factor")]
        shown = ["-" if value is None else f"{value:.3f}" for value in seconds]
        rows.append((mode, str(run["n_total"]), f"{run['tokens_per_second'] or 0:.1f}", *shown))
    return table(head, rows)


def _cold(cold: dict[str, Any] | None) -> str:
    if cold is None:
        return ""
    return (
        f"`vita-mctp ask` on one question, from a cold start to the written wave: {cold['seconds']:.2f} s, "
        f"peak memory {cold['peak_bytes'] / 2**20:.0f} MiB."
    )


def _measured(about: dict[str, Any]) -> str:
    machine = about["environment"]
    facts = {
        "date": machine["date"],
        "commit": machine["commit"],
        "model": f"{about['model']}, weights {about['weights']} (SHA-256), {about['device']}",
        "seed": about["seed"],
        "processor": "{processor}, {cores} cores, {threads} threads used, load ".format_map(machine)
        + load_in_words(machine["load"]),
        "versions": ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
