"""Finds golden files of the reference system and hands them to the parity tests.

The folder is named by `VITA_MCTP_GOLDENS` (default: the copy beside this file) and searched recursively: goldens of the
same form with other sizes, numbers or names are found without touching a test. A test takes one of the arguments of
`FOLDERS`, `FILES` or `generate_case` and runs once for each that is found.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

GOLDENS = Path(os.environ.get("VITA_MCTP_GOLDENS") or Path(__file__).parent / "goldens").resolve()

FOLDERS = {"lm_folder": "lm_", "stages_folder": "stages"}
FILES = {
    "generate_file": "generate.json",
    "interleave_file": "interleave.json",
    "preprocess_file": "preprocess.json",
}


def find_golden_folders(prefix: str) -> list[Path]:
    """Every folder at or under the goldens folder whose name begins with `prefix`, sorted."""
    candidates = [GOLDENS, *GOLDENS.rglob("*")]
    return sorted(path for path in candidates if path.is_dir() and path.name.startswith(prefix))


def find_golden_files(name: str) -> list[Path]:
    """Every file called `name` at or under the goldens folder, sorted."""
    return sorted(path for path in GOLDENS.rglob(name) if path.is_file())


def label(path: Path) -> str:
    """A path's readable name in a test id."""
    return str(path.relative_to(GOLDENS)) if path != GOLDENS else path.name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument, prefix in FOLDERS.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, find_golden_folders(prefix), ids=label)
    for argument, name in FILES.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, find_golden_files(name), ids=label)
    if "generate_case" in metafunc.fixturenames:
        metafunc.parametrize("generate_case", _generate_cases())


def _generate_cases() -> list[Any]:
    """(folder of the model, the recorded case) for each case of each generate.json that lies beside a model."""
    return [
        pytest.param((file.parent, case), id=f"{label(file.parent)}-{index}-{'_'.join(map(str, case['mode']))}")
        for file in find_golden_files("generate.json")
        for index, case in enumerate(json.loads(file.read_text())["cases"])
    ]
