"""A benchmark run accounts for every sample, survives kills, and says the same however its work was shared out."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vita_mctp.audio import write_wave
from vita_mctp.cli import main
from vita_mctp.errors import ConfigError, DataError, EndpointError
from vita_mctp.evaluation import answer_scores, work
from vita_mctp.evaluation.benchmarks import Question
from vita_mctp.evaluation.judges import Transcriber
from vita_mctp.evaluation.metrics import ResultRow
from vita_mctp.evaluation.pool import read_lines
from vita_mctp.evaluation.run import RunConfig, RunResult, evaluate
from vita_mctp.evaluation.sound_scores import SoundRule
from vita_mctp.evaluation.systems import FinishedAnswers, Reply, System
from vita_mctp.evaluation.text_scores import text_rule
from vita_mctp.types import Task, Wave

pytest.importorskip("pocketsphinx")
pytest.importorskip("whisper_normalizer")
RIGHT = {"0000": "what is seven plus three", "0001": "which day comes after wednesday", "0002": "which country is"}
TONE = Wave(np.sin(np.arange(8000) / 20, dtype=np.float32) / 2, 16_000)
Publish = Callable[[str], Path]


class Answering:
    """A system that says what it is told for each sample, counts its questions, and may be ended at the third."""

    def __init__(self, texts: dict[str, str], wave: Wave | None = None, ended_by: BaseException | None = None) -> None:
        self.texts, self.wave, self.ended_by = texts, wave, ended_by
        self.asked: list[Question] = []

    def answer(self, question: Question, task: Task) -> Reply:
        if len(self.asked) == 2 and self.ended_by is not None:
            raise self.ended_by
        self.asked.append(question)
        return Reply(self.texts[question.id[-4:]], self.wave)


class Judging:
    """A transcriber that hears the same in every wave, and may die at one of them."""

    def __init__(self, text: str, dies_at: int = -1) -> None:
        self.text, self.dies_at, self.heard = text, dies_at, 0

    def transcribe(self, wave: Wave) -> str:
        if self.heard == self.dies_at:
            raise EndpointError("the judge is gone")
        self.heard += 1
        return self.text


def run(
    folder: Path, data: Path, adapter: System, judge: Transcriber | None = None, name: str = "", **changes: Any
) -> RunResult:
    values = {"benchmark": name or "librispeech-test-clean", "system": {"model": "mine"}, "data": str(data)}
    weights = changes.pop("weights", None)
    values |= {"judges": ["judge"] if judge else [], "partial": True} | changes
    config = RunConfig.parse(values, "the test")
    heard = {} if judge is None else {"open_transcriber": lambda name, worker: judge}
    return evaluate(config, folder, open_system=lambda worker: adapter, weights=weights, **heard)


def rows_of(folder: Path) -> list[ResultRow]:
    return read_lines(folder / "rows.jsonl", ResultRow)


def test_the_error_rate_is_what_one_counts_by_hand(publish: Publish, tmp_path: Path) -> None:
    heard = {**RIGHT, "0001": "Which day comes before Wednesday?", "0002": ""}
    outcome = run(tmp_path / "run", publish("librispeech"), Answering(heard))
    (metric,) = outcome.metrics
    assert metric.estimate.value == pytest.approx((0 + 1 + 5) / (4 + 5 + 5))  # "what is 7 +3" is four words
    rows = rows_of(tmp_path / "run")
    assert [row.failure for row in rows] == [None, None, "no text"]
    assert [(row.scores[0].part, row.scores[0].whole) for row in rows] == [(0, 4), (1, 5), (5, 5)]
    assert rows[1].scores[0].reference == "which day comes after wednesday"
    assert outcome.summary["n_total"] == 3 and outcome.summary["n_failed"] == 1 and not outcome.summary["whole_set"]
    assert outcome.summary["rules"]["whisper_en"].startswith("whisper_en/1 (jiwer ")


def test_a_run_without_an_answer_may_be_asked_for_otherwise(publish: Publish, tmp_path: Path) -> None:
    """As the refusal itself advises: a set that is not whole wants `--partial`."""
    data, folder = publish("librispeech"), tmp_path / "run"
    with pytest.raises(DataError, match="--partial"):
        run(folder, data, Answering(RIGHT), partial=False)
    assert len(run(folder, data, Answering(RIGHT)).rows) == 3
    with pytest.raises(ConfigError, match="another run"):
        run(folder, data, Answering(RIGHT), partial=False)


def test_a_system_learns_nothing_of_what_is_right(publish: Publish, tmp_path: Path) -> None:
    """So no reference's length can bound an answer: it is told where the recording lies, and that is all."""
    system = Answering(RIGHT)
    run(tmp_path / "run", publish("librispeech"), system)
    assert set(Question.model_fields) == {"id", "text", "audio", "voice"}
    assert all(question.text == "" and question.audio is not None for question in system.asked)
    tts = Answering(RIGHT, TONE)
    run(tmp_path / "tts", publish("libritts"), tts, Judging("x"), "libritts-test-clean")
    assert tts.asked[0].text == "Seven plus three is ten."


