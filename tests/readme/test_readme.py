"""The README says what works."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vita_mctp.cli import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_opens_with_two_commands_of_one_line() -> None:
    first, second = blocks("sh")[:2]
    assert first.count("\n") == second.count("\n") == 1
    assert "vita-mctp ask demo/examples/question.wav" in first
    assert second.rstrip().endswith("pytest")
    assert all("pip install -q -c constraints.txt " in command for command in (first, second))


def test_constraints_are_plain_pins_within_the_stated_ranges() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []  # no local version, no path
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = (ROOT / ".ci" / "extras").read_text().strip().split(",")
    wanted = project["dependencies"] + [line for extra in tested for line in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:  # an extra that takes another one in
            continue
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_ci_runs_those_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (line,) = (line for line in script.splitlines() if line.startswith("mapfile"))
    listed = subprocess.run(
        ["bash", "-c", f"{line}; printf '%s\n' \"${{commands[@]}}\""], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert listed.stdout.decode().splitlines() == [block.rstrip("\n") for block in blocks("sh")[:2]]
    assert all(f'bash -euc "${{commands[{number}]}}"' in script for number in (0, 1))


@pytest.mark.parametrize("line", [line for block in blocks("sh")[2:] for line in block.splitlines()])
def test_every_command_is_one_that_the_program_knows(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    assert program == "vita-mctp"
    assert parse(arguments).command_path.split()[1] == arguments[0]


def test_python_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.rstrip("\n").split("\n")
    assert {"TextDelta", "WaveChunk", "Done"} <= set(printed[1:])
    assert printed[-1] == "Done"
    text, seconds, first_sound = printed[0].rsplit(" ", 2)
    assert text and float(seconds) > 0.5 and float(first_sound) > 0


def test_the_example_is_answered_rightly_in_every_mode_that_is_named() -> None:
    from vita_mctp import SpeechLM

    nano = SpeechLM.from_pretrained("nano")
    named = {*nano.modes, *re.findall(r"--mode ([\w,]+)", README)}
    assert {"verified", "turbo", "1,6,2,12"} <= named
    answers = {mode: nano.ask(ROOT / "demo/examples/question.wav", mode).text for mode in named}
    assert set(answers.values()) == {"eight plus twelve is twenty"}, answers


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def links(page: Path) -> list[Path]:
    """The files that a page leads to; fragments left off."""
    found = re.findall(r"\]\(([^)]+)\)", page.read_text())
    return [page.parent / link.partition("#")[0] for link in found if not link.startswith(("http", "#"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not link.exists()] == []


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {link.resolve() for link in links(index)}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= listed


def test_contributors_are_shown_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = set(re.findall(r"`((?:vita_mctp|codecs|evaluation|models|text|tests|stages|data_mixtures)/[\w./]*)`", text))
    missing = [path for path in shown if not (ROOT / path).exists() and not (ROOT / "vita_mctp" / path).exists()]
    assert len(shown) > 10 and set(missing) <= {"stages/NAME.yaml"}
