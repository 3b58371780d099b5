"""Whatever a file or an option holds: a right result, or exit code 2 and one line; no hang, nothing written astray.

Each case is drawn from its number. `VITA_MCTP_CASES=200 pytest tests/robustness -n 2` is the full run.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from damage import EXIT_CODE, damage_file, dump_json, tree

from vita_mctp.cli import main, parse

SECONDS = 10
"""Of computing; thirty times as long by the clock, as others may have the machine."""
CLOCKS = ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_REAL, signal.SIGALRM))
ROOT = Path(__file__).parents[2]

Try = Callable[[list[str], str], int]


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_once_is_imported(tiny_speech_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("warm")
    command = ["ask", str(_tone(folder / "q.wav")), "-o", str(folder / "a.wav"), "--model", str(tiny_speech_folder)]
    assert main([*command, "--max-new-tokens=9"]) == 0


class Hang(BaseException):
    """Of no type that a program catches."""


@pytest.fixture
def attempt(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> Iterator[Try]:
    """Runs one command in `tmp_path/in`; what it may write is `tmp_path/out` alone. Gives its exit code."""
    (tmp_path / "in").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    limit = sys.getrecursionlimit()

    def alarm(*_: object) -> None:
        raise Hang

    def run(arguments: list[str], story: str) -> int:
        before = tree(tmp_path)
        for clock, number in CLOCKS:
            signal.signal(number, alarm)
            signal.setitimer(clock, SECONDS if clock == signal.ITIMER_PROF else 30 * SECONDS)
        try:
            code = main(arguments)
        except SystemExit as left:
            code = left.code  # type: ignore[assignment]
        except Hang:
            pytest.fail(f"took more than {SECONDS} s: {story}")
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} escaped from {arguments}: {story}") from error
        finally:
            for clock, number in CLOCKS:
                signal.setitimer(clock, 0)
                signal.signal(number, signal.SIG_DFL)
        record_property(EXIT_CODE, code)
        told = capfd.readouterr()
        errors = [line for line in told.err.splitlines() if line.startswith("vita-mctp: error: ")]
        assert code in (0, 1, 2), f"exit code {code}: {story}"
        assert len(errors) == (code == 2), f"{told.err}\n{story}"
        assert "Traceback" not in told.err + told.out, story
        astray = {path for path in tree(tmp_path) - before if not path.startswith("out")}
        assert not astray, f"wrote {astray}: {story}"
        if code == 2:
            assert not [path for path in tree(tmp_path) - before if path.endswith((".tmp", ".part"))], story
        return code

    yield run
    sys.setrecursionlimit(limit)


def _tone(path: Path, seconds: float = 0.5) -> Path:
    soundfile.write(path, (0.3 * np.sin(np.arange(int(16000 * seconds)) / 9)).astype(np.float32), 16000)
    return path


LINE = {
    "messages": [
        {"role": "user", "content": "Convert the speech to text.\n<|audio|>"},
        {"role": "assistant", "content": "one"},
    ],
    "audios": ["a.wav"],
}
MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "speech.json",
    "codec/ramp.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.mark.parametrize("name", [*MODEL_FILES, "model.safetensors"])
def test_model_folders(tiny_speech_folder: Path, tmp_path: Path, attempt: Try, case: int, name: str) -> None:
    draw = random.Random(f"{name} {case}")
    folder = tmp_path / "in" / "model"
    shutil.copytree(tiny_speech_folder, folder)
    story = damage_file(folder / name, draw, None if name.endswith("tensors") else json.loads, dump_json)
    question = _tone(tmp_path / "in" / "question.wav")
    (tmp_path / "out").mkdir()
    attempt(
        ["ask", str(question), "-o", str(tmp_path / "out" / "a.wav"), "--model", str(folder), "--max-new-tokens=9"],
        story,
    )


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_recordings(tiny_speech_folder: Path, tmp_path: Path, attempt: Try, case: int, kind: str) -> None:
    draw = random.Random(f"{kind} {case}")
    question = _tone(tmp_path / "in" / f"q.{kind}")
    story = damage_file(question, draw, None, str)
    attempt(["transcribe", str(question), "--model", str(tiny_speech_folder), "--max-new-tokens=9"], story)


@pytest.mark.parametrize("name", ["config.json", "encoder.safetensors"])
def test_codecs(tmp_path: Path, attempt: Try, case: int, name: str) -> None:
    draw = random.Random(f"codec {name} {case}")
    codec = tmp_path / "in" / "codec"
    shutil.copytree(ROOT / "vita_mctp/assets/nano/codec", codec)
    story = damage_file(codec / name, draw, json.loads if name.endswith("json") else None, dump_json)
    _tone(tmp_path / "in" / "a.wav")
    manifest = tmp_path / "in" / "m.jsonl"
    manifest.write_text(json.dumps(LINE) + "\n")
    attempt(["tokenize", str(manifest), "--out", str(tmp_path / "out"), "--codec-folder", str(codec)], story)


SMOKE = ROOT / "stages" / "smoke"


@pytest.mark.parametrize("name", ["common.yaml", "stage1_alignment.yaml", "stage4_sft.yaml", "mixture.yaml"])
def test_recipes(tmp_path: Path, attempt: Try, case: int, name: str) -> None:
    draw = random.Random(f"recipe {name} {case}")
    stages = tmp_path / "in" / "smoke"
    shutil.copytree(SMOKE, stages)
    story = damage_file(stages / name, draw, yaml.safe_load, lambda value: yaml.safe_dump(value, allow_unicode=True))
    recipe = stages / ("stage1_alignment.yaml" if name in ("common.yaml", "mixture.yaml") else name)
    attempt(["train", str(recipe), "--plan", "--out", str(tmp_path / "out")], story)


def _json_lines(text: str) -> Any:
    return [json.loads(line) for line in text.splitlines()]


def _dump_lines(values: Any) -> str:
    return "".join(dump_json(value) + "\n" for value in (values if isinstance(values, list) else [values]))


@pytest.mark.parametrize("command", ["check", "tokenize"])
def test_manifests(tmp_path: Path, attempt: Try, case: int, command: str) -> None:
    draw = random.Random(f"manifest {case}")
    _tone(tmp_path / "in" / "a.wav")
    manifest = tmp_path / "in" / "m.jsonl"
    lines = [LINE, LINE]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    story = damage_file(manifest, draw, _json_lines, _dump_lines)
    rest = [str(manifest)] if command == "check" else [str(manifest), "--out", str(tmp_path / "out"), "--codec", "nano"]
    attempt([*(["data"] if command == "check" else []), command, *rest], story)


ODD = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "1e400",
    "nan",
    "10" * 20,
    "\udcff",
    "é",
    "a/b",
    "../out",
    "1,10",
    "1,1",
    "true",
    "x" * 5000,
    "\0",
]
OPTIONS = ["--mode", "--seed", "--temperature", "--max-new-tokens", "--model", "--device", "--dtype", "--quantize",
           "--attn", "--voice-prompt", "--audio-tokenizer", "--audio-decoder", "-o", "--json"]  # fmt: skip
DEVICES = ["meta", "cuda:99", "mps", "cpu:0", "vulkan", "cuda"]


@pytest.mark.parametrize("command", ["ask", "say", "transcribe"])
def test_options(tiny_speech_folder: Path, tmp_path: Path, attempt: Try, case: int, command: str) -> None:
    draw = random.Random(f"options {command} {case}")
    question = str(_tone(tmp_path / "in" / "question.wav"))
    first = "two plus three" if command == "say" else question
    (tmp_path / "out").mkdir()
    target = [] if command == "transcribe" else ["-o", str(tmp_path / "out" / "a.wav")]
    arguments = [command, first, *target, "--model", str(tiny_speech_folder), "--max-new-tokens", "9"]
    for _ in range(draw.randint(1, 3)):
        option = draw.choice(OPTIONS)
        values = DEVICES + ODD if option == "--device" else ODD
        values = [value for value in values if option != "-o" or value in ("", " ", "\udcff", "a/b", "\0", "x" * 5000)]
        arguments += (
            [option]
            if option == "--json"
            else [f"{option}={draw.choice(values)}"]
            if option != "-o"
            else [option, draw.choice(values)]
        )
    if draw.random() < 0.2:
        arguments[1] = draw.choice(ODD[4:])
    attempt(arguments, repr(arguments)[:600])


OTHERS = {
    "train": ["train", str(SMOKE / "stage1_alignment.yaml"), "--plan"],
    "tokenize": ["tokenize", "m.jsonl", "--out", "../out"],
    "check": ["data", "check", "m.jsonl"],
    "asr": ["evaluate", "asr", "m.jsonl", "--limit=1", "--max-new-tokens=9", "--rule=plain", "--out", "../out"],
    "sqa": ["evaluate", "sqa", "m.jsonl", "--limit=1", "--max-new-tokens=9", "--judge=none", "--out", "../out"],
    "qwen": ["convert", "qwen", "model", "../out"],
}
TARGETS = {"--out", "-h", "--help", "--recipes", "--manifest"}
"""Options that say where to write, or that lead to hours of work."""


@pytest.mark.parametrize("name", OTHERS)
def test_every_option(tiny_speech_folder: Path, tmp_path: Path, attempt: Try, case: int, name: str) -> None:
    """Of the commands beside those of `test_options`, by the program's own list of them."""
    draw = random.Random(f"every option {name} {case}")
    _tone(tmp_path / "in" / "a.wav")
    spoken = {**LINE, "messages": [{"role": "user", "content": "<|audio|>"}, LINE["messages"][1]]}
    lines = [LINE, spoken]
    (tmp_path / "in" / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "in" / "model").symlink_to(tiny_speech_folder)
    arguments = [*OTHERS[name], *(["--model", "model"] if name in ("asr", "sqa") else [])]
    options = [each for each in parse(arguments).command.params if each.param_type_name == "option"]
    for option in draw.choices([each for each in options if TARGETS.isdisjoint(each.opts)], k=draw.randint(1, 3)):
        values = DEVICES + ODD if "--device" in option.opts else ODD
        arguments += [option.opts[0]] if option.is_flag else [f"{option.opts[0]}={draw.choice(values)}"]
    attempt(arguments, repr(arguments)[:600])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards of two recordings; what trains on them is imported here, as that takes seconds."""
    import vita_mctp.training.trainer  # noqa: F401

    folder = tmp_path_factory.mktemp("tokens")
    _tone(folder / "a.wav")
    lines = [LINE, LINE]
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["tokenize", str(folder / "m.jsonl"), "--out", str(folder / "store")]) == 0
    return folder / "store"


def test_token_stores(tokens: Path, tmp_path: Path, attempt: Try, case: int) -> None:
    draw = random.Random(f"store {case}")
    root = tmp_path / "in" / "root"
    for name in ("asr", "tts", "sqa", "text"):
        shutil.copytree(tokens, root / name)
    path = draw.choice(sorted(path for path in (root / "asr").rglob("*") if path.is_file()))
    story = damage_file(path, draw, json.loads if path.suffix == ".json" else None, dump_json)
    settings = [f"data.root={root}", "max_steps=1"]
    changes = [part for setting in settings for part in ("--set", setting)]
    attempt(["train", str(SMOKE / "stage1_alignment.yaml"), "--out", str(tmp_path / "out"), *changes], story)


def test_conversions(tiny_speech_folder: Path, tmp_path: Path, attempt: Try, case: int) -> None:
    draw = random.Random(f"convert {case}")
    folder = tmp_path / "in" / "model"
    shutil.copytree(tiny_speech_folder, folder)
    name = draw.choice([*MODEL_FILES, "model.safetensors"])
    story = damage_file(folder / name, draw, json.loads if name.endswith("json") else None, dump_json)
    code = attempt(["convert", "qwen", str(folder), str(tmp_path / "out")], story)
    assert code == 0 or not (tmp_path / "out").exists(), story


ROW = {
    "id": "a", "prompt": "", "references": ["x"], "text": "x", "audio": None, "transcripts": {}, "mode": "boost",
    "tokens": 1, "total_seconds": 1, "first_sound_seconds": None, "audio_seconds": 0, "failure": None,
    "scores": [{"rule": "plain", "on": "text", "whole": 10, "part": 1, "reference": "x", "hypothesis": "x"}],
}  # fmt: skip
SUMMARY = {
    "task": "asr", "benchmark": {"name": "b", "samples": 1}, "judges": [], "rules": {"plain": "plain/1"},
    "whole_set": False, "weights": "0123", "config": {"system": {"model": "nano", "seed": 0}}, "mode": "boost",
    "environment": {"commit": "abc", "accelerators": [], "processor": "p", "date": "today"}, "n_failed": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["summary.json", "rows.jsonl"])
def test_reports(tmp_path: Path, attempt: Try, case: int, name: str) -> None:
    draw = random.Random(f"report {name} {case}")
    run = tmp_path / "in" / "run"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    lines = name.endswith("lines")
    story = damage_file(run / name, draw, _json_lines if lines else json.loads, _dump_lines if lines else dump_json)
    attempt(["evaluate", "report", str(run), str(run), "--out", str(tmp_path / "out.md")], story)


def test_the_undamaged_are_taken(tmp_path: Path, tiny_speech_folder: Path, tokens: Path, attempt: Try) -> None:
    """What the cases above start from is right, or they would all be refused for one dull reason."""
    question = str(_tone(tmp_path / "in" / "question.wav"))
    (tmp_path / "out").mkdir()
    run = tmp_path / "in" / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    root = tmp_path / "in" / "root"
    for name in ("asr", "tts", "sqa", "text"):
        shutil.copytree(tokens, root / name)
    for command in (
        ["ask", question, "-o", "../out/a.wav", "--model", str(tiny_speech_folder), "--max-new-tokens=9"],
        ["train", str(SMOKE / "stage1_alignment.yaml"), "--plan"],
        [
            "train",
            str(SMOKE / "stage1_alignment.yaml"),
            f"--set=data.root={root}",
            "--set=max_steps=1",
            "--out=../out/t",
        ],
        ["tokenize", str(tokens.parent / "m.jsonl"), "--out", "../out/s"],
        ["data", "check", str(tokens.parent / "m.jsonl")],
        ["evaluate", "report", str(run), str(run), "--out", "../out/page.md"],
    ):
        assert attempt(command, "nothing") == 0, command
