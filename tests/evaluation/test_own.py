"""A manifest of one's own is a benchmark of each task that it has lines of."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vita_mctp.audio import read_wave, write_wave
from vita_mctp.cli import main
from vita_mctp.errors import DataError
from vita_mctp.evaluation.benchmarks import find_benchmark, read_cases
from vita_mctp.evaluation.published import own_benchmark
from vita_mctp.types import Wave

ASR, TTS = "Convert the speech to text.\n<|audio|>", "Convert the text to speech.\ntwo plus three"


def line(question: str, answer: str, *audios: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "audios": list(audios), **more}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_wave(tmp_path / "a.wav", Wave(np.sin(np.arange(8000) / 9).astype(np.float32) / 3, 16000))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tmp_path / "a.wav", "b.wav")
    lines = [
        line(ASR, "one", "a.wav", id="first"),
        line(TTS, "<|audio|>", "a.wav"),
        line("<|audio|>", "five", "b.tar::b.wav"),
        line("Hello <|audio|>", "six <|audio|>", "a.wav", "a.wav"),
    ]
    return write(tmp_path / "mine.jsonl", *lines)


def test_the_task_picks_its_lines(manifest: Path, tmp_path: Path) -> None:
    sets = [own_benchmark(manifest, task) for task in ("asr", "tts", "sqa")]
    asr, tts, sqa = (read_cases(each, None, tmp_path / "store") for each in sets)
    assert [(case.id, case.references) for case in asr] == [("first", ("one",))]
    assert [(case.id, case.references) for case in tts] == [("000000", ("two plus three",))]
    assert [(case.prompt, case.references) for case in sqa] == [("", ("five",)), ("Hello", ("six",))]
    heard = [case.question.audio for case in (*asr, *sqa)]
    assert len({len(read_wave(audio).samples) for audio in heard if audio}) == 1
    assert tts[0].question.text == "two plus three"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (line("hello", "hi"), "no sample of the task sqa"),
        (line("say hello", "<|audio|>", "a.wav"), "a recording to hear"),
        (line("<|audio|>", "<|audio|>", "a.wav", "a.wav"), "an answer in text"),
        (line("<|audio|>", "x", {"codes": [1], "codec": "nano"}), "audio codes"),
        (line("<|audio|>", "x", "a.wav", id="a/b"), "name a file"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_cases(find_benchmark(str(write(tmp_path / "m.jsonl", wrong)), "sqa"), None, tmp_path)


def test_chinese_is_scored_by_characters(tmp_path: Path) -> None:
    found = own_benchmark(write(tmp_path / "m.jsonl", line(ASR, "你好", "a.wav")), "asr")
    assert (found.language, found.rules) == ("zh", ("zh_cer",))


def test_the_command(manifest: Path, tiny_speech_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = manifest.parent / "run"
    command = ["evaluate", "asr", str(manifest), "--rule", "plain", "--out", str(out), "--max-new-tokens=9"]
    command += ["--model", str(tiny_speech_folder)]
    assert main(command) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["n_total"] == 1 and summary["whole_set"] and summary["benchmark"]["name"] == "mine"
    assert main(command) == 0
    write(manifest, line(ASR, "two", "a.wav"))
    capsys.readouterr()
    assert main(command) == 2
    assert "samples was" in capsys.readouterr().err
