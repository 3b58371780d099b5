"""A summary as Markdown. Every number in it comes out of the summary; shares are percent, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vita_mctp.environment import CommandCost, Environment
from vita_mctp.evaluation.intervals import Estimate
from vita_mctp.nano.rows import ANSWER, ASR, COPY, ORIGINAL, TTS
from vita_mctp.nano.samples import RIGHT_ANSWERS, SENTENCES
from vita_mctp.nano.summary import Line, Speed, Summary

_FLOORS = {ORIGINAL: "answer voice itself", COPY: "answer voice, copied by the codec"}

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
- **first sound**: seconds from the end of the question to the first decoded samples, in a warm process.
  **RTF**: computing seconds per second of answer, over all answers.
- Brackets: bootstrap 95 % interval over samples (1,000 draws)."""

_HELD_OUT = """\
The questions are held out in every form: as speech, as text, in every voice; each asks for a fact that other questions
ask for. The unseen voices are heard nowhere in training. The sentences are random ones in the answers' style, mostly
untrue, and never trained on. The judge, PocketSphinx with its own US English acoustic model, shares nothing with the
model but the domain's words and turns of phrase: its bigram comes from 20,000 such random sentences and every answer
once. Its own errors on the original voice are the floor of what can be reached."""


@dataclass(frozen=True)
class Run:
    """How the rows came to be.

    place: the weights' type and device. cold: `vita-mctp ask` on one question in a new process; None: not measured.
    """

    command: str
    model: str
    weights: str
    place: str
    seed: int
    environment: Environment
    cold: CommandCost | None


def markdown(summary: Summary, run: Run) -> str:
    """The whole page."""
    parts = [
        "# The nano model, heard by an independent judge",
        f"    {run.command}",
        _HELD_OUT,
        "## Spoken questions, percent",
        _questions(summary),
        "## Spoken sentences, percent",
        _sentences(summary),
        "## Speed",
        _speeds(summary.speeds),
        _cold(run.cold),
        "## Columns",
        _COLUMNS,
        "## Measured",
        _measured(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _questions(summary: Summary) -> str:
    names = ("text_right", "heard_right", "wer2", "wer1", "own_wer2", "own_wer1")
    head = (
        "mode",
        "voices",
        "n (failed: ASR, answer)",
        "ASR WER",
        "text right",
        "heard right",
        "WER2",
        "WER1",
        "own WER2",
    )
    rows = []
    for line in (line for line in summary.lines if line.task == ANSWER):
        transcribed = summary.line(ASR, line.mode, line.group)
        figures = [percent(transcribed.figures["wer"]), *(percent(line.figures[name]) for name in names)]
        rows.append((line.mode, line.group, _count(transcribed, line), *figures))
    return table((*head, "own WER1"), rows)


def _sentences(summary: Summary) -> str:
    rows = []
    for line in summary.lines:
        if line.task in _FLOORS:
            rows.append((_FLOORS[line.task], line.group, _count(line), *_heard(line)))
        elif line.task == TTS:
            rows.append((f"model, {line.mode}", line.group, _count(line), *_heard(line)))
    order = (SENTENCES, RIGHT_ANSWERS)
    rows.sort(key=lambda row: order.index(row[1]))
    return table(("who speaks", "what", "n (failed)", "heard right", "WER2", "WER1"), rows)


def _heard(line: Line) -> list[str]:
    return [percent(line.figures[name]) for name in ("heard_right", "wer2", "wer1")]


def _count(*lines: Line) -> str:
    return f"{lines[0].n} ({', '.join(str(line.failed) for line in lines)})"


def _speeds(speeds: Sequence[Speed]) -> str:
    head = ("mode", "answers", "tokens/s", "first sound p50, s", "first sound p95, s", "RTF")
    return table(
        head,
        [
            (
                speed.mode,
                str(speed.n),
                f"{speed.tokens_per_second:.1f}",
                _seconds(speed.first_sound_p50),
                _seconds(speed.first_sound_p95),
                _seconds(speed.real_time_factor),
            )
            for speed in speeds
        ],
    )


def _cold(cold: CommandCost | None) -> str:
    if cold is None:
        return ""
    return (
        f"`vita-mctp ask` on one question, from a cold start to the written wave: {cold.seconds:.2f} s, "
        f"peak memory {cold.peak_bytes / 2**20:.0f} MiB."
    )


def _measured(run: Run) -> str:
    around = run.environment
    facts = {
        "date": around.date,
        "commit": around.commit,
        "model": f"{run.model}, weights {run.weights} (SHA-256), {run.place}",
        "seed": str(run.seed),
        "processor": f"{around.processor}, {around.cores} cores, {around.threads} threads used, load {around.load:.1f}",
        "versions": ", ".join(f"{name} {number}" for name, number in around.versions.items()),
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def percent(estimate: Estimate) -> str:
    return interval(estimate, 100, 1)


def interval(estimate: Estimate, scale: float, digits: int) -> str:
    """The figure and its interval, scaled; "-" where there is none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    value, low, high = (f"{scale * each:.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
