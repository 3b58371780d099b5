"""The training loop through its real entry: four stages, resuming, refusing, learning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.errors import CheckpointError, OutputError
from vita_mctp.models.vita import is_mctp_parameter
from vita_mctp.nano.run import train
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.training import stage
from vita_mctp.training.recipe import load_recipe
from vita_mctp.training.run_folder import RunFolder, read_record, replacing
from vita_mctp.training.start import grid_embeddings

Write = Callable[..., Path]


def interrupt_at(step: int) -> Callable[[torch.nn.Module, int], str]:
    """An evaluation callback that sends this process a SIGTERM at `step`."""

    def evaluate(_model: torch.nn.Module, now: int) -> str:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return "none"

    return evaluate


def curve(run: Path) -> list[str]:
    """The log's loss lines without their speed."""
    return [line.split(" tok/s")[0] for line in (run / "log.txt").read_text().splitlines() if " lm " in line]


def test_four_stages_follow_each_other(write_recipe: Write, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    checkpoints = {stage: train(write_recipe(stage), **tiny_data, out=tmp_path) for stage in (1, 2, 3, 4)}
    weights = {stage: load_file(folder / "model.safetensors") for stage, folder in checkpoints.items() if folder}
    final = load_model(checkpoints[4])
    assert final.config.num_backbone_layers == 2 and final.config.num_nextn_predict_layers == 3
    assert TextTokenizer.from_folder(checkpoints[4]).vocabulary.num_audio == 24
    backbone = [name for name in weights[3] if not is_mctp_parameter(final.config, name)]
    assert sorted(backbone) == sorted(weights[1])
    for name in backbone:
        assert torch.equal(weights[3][name], weights[1][name]), f"stages 2 and 3 must not train {name}"
        assert not torch.equal(weights[4][name], weights[1][name]), f"stage 4 must train {name}"
    projections = [weights[3][f"mtp_projs.{k}.weight"] for k in range(3)]
    assert not torch.equal(projections[0], projections[1]) and not torch.equal(projections[1], projections[2])
    assert [read_record(folder).stage for folder in checkpoints.values() if folder] == [1, 2, 3, 4]


@pytest.mark.parametrize("stage", [1, 2])
def test_an_interrupted_run_resumes_exactly(
    stage: int, write_recipe: Write, tiny_data: dict[str, Path], tmp_path: Path
) -> None:
    for earlier in range(1, stage):
        for out in ("whole", "broken"):
            train(write_recipe(earlier), **tiny_data, out=tmp_path / out)
    recipe = write_recipe(stage, max_tokens=512 * 7, eval_interval=1)
    whole = train(recipe, **tiny_data, out=tmp_path / "whole")
    assert train(recipe, **tiny_data, out=tmp_path / "broken", evaluate=interrupt_at(4)) is None
    resumed = train(recipe, **tiny_data, out=tmp_path / "broken")
    assert whole is not None and resumed is not None
    expected, got = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert curve(resumed.parent) == curve(whole.parent) and len(curve(whole.parent)) == 7


def test_only_the_newest_checkpoint_is_kept(write_recipe: Write, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    train(write_recipe(1), **tiny_data, out=tmp_path)
    assert sorted(path.name for path in (tmp_path / "tiny1").glob("*-*")) == ["step-00000004"]
    final = tmp_path / "tiny1" / "final"
    assert not [*final.glob("*.pt"), *final.glob("*.bin")], "what is loaded elsewhere holds no pickles"


def test_a_wrong_or_missing_parent_is_refused(write_recipe: Write, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tiny2 starts from tiny1, not found"):
        train(write_recipe(2), **tiny_data, out=tmp_path)
    train(write_recipe(1), **tiny_data, out=tmp_path)
    with pytest.raises(CheckpointError, match="is of stage 1; tiny3 starts from stage 2"):
        train(write_recipe(3, parent="tiny1"), **tiny_data, out=tmp_path)


def test_a_changed_recipe_does_not_resume(write_recipe: Write, tiny_data: dict[str, Path], tmp_path: Path) -> None:
    interrupted = write_recipe(1, eval_interval=1)
    assert train(interrupted, **tiny_data, out=tmp_path, evaluate=interrupt_at(2)) is None
    with pytest.raises(CheckpointError, match="seed was 42 and is 7"):
        train(write_recipe(1, seed=7), **tiny_data, out=tmp_path)
    assert train(write_recipe(1, seed=7), **tiny_data, out=tmp_path, resume=False) is not None


class Alone:
    """One process."""

    is_main_process = True

    def wait_for_everyone(self) -> None: ...


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with replacing(folder.step(1), Alone(), within="inner") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "model").write_text("weights")
    with pytest.raises(OutputError, match="No space left"), replacing(folder.step(2), Alone()) as partial:
        (partial / "model").write_text("wei")
        raise OSError(28, "No space left on device")
    assert folder.newest() == folder.step(1)
    assert [path.name for path in tmp_path.rglob("*")] == ["step-00000001", "model"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_the_few_samples_by_heart(
    precision: str,
    write_recipe: Write,
    recipe_values: Callable[..., dict[str, Any]],
    tiny_data: dict[str, Path],
    tmp_path: Path,
) -> None:
    model = recipe_values(1)["model"] | {"hidden_size": 64, "intermediate_size": 128}
    changes = {"max_tokens": 512 * 60, "model": model, "precision": precision, "attention": "eager"}
    folder = train(write_recipe(1, **changes), **tiny_data, out=tmp_path)
    assert folder is not None
    losses = [float(line.split(" lm ")[1].split()[0]) for line in curve(folder.parent)]
    assert losses[0] > 4.5 and losses[-1] < 0.5 * losses[0]


def test_grid_embeddings_are_near_for_near_codes() -> None:
    torch.manual_seed(0)
    table = grid_embeddings((8, 5, 5, 5), 64, std=0.02)
    assert table.shape == (1000, 64) and float(table.std()) == pytest.approx(0.02, rel=1e-3)
    similarity = torch.nn.functional.cosine_similarity
    assert float(similarity(table[0], table[1], dim=0)) > float(similarity(table[0], table[999], dim=0)) + 0.3


def test_beginning_anew_takes_nothing_of_the_run_before(
    write_recipe: Write, tiny_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of several processes deletes it; the others may look before it is gone."""
    recipe, begun = write_recipe(1), list[Path | None]()
    folder = RunFolder(tmp_path / load_recipe(recipe).name)
    for old in (folder.final, folder.step(1)):
        old.mkdir(parents=True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(stage._Run, "finish", lambda self, out, newest, evaluate: begun.append(newest))
    assert train(recipe, **tiny_data, out=tmp_path, resume=False) is None
    assert begun == [None] and folder.final.exists()


def test_a_log_is_utf8_whatever_the_system_writes(tmp_path: Path) -> None:
    """Lines of an evaluation may say anything."""
    write = "from pathlib import Path; from vita_mctp.training.run_folder import RunFolder as R; r = R(Path('.'))"
    write += r"; r.log('step 1 eval zw\xf6lf'); r.cut_log(1)"
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", write], cwd=tmp_path, env=ascii_only, check=True)
    assert (tmp_path / "log.txt").read_bytes().decode("utf-8") == "step 1 eval zwölf\n"