@pytest.mark.parametrize("end", [KeyboardInterrupt(), EndpointError("the server is gone")])
def test_a_killed_run_goes_on_and_gives_the_same_rows(publish: Publish, tmp_path: Path, end: BaseException) -> None:
    data = publish("librispeech")
    run(tmp_path / "whole", data, Answering(RIGHT))
    with pytest.raises(type(end)):
        run(tmp_path / "killed", data, Answering(RIGHT, ended_by=end))
    journal = tmp_path / "killed" / "answers.jsonl"
    journal.write_text(journal.read_text()[:-20])  # a kill in the middle of a line
    again = Answering(RIGHT)
    run(tmp_path / "killed", data, again)
    assert [question.id[-4:] for question in again.asked] == ["0001", "0002"]
    assert (tmp_path / "killed" / "rows.jsonl").read_text() == (tmp_path / "whole" / "rows.jsonl").read_text()
    assert [len(line) > 2 for line in journal.read_text().splitlines()] == [True] * 3


def test_a_judge_that_dies_loses_nothing(publish: Publish, tmp_path: Path) -> None:
    data, system = publish("libritts"), Answering(RIGHT, TONE)
    with pytest.raises(EndpointError, match="gone"):
        run(tmp_path / "run", data, system, Judging("seven plus three is ten", dies_at=1), "libritts-test-clean")
    judge = Judging("seven plus three is ten")
    outcome = run(tmp_path / "run", data, system, judge, "libritts-test-clean")
    assert len(system.asked) == 3 and judge.heard == 2
    assert [row.transcripts for row in rows_of(tmp_path / "run")] == [{"judge": "seven plus three is ten"}] * 3
    assert outcome.summary["n_failed"] == 0


def test_answers_without_sound_stay_in_the_denominator(publish: Publish, tmp_path: Path) -> None:
    outcome = run(tmp_path / "run", publish("libritts"), Answering(RIGHT), Judging("never"), "libritts-test-clean")
    assert [row.failure for row in rows_of(tmp_path / "run")] == ["no audio"] * 3
    (metric,) = outcome.metrics
    assert metric.estimate.value == 1.0 and metric.estimate.n == 3


def test_answers_are_scored_written_and_spoken(publish: Publish, tmp_path: Path) -> None:
    """Llama Questions' layout; the judge mishears two of the three right answers."""
    texts = {"0000": "It is ten.", "0001": "Thursday, of course, comes after Wednesday", "0002": "England!"}
    outcome = run(tmp_path / "run", publish("jsonl"), Answering(texts, TONE), Judging("it is ten"), "llama-questions")
    metrics = {(each.rule, each.on): each.estimate.value for each in outcome.metrics}
    assert metrics == {
        ("contains", "text"): 1.0,
        ("contains", "speech"): pytest.approx(1 / 3),
        ("has_answer", "text"): 1.0,
        ("has_answer", "speech"): pytest.approx(1 / 3),
    }
    written = run(tmp_path / "written", publish_again(tmp_path), Answering(texts), None, "llama-questions")
    assert {each.on for each in written.metrics} == {"text"} and written.summary["n_failed"] == 0


