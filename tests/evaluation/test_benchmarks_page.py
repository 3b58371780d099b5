"""docs/benchmarks.md says what works: its commands parse, and its adapter is evaluated."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from vita_mctp.cli import parse
from vita_mctp.evaluation.benchmarks import find_benchmark
from vita_mctp.evaluation.metrics import ResultRow
from vita_mctp.evaluation.pool import read_lines

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
SHELL = dict(re.findall(r'^    ([BP])="(.*)"$', PAGE, flags=re.MULTILINE)) | {"SIZE": "7b", "SET": "fleurs-en"}
COMMANDS = re.findall(r"^    .*?(vita-mctp [^;\n]*)", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_the_program_knows(command: str) -> None:
    line = re.sub(r"\$(\w+)", lambda found: SHELL[found[1]], command)
    read = parse(shlex.split(line, comments=True)[1:])
    if "dataset" in read.params and "$SET" not in command:
        find_benchmark(read.params["dataset"], str(read.command.name))


def test_every_set_of_a_loop_is_known() -> None:
    loops = re.findall(r"for SET in ([^;]+); do\s+vita-mctp evaluate (\w+) ", PAGE)
    assert len(loops) == 2
    assert all(find_benchmark(name, task) for names, task in loops for name in names.split())


def test_the_adapter_is_evaluated(
    publish: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("librispeech").rename(tmp_path / "LibriSpeech")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    exec(compile(example, "benchmarks.md", "exec"), {})
    rows = read_lines(tmp_path / "runs" / "parrot" / "rows.jsonl", ResultRow)
    assert [row.text for row in rows] == ["the same answer to every question"] * 3
