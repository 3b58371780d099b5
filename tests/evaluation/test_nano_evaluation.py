"""The whole evaluation on a model of random weights: every sample has its row, and the page says what the rows say."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vita_mctp import SpeechLM
from vita_mctp.cli import main
from vita_mctp.environment import measure_command
from vita_mctp.errors import AudioError, CheckpointError, ConfigError, DataError, OutputError
from vita_mctp.evaluation.judge import Judge
from vita_mctp.nano.benchmark import NanoOptions, evaluate_nano
from vita_mctp.nano.rows import Row, read_rows, write_rows
from vita_mctp.nano.runner import plan_trials, run_trial
from vita_mctp.nano.samples import QUESTION_GROUPS, RIGHT_ANSWERS, SENTENCES, make_samples
from vita_mctp.nano.summary import summarise
from vita_mctp.speech_lm import Answer
from vita_mctp.types import Done, StopReason, TextDelta, Timings, Wave, WaveChunk

N = 2
MODES = ("vanilla", "1,2")


class Always:
    """A listener that hears the same words in every wave, and counts the waves."""

    def __init__(self, text: str) -> None:
        self.text, self.heard = text, 0

    def transcribe(self, wave: Wave) -> str:
        self.heard += 1
        return self.text


@pytest.fixture(scope="module")
def listeners() -> tuple[Always, Always]:
    return Always("one two"), Always("three")


@pytest.fixture(scope="module")
def work(tiny_speech_folder: Path, tmp_path_factory: pytest.TempPathFactory, listeners: tuple[Always, Always]) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    options = NanoOptions(str(tiny_speech_folder), N, MODES, folder, folder / "page" / "nano.md", 3, False)
    evaluate_nano(SpeechLM.from_pretrained(tiny_speech_folder), options, Judge(*listeners))
    return folder


def test_every_sample_has_its_row(work: Path) -> None:
    rows = read_rows(work / "rows.jsonl")
    assert len({row.id for row in rows}) == len(rows)
    counts = Counter((row.task, row.mode, row.group) for row in rows)
    spoken = {("asr", mode, group) for mode in MODES for group in QUESTION_GROUPS}
    spoken |= {("answer", mode, group) for mode in MODES for group in QUESTION_GROUPS}
    spoken |= {("tts", mode, SENTENCES) for mode in MODES}
    spoken |= {(task, "-", group) for task in ("original", "copy") for group in (SENTENCES, RIGHT_ANSWERS)}
    assert counts == dict.fromkeys(spoken, N)


def test_random_output_is_wrong_and_unfinished_answers_are_failures(work: Path) -> None:
    rows = read_rows(work / "rows.jsonl")
    asked = [row for row in rows if row.task == "answer"]
    assert not any(row.text_right for row in rows if row.task in ("asr", "answer"))
    assert not any(row.heard_right for row in asked)
    for row in rows:
        if row.mode == "-":
            assert row.failure is None and row.bigram == "one two" and row.audio_seconds > 0.3
        else:
            assert (row.failure is None) or row.failure in ("no audio", "no text", "it never ended")
            assert row.tokens > 0 and row.total_seconds > 0 and row.stop in ("eos", "length")


def test_the_judge_hears_every_wave_twice_and_no_other(work: Path, listeners: tuple[Always, Always]) -> None:
    with_sound = [row for row in read_rows(work / "rows.jsonl") if row.audio_seconds > 0 and row.task != "asr"]
    assert [listener.heard for listener in listeners] == [len(with_sound)] * 2


def test_the_page_says_what_the_rows_say(work: Path) -> None:
    page, rows = (work / "page" / "nano.md").read_text(), read_rows(work / "rows.jsonl")
    summary = summarise(rows)
    assert json.loads((work / "summary.json").read_text())["lines"] == json.loads(
        json.dumps(summary.as_dict()["lines"])
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    asked = [row for row in cells if row[0] in MODES and row[1] in QUESTION_GROUPS]
    assert len(asked) == len(MODES) * len(QUESTION_GROUPS)
    for mode, group, count, *figures in asked:
        mine = [row for row in rows if (row.task, row.mode, row.group) == ("answer", mode, group)]
        assert int(count.split()[0]) == len(mine) == N
        heard = [row.bigram.split() for row in mine]
        words = sum(len(row.reference.split()) for row in mine)
        worst = sum(max(len(row.reference.split()), len(words)) for row, words in zip(mine, heard, strict=True))
        wer2 = float(figures[3].split()[0])
        assert figures[1].startswith("0.0 (") and 0 < wer2 <= 100 * worst / words + 0.05
        assert wer2 == pytest.approx(100 * summary.line("answer", mode, group).figures["wer2"].value, abs=0.05)


def test_the_page_states_how_it_was_made(work: Path) -> None:
    page = (work / "page" / "nano.md").read_text()
    assert re.search(
        r"    vita-mctp evaluate nano --model \S+ --n 2 --modes vanilla 1,2 --seed 3 --out \S+nano.md\n", page
    )
    assert re.search(r"weights [0-9a-f]{12} \(SHA-256\), float32 on cpu", page)
    for name in ("date", "commit", "seed", "processor", "versions"):
        assert f"\n- {name}: " in page


def made(**changes: object) -> Row:
    row = Row(
        "boost/answer/g/0", "answer", "boost", "g", "addition", "v", "what is one plus one", "one plus one is two"
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def test_failures_stay_in_every_denominator() -> None:
    right = {"text": "one plus one is two", "bigram": "one plus one is two", "loop": "one plus one two"}
    times = {"total_seconds": 0.5, "tokens": 20, "audio_seconds": 2.0}
    rows = [
        made(**right, **times, first_sound_seconds=0.1),
        made(id="1", **{**right, "bigram": "one plus one is ten"}, **times, first_sound_seconds=0.3),
        made(id="2", failure="no audio", text="one plus one is two", total_seconds=0.5, tokens=10),
        made(id="3", failure="the model is broken"),
    ]
    summary = summarise(rows)
    line = summary.line("answer", "boost", "g")
    assert (line.n, line.failed) == (4, 2)
    assert {name: figure.value for name, figure in line.figures.items()} == {
        "text_right": 3 / 4,
        "heard_right": 1 / 4,
        "wer2": (0 + 1 + 5 + 5) / 20,
        "wer1": (1 + 1 + 5 + 5) / 20,
        "own_wer2": (0 + 1 + 5 + 0) / 15,
        "own_wer1": (1 + 1 + 5 + 0) / 15,
    }
    (speed,) = summary.speeds
    assert speed.tokens_per_second == pytest.approx(50 / 1.5) and speed.real_time_factor == pytest.approx(1.5 / 4)
    assert speed.first_sound_p50 == pytest.approx(0.2) and speed.first_sound_p95 == pytest.approx(0.29)


def answer(text: str, samples: int) -> list[TextDelta | WaveChunk | Done]:
    done = Done(StopReason.EOS, "boost", text, Timings(1.0, tokens=3, audio_seconds=samples / 16000))
    return [TextDelta(text), WaveChunk(np.zeros(samples, np.float32), 16000, 0, True), done]


def refuses(*_: object, **__: object) -> Answer:
    raise AudioError("the question is too long")


@pytest.mark.parametrize(
    ("task", "stream", "failure"),
    [
        ("answer", lambda *_, **__: answer("one", 0), "no audio"),
        ("tts", lambda *_, **__: answer("", 0), "no audio"),
        ("asr", lambda *_, **__: answer("", 0), "no text"),
        ("answer", refuses, "the question is too long"),
        ("asr", refuses, "the question is too long"),
    ],
)
def test_a_trial_that_brings_nothing_is_a_failed_row(
    work: Path,
    tiny_speech_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    stream: Callable[..., object],
    failure: str,
) -> None:
    speech_lm = SpeechLM.from_pretrained(tiny_speech_folder)
    monkeypatch.setattr(speech_lm, "stream", stream)
    trial = next(trial for trial in plan_trials(make_samples(work / "speech", N), ["boost"]) if trial.task == task)
    row = run_trial(speech_lm, Judge(Always("heard"), Always("heard")), trial)
    assert row.failure == failure and row.bigram == row.loop == ""
    assert not row.heard_right and row.prompt == trial.sample.prompt


def test_samples_are_held_out_questions_and_each_group_asks_the_same(work: Path) -> None:
    from vita_mctp.nano.corpus.domain import build_domain

    samples = make_samples(work / "speech", N)
    domain = build_domain()
    right = {qa.question: qa.answer for qa in domain.held_out}
    assert not {sample.prompt for sample in samples.questions} & {qa.question for qa in domain.train + domain.text_only}
    assert all(sample.answer == right[sample.prompt] for sample in samples.questions)
    asked = {group: [one.prompt for one in samples.questions if one.group == group] for group in QUESTION_GROUPS}
    assert len({tuple(prompts) for prompts in asked.values()}) == 1
    assert [one.prompt for one in samples.answers] == [one.answer for one in samples.questions[:N]]
    assert {one.voice for one in samples.sentences + samples.answers} == {"flite:slt:1:1"}


@pytest.mark.parametrize("n", [0, 10_000])
def test_more_samples_than_the_domain_holds_out_are_refused(tmp_path: Path, n: int) -> None:
    with pytest.raises(ConfigError, match="holds out 1 to 300"):
        make_samples(tmp_path, n)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    rows = [made(), made(id="1", failure="no audio", first_sound_seconds=0.25)]
    assert list(write_rows(path, iter(rows))) == rows == read_rows(path)
    assert json.loads(path.read_text().splitlines()[0])["heard_right"] is False


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    list(write_rows(path, [made()]))
    path.write_text(path.read_text() + '{"id": "cut sho')
    with pytest.raises(DataError, match=r"rows\.jsonl:2 "):
        read_rows(path)


def test_rows_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        list(write_rows(tmp_path / "file" / "rows.jsonl", [made()]))


def test_the_cost_of_a_command_is_its_time_memory_and_end() -> None:
    held = measure_command([sys.executable, "-c", "import time; x = b'1' * 60_000_000; time.sleep(0.2); exit(3)"])
    assert held.exit_code == 3 and 0.2 <= held.seconds < 60
    assert 60_000_000 < held.peak_bytes < 150_000_000, "this process holds torch; that one does not"


def test_a_model_that_cannot_be_asked_ends_the_evaluation_at_once(tiny_speech_folder: Path, tmp_path: Path) -> None:
    options = NanoOptions(str(tmp_path / "nowhere"), 1, ("boost",), tmp_path, tmp_path / "nano.md")
    with pytest.raises(CheckpointError, match="exit code 2; run it to see why"):
        evaluate_nano(SpeechLM.from_pretrained(tiny_speech_folder), options, Judge(Always(""), Always("")))
    assert not (tmp_path / "nano.md").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--modes", "boost", "warp"], "unknown mode 'warp'"),
        (["--n", "301"], "301 samples of each group were wanted"),
    ],
)
def test_the_command_refuses_in_one_line(
    tiny_speech_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.setattr(Judge, "of_domain", lambda: Judge(Always(""), Always("")))
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "nano.md")]
    assert main(["evaluate", "nano", "--model", str(tiny_speech_folder), *places, *arguments]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "nano.md").exists()