def test_several_judges_are_told_apart_and_speech_is_held_against_its_own_text(
    publish: Publish, tmp_path: Path
) -> None:
    """The first judge is the run's own. Text and speech are the right answer; the second judge hears otherwise."""
    data = publish("jsonl")
    (data / "test.jsonl").write_text(
        '{"audio": "audio/x-0000.wav", "prompt": "?", "reference": ["it is ten", "ten"]}\n'
    )
    judges = {"one": Judging("it is ten"), "two": Judging("it was ten or so")}
    values = {"benchmark": "llama-questions", "system": {"model": "mine"}, "data": str(data), "partial": True}
    config = RunConfig.parse({**values, "rules": ["exact", "plain"], "judges": list(judges)}, "the test")
    system = Answering({"0000": "It is ten."}, TONE)
    result = evaluate(
        config, tmp_path, open_system=lambda worker: system, open_transcriber=lambda name, worker: judges[name]
    )
    (row,) = result.rows
    assert row.transcripts == {"one": "it is ten", "two": "it was ten or so"} and row.failure is None
    assert {(each.rule, each.on): each.estimate.value for each in result.metrics} == {
        ("exact", "text"): 1.0,
        ("plain", "text"): 0.0,
        ("exact", "speech"): 1.0,
        ("plain", "speech"): 0.0,
        ("exact", "speech, two"): 0.0,
        ("plain", "speech, two"): 1.0,
        ("plain", "speech against its own text"): 0.0,
        ("plain", "speech against its own text, two"): 1.0,
    }


def publish_again(tmp_path: Path) -> Path:
    return tmp_path / "jsonl"


def test_an_empty_answer_is_wrong_even_where_nothing_was_wanted(publish: Publish, tmp_path: Path) -> None:
    data = publish("jsonl")
    (data / "test.jsonl").write_text('{"audio": "audio/x-0000.wav", "prompt": "?", "reference": ["!"]}\n')
    outcome = run(tmp_path / "run", data, Answering({"0000": " "}), None, "llama-questions")
    assert [each.estimate.value for each in outcome.metrics] == [0.0, 0.0]
    assert rows_of(tmp_path / "run")[0].failure == "no text"


def test_sound_is_scored_and_a_sample_without_any_scores_nothing(publish: Publish, tmp_path: Path) -> None:
    pytest.importorskip("speechmos")
    pytest.importorskip("zhon")

    class Sometimes(Answering):
        def answer(self, question: Question, task: Task) -> Reply:
            reply = super().answer(question, task)
            return dataclasses.replace(reply, wave=None) if question.id.endswith("2") else reply

    long = Wave(np.tile(TONE.samples, 3), 16_000)
    system, name = Sometimes(RIGHT, long), "seed-tts-en"
    outcome = run(tmp_path / "run", publish("seed_tts"), system, Judging("x"), name, sound=["dnsmos"])
    (overall,) = (each.estimate for each in outcome.metrics if each.rule == "dnsmos ovrl_mos")
    parts = [next(s.part for s in row.scores if s.rule == "dnsmos ovrl_mos") for row in rows_of(tmp_path / "run")]
    assert parts[0] == parts[1] >= 1 and parts[2] == 0 and overall.value == pytest.approx(2 * parts[0] / 3)
    assert outcome.summary["rules"]["dnsmos"].startswith("dnsmos/1 (speechmos")
    with pytest.raises(ConfigError, match="there is no sound rule 'pesq'"):
        run(tmp_path / "voiceless", publish("libritts"), system, Judging("x"), "libritts-test-clean", sound=["pesq"])


def test_a_silent_or_unfinished_answer_is_a_failure_and_is_scored(publish: Publish, tmp_path: Path) -> None:
    silent = Wave(np.zeros(8000, np.float32), 16_000)
    run(tmp_path / "silent", publish("libritts"), Answering(RIGHT, silent), Judging("x"), "libritts-test-clean")
    assert all(
        "silent" in (row.failure or "") and row.transcripts == {"judge": ""} for row in rows_of(tmp_path / "silent")
    )

    class Endless(Answering):
        def answer(self, question: Question, task: Task) -> Reply:
            return dataclasses.replace(super().answer(question, task), finished=False)

    run(tmp_path / "endless", publish("librispeech"), Endless(RIGHT))
    rows = rows_of(tmp_path / "endless")
    assert {row.failure for row in rows} == {"it never ended"} and rows[0].scores[0].part == 0


@pytest.mark.parametrize("change", [{"rules": ["plain"]}, {"system": {"model": "another"}}, {"limit": 2}])
def test_another_run_cannot_go_on_in_the_same_folder(publish: Publish, tmp_path: Path, change: dict[str, Any]) -> None:
    data = publish("librispeech")
    run(tmp_path / "run", data, Answering(RIGHT))
    with pytest.raises(ConfigError, match=f"holds another run \\({next(iter(change))} was"):
        run(tmp_path / "run", data, Answering(RIGHT), **change)


