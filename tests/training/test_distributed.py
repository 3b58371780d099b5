"""Several processes: the loss curve is the same however the work is shared, and whenever it is killed.

Minutes: run with `-m slow`. DeepSpeed compiles a helper at its first use, once a machine.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from smoke_stages import ROOT, STAGES, arguments, curve, launch, tokenize

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.cli import main

pytestmark = pytest.mark.slow

SAME = 1e-5
"""Relative: float32 sums in another order."""

ROW_BY_ROW = ("max_steps=20", "data.rows_per_forward=1")
ZERO_2 = "deepspeed=../deepspeed/zero2.json"
ATTEMPT_SECONDS = 600


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenize(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def parents(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stages 1 to 3 are finished."""
    out = tmp_path_factory.mktemp("parents")
    for stage in STAGES[:3]:
        assert main(arguments(stage, tokens, out)) == 0
    return out


def stage4(tokens: Path, parents: Path, out: Path, *settings: str) -> list[str]:
    if not out.exists():
        shutil.copytree(parents / "smoke3", out / "smoke3")
    return arguments("stage4_sft", tokens, out, *ROW_BY_ROW, *settings)


def finish(processes: int, command: list[str]) -> None:
    run = launch(processes, command)
    printed, _ = run.communicate(timeout=ATTEMPT_SECONDS)
    assert run.returncode == 0, printed


def test_the_curve_is_the_same_on_any_number_of_processes_and_in_every_zero_stage(
    tokens: Path, parents: Path, tmp_path: Path
) -> None:
    ways: dict[str, tuple[int, tuple[str, ...]]] = {"one": (1, ()), "two": (2, ())}
    ways |= {f"zero{stage}": (2, (f"deepspeed=../deepspeed/zero{stage}.json",)) for stage in (1, 2, 3)}
    curves = {}
    for name, (processes, settings) in ways.items():
        finish(processes, stage4(tokens, parents, tmp_path / name, *settings))
        curves[name] = curve(tmp_path / name / "smoke4")
        assert load_model(tmp_path / name / "smoke4" / "final").config.num_nextn_predict_layers == 4
    assert len(curves["one"]) == 20
    for name, got in curves.items():
        assert got == pytest.approx(curves["one"], rel=SAME), name


def killed_at_random(command: list[str], run: Path, kills: int, seed: int) -> None:
    """Run `command` to its end although it is killed `kills` times, each time some steps after the one before."""
    chance = random.Random(seed)
    for _ in range(kills):
        process = launch(2, command)
        goal = max(curve(run), default=0) + chance.randint(1, 4)
        deadline = time.monotonic() + ATTEMPT_SECONDS
        while process.poll() is None and max(curve(run), default=0) < goal and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        assert process.poll() is None, "it ended before it was killed"
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.communicate()
    finish(2, command)


def test_a_run_that_is_killed_ends_as_one_that_is_not(tokens: Path, parents: Path, tmp_path: Path) -> None:
    settings = (ZERO_2, "checkpoint_interval=2")
    finish(2, stage4(tokens, parents, tmp_path / "whole", *settings))
    killed_at_random(
        stage4(tokens, parents, tmp_path / "killed", *settings), tmp_path / "killed" / "smoke4", kills=2, seed=1
    )
    expected, got = (curve(tmp_path / name / "smoke4") for name in ("whole", "killed"))
    assert got == expected and len(got) == 20


def test_deepspeed_s_own_lines_are_no_results(tokens: Path, parents: Path, tmp_path: Path) -> None:
    command = stage4(tokens, parents, tmp_path / "out", ZERO_2, "max_steps=1")
    programs = Path(sys.executable).parent  # ninja, which compiles DeepSpeed's helper
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    run = [sys.executable, "-m", "vita_mctp.cli", *command]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=ATTEMPT_SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out' / 'smoke4' / 'final'}\n"
