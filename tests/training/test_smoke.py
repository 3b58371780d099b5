"""All four stages on a tiny model, by the command, against the loss curves in the repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from smoke_stages import ROOT, SMOKE, STAGES, arguments, curve, tokenize

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.cli import main
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.training.run_folder import CURVES_FILE, read_curves, read_record
from vita_mctp.training.stage import files_of, train_stage
from vita_mctp.types import Done

TOLERANCE = 2e-3
"""Relative, of each step's loss: processors add in different orders."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenize(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def trained(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all four stages' runs."""
    out = tmp_path_factory.mktemp("smoke")
    for stage in STAGES:
        assert main(arguments(stage, tokens, out)) == 0
    return out


def test_the_curves_are_those_in_the_repository(trained: Path) -> None:
    rows = [line.split() for line in (SMOKE / "curves.txt").read_text().splitlines() if line[0] != "#"]
    expected = {(name, int(step)): float(loss) for name, step, loss in rows}
    got = {(run.name, step): loss for run in trained.iterdir() for step, loss in curve(run).items()}
    assert got.keys() == expected.keys()
    wrong = {key: (got[key], loss) for key, loss in expected.items() if got[key] != pytest.approx(loss, rel=TOLERANCE)}
    assert wrong == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="both are a GPU's")
@pytest.mark.parametrize("kernel", ["flex", "flash"])
def test_attention_that_this_machine_cannot_train_with(
    tokens: Path, tmp_path: Path, kernel: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", f"attention={kernel}"]
    assert main([*arguments("stage1_alignment", tokens, tmp_path), *settings]) == 2
    assert "sdpa" in capsys.readouterr().err and not list(tmp_path.rglob("*/*"))


def test_a_target_that_cannot_be_is_found_before_the_work(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(arguments("stage1_alignment", tokens, tmp_path / "file")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_curves_are_drawn(trained: Path) -> None:
    pytest.importorskip("matplotlib")
    (run,) = trained.glob("smoke3")
    found = read_curves((run / "log.txt").read_text())
    assert len(found) == 1 + read_record(run / "final").recipe["num_mctp_blocks"]
    assert all([step for step, _ in points] == list(curve(run)) for points in found.values())
    assert (run / CURVES_FILE).read_bytes().startswith(b"\x89PNG")


def test_what_libraries_print_is_no_result(tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def chatty(_model: object, _step: int) -> str:
        print("from Python")
        os.write(1, b"from a compiler\n")
        return "none"

    settings = [f"data.root={tokens}", "max_steps=1"]
    train_stage(SMOKE / "stage1_alignment.yaml", files_of(SMOKE), out=tmp_path, settings=settings, evaluate=chatty)
    print("afterwards")
    printed = capfd.readouterr()
    assert printed.out == "afterwards\n"
    assert "from Python" in printed.err and "from a compiler" in printed.err


def test_standard_output_is_the_checkpoint_alone(tokens: Path, tmp_path: Path) -> None:
    """DeepSpeed, imported by accelerate where it is installed, logs to standard output."""
    options = arguments("stage1_alignment", tokens, tmp_path, "max_steps=1")
    done = subprocess.run([sys.executable, "-m", "vita_mctp.cli", *options], capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'smoke1' / 'final'}\n", done.stderr


def test_each_checkpoint_says_where_it_comes_from(trained: Path) -> None:
    records = [read_record(trained / f"smoke{stage}" / "final") for stage in (1, 2, 3, 4)]
    assert [record.parent for record in records] == [None, "smoke1", "smoke2", "smoke3"]
    for record in records:
        assert record.recipe["name"] == record.name and record.step == 12 and record.tokens > 5000
        assert {"torch", "transformers", "vita_mctp"} <= record.versions.keys()
    final = trained / "smoke4" / "final"
    assert load_model(final).config.num_nextn_predict_layers == 4
    assert (final / "data_position.json").is_file() and not [*final.glob("*.pt"), *final.glob("*.bin")]


def test_a_finished_run_names_what_another_recipe_changes(
    trained: Path, tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("stage1_alignment", tokens, trained, "log_interval=3")) == 0
    assert main(arguments("stage1_alignment", tokens, trained, "seed=8", "max_steps=13")) == 2
    line = capsys.readouterr().err
    assert "max_steps was 12 and is 13" in line and "seed was 42 and is 8" in line


def test_a_trained_model_is_asked_as_it_stands(trained: Path) -> None:
    question = ROOT / "vita_mctp" / "assets" / "nano" / "question.wav"
    for run in ("smoke1", "smoke4"):  # begun from nothing with nano's tokenizer, and three stages on
        *_, done = SpeechLM.from_pretrained(str(trained / run)).stream(question, max_new_tokens=40)
        assert isinstance(done, Done) and 0 < done.timings.tokens <= 40  # so little training may bring text alone
        assert json.loads((trained / run / "final" / "speech.json").read_text())["audio_decoder"]["name"] == "nano"


def test_adapters_resume_and_merge_into_a_plain_checkpoint(trained: Path, tokens: Path, tmp_path: Path) -> None:
    settings = [f"data.root={tokens}", f"parent={trained / 'smoke3' / 'final'}", "lora={rank: 4, alpha: 8}"]
    settings += ["eval_interval=1", "optimizer.lr=5e-3", "optimizer.mctp_lr_multiplier=1"]
    recipe, finals = SMOKE / "stage4_sft.yaml", []

    def interrupt(_model: object, step: int) -> str:
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return "none"

    for name, evaluate in (("whole", None), ("broken", interrupt), ("broken", None)):
        out = tmp_path / name
        finals.append(train_stage(recipe, files_of(SMOKE), out=out, settings=settings, evaluate=evaluate))
    whole, stopped, resumed = finals
    assert whole is not None and stopped is None and resumed is not None
    assert curve(whole.parent) == curve(resumed.parent) and len(curve(whole.parent)) == 12
    got, parent = load_file(whole / "model.safetensors"), load_file(trained / "smoke3" / "final" / "model.safetensors")
    assert got.keys() == parent.keys()
    moved = {name for name in got if not torch.equal(got[name], parent[name])}
    adapted = {name for name in got if "_proj.weight" in name or "mtp_projs" in name}
    assert moved == adapted
    losses = list(curve(whole.parent).values())
    assert losses[-1] < losses[0]