def test_weights_that_have_changed_do_not_go_on(publish: Publish, tmp_path: Path) -> None:
    data = publish("librispeech")
    run(tmp_path / "run", data, Answering(RIGHT), weights="0123")
    with pytest.raises(ConfigError, match="weights was '0123' and is '4567'"):
        run(tmp_path / "run", data, Answering(RIGHT), weights="4567")


def test_a_part_of_a_set_must_be_asked_for(publish: Publish, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 3 samples, librispeech-test-clean has 2620"):
        run(tmp_path / "run", publish("librispeech"), Answering(RIGHT), partial=False)
    limited = run(tmp_path / "two", tmp_path / "librispeech", Answering(RIGHT), partial=False, limit=2)
    assert limited.summary["n_total"] == 2


def test_a_language_model_is_asked_once_for_each_verdict(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = iter(["yes", "yes", "no", "maybe", *["no"] * 3])

    class Client:
        chat = property(lambda self: self)
        completions = property(lambda self: self)

        def create(self, **_: object) -> object:
            return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=next(replies)))])

    monkeypatch.setattr(answer_scores, "open_client", lambda address, purpose: (Client(), "model"))
    data, texts = publish("jsonl"), {"0000": "ten", "0001": "thursday", "0002": "england"}
    rules = ["llm:http://localhost/v1#model"]
    run(tmp_path / "run", data, Answering(texts), None, "llama-questions", rules=rules)
    first = rows_of(tmp_path / "run")
    assert [row.scores[0].part for row in first] == [1, 0, 0]
    assert first[1].failure is not None and "maybe" in first[1].failure
    run(tmp_path / "run", data, Answering(texts), None, "llama-questions", rules=rules)
    assert rows_of(tmp_path / "run") == first and next(replies, None) is None


def finished(folder: Path) -> Path:
    """Answers that another program has made, all but one of which are missing."""
    folder.mkdir()
    write_wave(folder / "1089-134686-0000.wav", TONE)
    return folder


def test_two_processes_give_what_one_gives(publish: Publish, tmp_path: Path) -> None:
    """The command, on finished answers: a missing wav fails its sample; the judge is pocketsphinx."""
    pytest.importorskip("zhon")
    system = f"wavs:{finished(tmp_path / 'finished')}"
    command = ["evaluate", "tts", "seed-tts-en", "--data", str(publish("seed_tts")), "--partial", "--model", system]
    for processes in ("1", "2"):
        out = ["--out", str(tmp_path / processes), "--processes", processes, "--judge", "pocketsphinx-nano"]
        assert main([*command, *out]) == 0
    rows = rows_of(tmp_path / "1")
    assert rows == rows_of(tmp_path / "2")
    assert rows[0].failure is None
    assert all("cannot read" in (row.failure or "") and row.scores[0].part == 1.0 for row in rows[1:])
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("1", "2"))
    assert {**one, "environment": None} == {**two, "environment": None}
    assert one["judges"][0].startswith("pocketsphinx-nano (pocketsphinx 5") and one["weights"] == "not here"


