"""docs/finetuning.md's command: a manifest in, a fine-tuned nano out."""

import json
from pathlib import Path

import pytest

from vita_mctp.cli import main

ROOT = Path(__file__).parents[2]
RECIPE, QUESTION = ROOT / "stages" / "nano" / "lora.yaml", ROOT / "demo" / "examples" / "question.wav"


def manifest(folder: Path, *transcripts: str) -> Path:
    path = folder / "mine.jsonl"
    with path.open("w") as file:
        for text in transcripts:
            roles = (("user", "Convert the speech to text.\n<|audio|>"), ("assistant", text))
            messages = [{"role": role, "content": content} for role, content in roles]
            file.write(json.dumps({"messages": messages, "audios": [str(QUESTION)]}) + "\n")
    return path


def test_a_manifest_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    right = "what is eight plus twelve"
    command = ["train", str(RECIPE), "--manifest", str(manifest(tmp_path, right)), "--out", str(tmp_path / "runs")]
    command += ["--set", "max_steps=2", "--set", "log_interval=1"]
    assert main(command) == 0
    final = tmp_path / "runs" / "lora" / "final"
    assert capsys.readouterr().out.strip() == str(final)
    assert main(["transcribe", str(QUESTION), "--model", str(final)]) == 0
    assert right in capsys.readouterr().out
    manifest(tmp_path, "another text")  # no finished run passes for one on it
    assert main(command) == 2
    assert "recipe changed" in capsys.readouterr().err


def test_a_model_from_nothing_hears_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "stages" / "smoke" / "stage1_alignment.yaml"
    assert main(["train", str(recipe), "--manifest", str(manifest(tmp_path, "x")), "--out", str(tmp_path)]) == 2
    assert "starts from no model" in capsys.readouterr().err
