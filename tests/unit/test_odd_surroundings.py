"""What a program meets around its input: streams that are closed, names that are no UTF-8, devices, other formats."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vita_mctp.audio import read_wave
from vita_mctp.cancel import Cancel
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.checkpoints.weights import new_folder
from vita_mctp.cli import main
from vita_mctp.environment import load_in_words, look_around
from vita_mctp.errors import ConfigError, OutputError
from vita_mctp.files import write_whole

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
        f"convert qwen in out --seed={10**40}",
        "bench modes --seed=-1",
        "study inputs --seed=-1",
        "data from-hub librispeech --out o --limit=-1",
    ],
)
def test_numbers_without_bounds(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(command.split())
    assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_an_error_of_a_library_without_a_number_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise OSError("the connection broke")

    monkeypatch.setattr("vita_mctp.evaluation.benchmarks.all_benchmarks", broken)
    assert main(["evaluate", "sets"]) == 2
    assert capsys.readouterr().err == ("vita-mctp: error: the connection broke; mend that and run the command again\n")


def test_a_system_without_a_load_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Windows: a run's summary is written at its end, when all the work is done."""
    monkeypatch.delattr(os, "getloadavg")
    assert look_around().load is None and load_in_words(None) == "not told by the system"


def test_a_part_that_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """In a container ids of processes come again; and threads of one process may write the same file."""
    left = tmp_path / f".page.md.{os.getpid()}.part"
    left.write_bytes(b"half")
    write_whole(tmp_path / "page.md", b"whole")
    assert (tmp_path / "page.md").read_bytes() == b"whole" and left.read_bytes() == b"half"


def test_a_name_longer_than_the_system_allows_is_no_model() -> None:
    with pytest.raises(ConfigError, match="unknown model"):
        find_model("x" * 300)


def test_a_call_asked_for_twice_is_called_twice_and_taken_back_once() -> None:
    calls = list[int]()
    call = partial(calls.append, 1)
    first, kept = Cancel(), Cancel()
    for cancel in (first, kept):
        forget, _ = cancel.on_set(call), cancel.on_set(call)
    forget()
    first.set()
    kept.set()
    assert len(calls) == 2 + 1


def test_a_new_folder_may_be_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError), new_folder(Path()) as unfinished:
        (unfinished / "a").touch()
        (tmp_path / "b").touch()  # in the way by now
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