def test_the_nano_model_is_evaluated_by_the_command(
    publish: Publish, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spoken questions of its domain, heard by a recogniser: it says england where england is right."""
    data = publish("jsonl")
    (data / "audio" / "1089-134686-0001.flac").unlink()
    command = ["evaluate", "sqa", "llama-questions", "--data", str(data), "--limit", "3", "--mode", "boost"]
    assert main([*command, "--judge", "pocketsphinx-nano", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "3 samples, 1 failed" in printed and printed.endswith(f"{tmp_path / 'run'}\n")
    rows = rows_of(tmp_path / "run")
    assert rows[0].text == "seven plus three is ten" and rows[0].audio == "audio/1089-134686-0000.wav"
    assert (tmp_path / "run" / rows[0].audio).exists() and rows[0].total_seconds > 0 and rows[0].tokens > 0
    assert rows[0].mode == "boost" and rows[1].mode is None
    assert rows[1].failure is not None and "cannot read" in rows[1].failure and rows[1].audio is None
    assert [score.part for score in rows[1].scores] == [0, 0, 0, 0]


@pytest.mark.slow
def test_the_command_killed_by_the_system_goes_on(publish: Publish, tmp_path: Path) -> None:
    """SIGKILL after the first answer: the same command then gives the rows of a run left alone, but for its times."""
    command = [sys.executable, "-m", "vita_mctp.cli", "evaluate", "sqa", "llama-questions", "--partial"]
    command += ["--data", str(publish("jsonl")), "--judge", "pocketsphinx-nano", "--mode", "boost", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    answers = tmp_path / "killed" / "answers.jsonl"
    with subprocess.Popen([*command, str(answers.parent)]) as process:
        while not answers.exists():
            time.sleep(0.002)
        process.kill()
    assert not (answers.parent / "rows.jsonl").exists()
    subprocess.run([*command, str(answers.parent)], check=True)
    whole, killed = (
        [row.model_copy(update={"total_seconds": 0, "first_sound_seconds": 0}) for row in rows_of(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert whole == killed and len(whole) == 3


def test_the_command_refuses_before_it_loads_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, complaint in (
        (["asr", "libritts-test-clean"], "no benchmark of the task asr; known are librispeech-test-clean"),
        (["asr", "aishell-1"], "cannot be streamed; get it from https://www.openslr.org/33"),
        (["asr", "fleurs-en", "--mode", "warp"], "unknown mode 'warp'"),
        (["tts", "seed-tts-en", "--judge", "nobody"], "there is no judge 'nobody'; choose one of whisper-large-v3"),
        (["tts", "seed-tts-en", "--judge", "none"], "the task tts is scored by what a judge hears"),
        (["sqa", "llama-questions", "--judge", "none", "--rule", "bleu"], "there is no answer rule 'bleu'"),
        (["asr", "fleurs-en", "--model", "wavs:nowhere"], "there is no folder nowhere"),
    ):
        assert main(["evaluate", *arguments, "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["evaluate", "asr", "fleurs-en", "--limit", "0"])
    assert "'--limit': '0'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "answers.jsonl").exists()


def test_what_can_be_measured_of_a_sound_is(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voice prompt that is not there costs the rule that wants it, and no other."""
    pytest.importorskip("zhon")
    rules = {
        name: SoundRule(name, f"{name}/1", ("value",), name == "speaker", lambda one, other: {"value": 0.5})
        for name in ("speaker", "plain")
    }
    monkeypatch.setattr(work, "sound_rule", rules.__getitem__)
    data, long = publish("seed_tts"), Wave(np.tile(TONE.samples, 3), 16_000)
    for prompt in (data / "en" / "prompt-wavs").iterdir():
        prompt.unlink()
    run(tmp_path / "run", data, Answering(RIGHT, long), Judging("x"), "seed-tts-en", sound=list(rules))
    for row in rows_of(tmp_path / "run"):
        parts = {score.rule: score.part for score in row.scores if score.on == "sound"}
        assert parts == {"speaker value": 0.0, "plain value": 0.5} and "cannot read" in (row.failure or "")


def test_a_question_without_an_answer_has_word_errors_too() -> None:
    score, undecided = work._score(text_rule("plain"), "which", (), "some words", "text")
    assert (score.part, score.whole, undecided) == (2, 0, None)


def test_a_device_that_nobody_names_is_the_best_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the model; the command's help says so."""
    monkeypatch.setattr("vita_mctp.checkpoints.opening.best_device", lambda size: "cuda" if size > 1000 else "cpu")
    given = list[str]()

    def stop(*_: object, device: str, **__: object) -> None:
        given.append(device)
        raise DataError("enough")

    monkeypatch.setattr("vita_mctp.evaluation.run.evaluate", stop)
    for model in ("nano", f"wavs:{tmp_path}"):
        assert main(["evaluate", "asr", "fleurs-en", "--model", model]) == 2
    assert main(["evaluate", "asr", "fleurs-en", "--device", "cuda:1"]) == 2
    assert given == ["cuda", "cpu", "cuda:1"]


def test_a_finished_text_may_begin_with_a_mark_and_must_be_utf8(tmp_path: Path) -> None:
    """As some editors write it; what is no text fails its sample and not the run."""
    (tmp_path / "a.txt").write_bytes("seven".encode("utf-8-sig"))
    (tmp_path / "b.txt").write_bytes("seven".encode("utf-16"))
    answers = FinishedAnswers(tmp_path)
    assert answers.answer(Question(id="a"), Task.ASR).text == "seven"
    with pytest.raises(DataError, match=r"b\.txt is no UTF-8"):
        answers.answer(Question(id="b"), Task.ASR)
