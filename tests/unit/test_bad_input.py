"""Whatever is wrong with what a user gives: one line, exit code 2, no traceback, no file left behind."""

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vita_mctp.cli import main

TONE = (0.4 * np.sin(np.arange(16000) / 9)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def with_nan() -> np.ndarray:
    samples = TONE.copy()
    samples[5000:5010] = np.nan
    return samples


RECORDINGS: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"What is two plus three?\n", "is not audio"),
    "noise_bytes": (lambda: np.random.default_rng(0).bytes(40000), "is not audio"),
    "empty": (lambda: b"", "is empty (0 bytes)"),
    "no_samples": (lambda: wav(TONE[:0]), "holds no samples"),
    "silent": (lambda: wav(0 * TONE), "is silent"),
    "twenty_minutes": (lambda: wav(np.tile(TONE[:8000], 1200), 8000), "lasts 1200.0 s; wanted at most 60 s"),
    "nan": (lambda: wav(with_nan()), "NaN"),
    "infinite": (lambda: wav(np.where(TONE > 0.39, np.inf, TONE).astype(np.float32)), "infinite"),
    "eight_channels": (lambda: wav(np.stack([TONE] * 8, axis=1)), "8 channels; wanted mono or stereo"),
    "four_kilohertz": (lambda: wav(TONE, 4000), "4000 Hz"),
}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs a command that must fail, and gives back its one line."""

    def run(arguments: list[str]) -> str:
        before = sorted(tmp_path.rglob("*"))
        try:
            code: object = main(arguments)
        except SystemExit as left:
            code = left.code
        printed = capsys.readouterr()
        assert code == 2 and printed.out == ""
        assert printed.err.startswith("vita-mctp: error: ") and printed.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return run


@pytest.fixture
def question(tmp_path: Path) -> str:
    (tmp_path / "question.wav").write_bytes(wav(TONE))
    return str(tmp_path / "question.wav")


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("command", ["ask", "transcribe"])
def test_unusable_recordings(
    tmp_path: Path, tiny_speech_folder: Path, refused: Callable[[list[str]], str], command: str, name: str
) -> None:
    content, complaint = RECORDINGS[name]
    path = tmp_path / "question.wav"
    path.write_bytes(content())
    output = ["-o", str(tmp_path / "answer.wav")] if command == "ask" else []
    line = refused([command, str(path), *output, "--model", str(tiny_speech_folder)])
    assert complaint in line and str(path) in line and ";" in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--mode", "warp"], "unknown mode 'warp'; known: vanilla, balance, boost, turbo"),
        (["--mode", "1,2,3"], "3 counts"),
        (["--model", "giant"], "unknown model 'giant'; give nano, a model folder, or a hub id"),
        (["--model", "nobody/nothing-here"], "hf download nobody/nothing-here"),
        (["--loudly"], "--loudly"),
        (["--mod", "boost"], "No such option: --mod "),
        (["--seed", "x"], "'--seed': 'x'"),
        (["--seed", "-3"], "'--seed': '-3'"),
        (["--temperature", "-1"], "temperature -1.0"),
        (["--device", "quantum"], "device 'quantum'"),
        (["--dtype", "float7"], "dtype 'float7'"),
        (["--attn", "magic"], "attention kernel 'magic'"),
    ],
)
def test_unknown_options(
    tmp_path: Path,
    tiny_speech_folder: Path,
    question: str,
    refused: Callable[[list[str]], str],
    arguments: list[str],
    complaint: str,
) -> None:
    model = [] if "--model" in arguments else ["--model", str(tiny_speech_folder)]
    assert complaint in refused(["ask", question, "-o", str(tmp_path / "answer.wav"), *model, *arguments])


@pytest.mark.parametrize(
    ("output", "complaint"),
    [("answer.xyz", "end"), ("answer", "end"), ("no/answer.wav", "no directory"), ("", "is a directory")],
)
def test_targets_that_cannot_be(
    tmp_path: Path, question: str, refused: Callable[[list[str]], str], output: str, complaint: str
) -> None:
    assert complaint in refused(["ask", question, "-o", str(tmp_path / output)])


def test_a_full_disk(tiny_speech_folder: Path, question: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", question, "-o", "/dev/full", "--model", str(tiny_speech_folder)]) == 2
    assert capsys.readouterr().err == (
        "vita-mctp: error: cannot write /dev/full: No space left on device; name another path or free some space\n"
    )


@pytest.mark.parametrize("command", [[], ["sing"], ["ask"], ["ask", "question.wav"], ["say", "-o", "a.wav"]])
def test_incomplete_commands(refused: Callable[[list[str]], str], command: list[str]) -> None:
    assert "--help" in refused(command)


@pytest.mark.parametrize("port", ["65536", "-1", "door"])
def test_ports_that_cannot_be(refused: Callable[[list[str]], str], port: str) -> None:
    assert f"'--port': {port!r}" in refused(["demo", f"--port={port}"])


def test_nothing_to_say(tmp_path: Path, tiny_speech_folder: Path, refused: Callable[[list[str]], str]) -> None:
    line = refused(["say", " ", "-o", str(tmp_path / "a.wav"), "--model", str(tiny_speech_folder)])
    assert "an empty text came" in line


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -2000])
def test_weights_cut_short(
    tmp_path: Path, tiny_speech_folder: Path, question: str, refused: Callable[[list[str]], str], keep: int
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_speech_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    line = refused(["ask", question, "-o", str(tmp_path / "answer.wav"), "--model", str(folder)])
    assert str(weights) in line and "cut short" in line


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "speech.json", "codec/ramp.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\x01"])
def test_damaged_json(
    tmp_path: Path,
    tiny_speech_folder: Path,
    question: str,
    refused: Callable[[list[str]], str],
    name: str,
    content: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_speech_folder, folder)
    (folder / name).write_text(content)
    line = refused(["ask", question, "-o", str(tmp_path / "answer.wav"), "--model", str(folder)])
    assert str(folder) in line


def test_the_real_command_is_as_terse(tmp_path: Path) -> None:
    (tmp_path / "question.mp3").write_bytes(b"\xff\xfb\x90\x00 not really an mp3 file" * 40)
    command = [sys.executable, "-m", "vita_mctp.cli", "transcribe", "question.mp3", "--model", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("vita-mctp: error: the model folder . lacks config.json")
