"""docs/training.md: its commands are known to the program, and the recipes and links it names are there.

That they run is tested elsewhere: the smoke stages in test_smoke.py, all others in test_documented_chain.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documented import COMMANDS, ROOT, TEXT, arguments

from vita_mctp.cli import parse
from vita_mctp.training.recipe import load_recipe


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_known_and_its_recipe_reads(line: str) -> None:
    command = parse(arguments(line))
    if command.command.name == "train":
        load_recipe(ROOT / command.params["recipe"], command.params["settings"] or [])


def test_the_smoke_commands_are_those_that_run_in_a_test() -> None:
    smoke = {Path(arguments(line)[1]).stem for line in COMMANDS if "stages/smoke" in line}
    corpus = {path.stem for path in (ROOT / "stages" / "smoke" / "corpus").glob("*.jsonl")}
    assert smoke == corpus | {path.stem for path in (ROOT / "stages" / "smoke").glob("stage*.yaml")}


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) > 2 and [link for link in links if not (ROOT / "docs" / link).exists()] == []
