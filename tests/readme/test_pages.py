"""What stands in a code block of README.md or docs/ works: Python runs, commands are read and, where they can be, run.

A shell block goes through bash, which writes down what would be called, loops and variables expanded. A command that
no test runs is in `NOT_RUN`, with the reason; a pattern there that fits no command any more fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vita_mctp.checkpoints.speech import SpeechSettings
from vita_mctp.cli import main, parse
from vita_mctp.data.manifest import parse_line
from vita_mctp.evaluation.benchmarks import MANIFEST_SUFFIX, find_benchmark
from vita_mctp.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("vita-mctp", "pip", "hf", "torchrun", "accelerate", "deepspeed", "openssl", "docker", "serve")
PROGRAMS += (
    "pytest",
    "python",
    "python3",
    "git",
    "make",
    "npm",
    "cd",
    ".venv/bin/pip",
    ".venv/bin/vita-mctp",
    ".venv/bin/pytest",
)
NOT_RUN = {
    r"--device cuda": "wants a GPU",
    r"VITA-MLLM/|VocalNet/|Qwen2\.5|Llama-|glm-4-voice|CosyVoice2|SenseVoice": "wants weights of a hub",
    r"^data from-hub|^evaluate \w+ (?!mine)(?!nano)\S*-": "wants a set of a hub or a publisher",
    r"^(demo|serve|chat)\b": "runs until it is stopped; tests/serving and test_cli_chat.py",
    r"^bench\b": "minutes to hours; tests/evaluation/test_bench*.py run each in small",
    r"^evaluate (nano|\w+ nano-)|^train nano": "hours; tests/evaluation and tests/training/test_make_nano.py, in small",
    r"^(tokenize|data|train|ask) .*(data/|stages/(stage|smoke)|runs/(stage|speed|lora))": "tests/training runs it",
    r"FOLDER|--model runs/|^study": "of a model that hours of training make",
    r"^data check train\.jsonl|^evaluate report|^train stages/nano": "of files that stand for the reader's own",
}


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks in one of these languages; "sh" has the indented blocks too."""
    text = page.read_text()
    for language, content in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        if language in languages:
            yield content
    if "sh" in languages:
        bare = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        yield from re.findall(r"(?<=\n\n)(?: {4}.*\n)+", bare)


def calls(page: Path, folder: Path) -> list[list[str]]:
    """Program and arguments of every call that the page's shell blocks make. Raises where bash cannot read one."""
    record = folder / f"{page.stem}.calls"
    say = 'python3 -c "import json, sys; print(json.dumps(sys.argv[1:]))"'
    head = "".join(f'{name}() {{ command {say} {name} "$@" >>"$RECORD"; }}\n' for name in PROGRAMS)
    script = head.replace("command python3", shutil.which("python3") or "") + "\n".join(blocks(page, "sh"))
    environment = {**os.environ, "RECORD": str(record), "PWD": str(folder)}
    record.touch()
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == "", f"{page.name}: {done.stderr}"
    return [json.loads(line) for line in record.read_text().splitlines()]


def own(call: list[str]) -> list[str] | None:
    """Arguments of this program, be it called by name or as a module by a launcher; None for another one."""
    if call[0].endswith("vita-mctp"):
        return call[1:]
    return call[call.index("vita_mctp.cli") + 1 :] if "vita_mctp.cli" in call else None


def test_commands(tmp_path: Path, working: Path) -> None:
    """Each is one that the program knows, with options, recipes and benchmarks that there are; the others run."""
    idle, ran = dict(NOT_RUN), 0
    for page in PAGES:
        for call in calls(page, tmp_path):
            words = own(call)
            if words is None:
                check_other(call)
                continue
            read = parse(words)
            if read.command.name == "train" and read.params["recipe"].endswith(".yaml"):
                load_recipe(ROOT / read.params["recipe"], read.params["settings"] or [])
            dataset = read.params.get("dataset", MANIFEST_SUFFIX)
            if not dataset.endswith(MANIFEST_SUFFIX):
                find_benchmark(dataset, str(read.command.name))
            reasons = [pattern for pattern in NOT_RUN if re.search(pattern, " ".join(words))]
            for pattern in reasons:
                idle.pop(pattern, None)
            if not reasons:
                assert main(words) == 0, f"{page.name}: {words}"
                ran += 1
    assert idle == {} and ran > 10


def check_other(call: list[str]) -> None:
    """Extras of pip, and files that pytest and python are given, are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    program, *words = call
    for word in words:
        if program.endswith("pip") and (named := re.search(r"\[(.*)\]", word)):
            assert set(named[1].split(",")) <= extras.keys(), call
        if word.endswith(".py"):
            assert (ROOT / word).is_file(), call


@pytest.fixture
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what readers have: the repository's files, a question, a manifest of their own."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("demo", "stages", "vita_mctp", "data_mixtures", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "demo" / "examples" / "question.wav", folder)
    lines = [
        ("Convert the speech to text.\n<|audio|>", "what is eight plus twelve"),
        ("<|audio|>", "eight plus twelve is twenty"),
    ]
    with (folder / "mine.jsonl").open("w") as file:
        for asked, answer in lines:
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages, "audios": ["question.wav"]}) + "\n")
    shutil.copy(folder / "mine.jsonl", folder / "manifest.jsonl")
    monkeypatch.chdir(folder)
    return folder


PYTHON_ELSEWHERE = {
    "README.md": "tests/readme/test_readme.py",
    "benchmarks.md": "tests/evaluation/test_benchmarks_page.py",
    "serving.md": "tests/serving/test_docs.py",
}
"""Pages whose Python a test of their own runs, which has what they need, such as a server."""


def test_python_elsewhere_is_there() -> None:
    for name, path in PYTHON_ELSEWHERE.items():
        assert name in (ROOT / path).read_text()


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in PYTHON_ELSEWHERE and list(blocks(page, "python"))],
    ids=lambda page: page.name,
)
def test_python(page: Path, working: Path) -> None:
    """A page's blocks follow each other: one may use what an earlier one has made, and nothing else."""
    for name in ("asr", "tts", "sqa", "text"):  # as docs/training.md makes them
        assert main(["tokenize", f"stages/smoke/corpus/{name}.jsonl", "--out", f"runs/smoke/tokens/{name}"]) == 0
    names: dict[str, Any] = {}
    for example in blocks(page, "python"):
        exec(compile(example, page.name, "exec"), names)


def test_json() -> None:
    for example in (*blocks(ROOT / "docs" / "data.md", "json"), *blocks(ROOT / "docs" / "finetuning.md", "json")):
        for number, line in enumerate(example.splitlines(), start=1):
            parse_line(line.encode(), Path("data.md"), number)
    for example in blocks(ROOT / "docs" / "checkpoints.md", "json"):
        SpeechSettings.parse(json.loads(example), "checkpoints.md")
