"""Answers that nobody can hear or read end in one line that says so, never in a file of nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from vita_mctp import SpeechLM
from vita_mctp.cli import main
from vita_mctp.errors import AnswerError, CheckpointError, ConfigError


def damaged(folder: Path, target: Path, tensor: str, value: float) -> Path:
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    weights[tensor] = np.full_like(weights[tensor], value)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture
def question(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "q.wav", 0.4 * np.sin(np.arange(32000) / 9), 16000)
    return str(tmp_path / "q.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_an_answer_without_sound_is_an_error_and_no_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["say", "monday", "-o", str(tmp_path / name), "--json", "--max-new-tokens", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "before its first sound" in printed.err
    assert not (tmp_path / name).exists()
    assert all(json.loads(line)["event"] != "done" for line in printed.out.splitlines())


def test_weights_that_are_not_finite_are_named(tmp_path: Path, tiny_speech_folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = damaged(tiny_speech_folder, tmp_path / "m", name, np.nan)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN"):
        SpeechLM.from_pretrained(folder)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"attn": "eager"}])
def test_scores_that_are_not_finite_are_no_answer(
    options: dict[str, str], tmp_path: Path, question: str, tiny_speech_folder: Path
) -> None:
    """In float16 it is the activations that overflow, as those of models trained in bfloat16 do."""
    value = 60000.0 if options.get("dtype") else np.inf
    folder = damaged(tiny_speech_folder, tmp_path / "m", "model.layers.0.mlp.up_proj.weight", value)
    model = SpeechLM.from_pretrained(folder, **options)
    for mode in ("vanilla", "verified"):
        with pytest.raises(AnswerError, match="NaN or infinite"):
            model.ask(question, mode)


def test_no_tokens_is_not_the_default_number_of_them(tiny_speech_folder: Path) -> None:
    model = SpeechLM.from_pretrained(tiny_speech_folder)
    with pytest.raises(ConfigError, match="max_new_tokens 0"):
        model.stream("two", "tts", max_new_tokens=0)
