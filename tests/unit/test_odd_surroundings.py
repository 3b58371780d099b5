"""What a program meets around its input: streams that are closed, names that are no UTF-8, devices, other formats."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vita_mctp.audio import read_wave
from vita_mctp.cli import main

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "stages" / "smoke" / "corpus" / "text.jsonl"
NO_UTF8 = os.fsdecode(b"d\xff")


@pytest.fixture
def question(tmp_path: Path) -> Path:
    """In a folder whose name is no UTF-8."""
    folder = tmp_path / NO_UTF8
    folder.mkdir()
    soundfile.write(tmp_path / "q.wav", (0.3 * np.sin(np.arange(8000) / 9)).astype(np.float32), 16000)
    return (tmp_path / "q.wav").rename(folder / "q.wav")


def shell(words: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The program, with the standard streams as `words` say."""
    command = ["bash", "-c", f'exec "$@" {words}', "bash", sys.executable, "-m", "vita_mctp.cli", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("words", "command", "code"),
    [(">&-", "evaluate sets", 2), (">&-", "--help", 2), ("2>&-", "evaluate sets", 0), ("2>&-", "sing", 2)],
)
def test_closed_streams(words: str, command: str, code: int) -> None:
    done = shell(words, *command.split())
    assert done.returncode == code
    assert done.stderr.count(b"\n") == (words[0] == ">")
    assert done.stdout.startswith(b"librispeech") == (code == 0)


def test_closed_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["transcribe", "-"]) == 2
    assert "standard input is empty" in capsys.readouterr().err


def test_names_that_are_no_utf8(question: Path, tiny_speech_folder: Path) -> None:
    answer = question.with_name("a.wav")
    command = ["ask", str(question), "-o", str(answer), "--model", str(tiny_speech_folder), "--max-new-tokens=99"]
    assert main(command) == 0 and read_wave(answer).seconds > 0
    done = shell("", "tokenize", str(MANIFEST), "--out", str(question.parent))
    assert done.returncode == 0 and os.fsencode(question.parent) in done.stdout


def test_a_device_without_numbers(question: Path, tiny_speech_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["transcribe", str(question), "--model", str(tiny_speech_folder)],
        ["tokenize", str(MANIFEST), "--out", str(question.parent / "store")],
    ):
        assert main([*command, "--device", "meta"]) == 2
        assert "'meta'" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="these are ffmpeg's")
@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus")])
def test_formats_that_ffmpeg_reads(question: Path, suffix: str, codec: str) -> None:
    path = question.with_suffix(f".{suffix}")
    subprocess.run(["ffmpeg", "-v", "error", "-i", question, "-c:a", codec, path], check=True)
    assert read_wave(path).seconds == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "command",
    [
        "data check m.jsonl --max-seconds=nan",
        "tokenize m.jsonl --out o --max-seconds=1e400",
        f"evaluate asr m.jsonl --limit={10**40}",
        f"convert qwen in out --mctp-blocks={10**40}",
    ],
)
def test_numbers_without_bounds(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1
