"""Rules of the repository that no single module can hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "vita_mctp").rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "demo").rglob("*.py"))]
SHIPPED_LIMIT = 30_000_000


def test_there_are_sources_to_check() -> None:
    assert len(SOURCES) > 50


def test_no_file_is_over_500_lines() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in PYTHON}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}


UNPICKLING = [
    r"^(import|from) pickle(?! import UnpicklingError$)",  # the name of an error unpickles nothing
    r"torch\.load\((?!.*weights_only=True)",  # which builds tensors and refuses everything else
]


UNPICKLERS = {UNPICKLING[0]: ("units.py",)}
"""What admits the names of arrays and refuses every other, by its own test."""


@pytest.mark.parametrize("word", [*UNPICKLING, r"\beval\(", r"except:"])
def test_sources_never_unpickle_or_swallow(word: str) -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if path.name not in UNPICKLERS.get(word, ())
        and re.search(word, path.read_text().replace(".eval()", ""), re.MULTILINE)
    ]
    assert found == []


def test_no_path_of_one_machine_is_written_down() -> None:
    root = [path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".txt", ".yaml", ".cff"}]
    written = [*PYTHON, *root, ROOT / "Makefile", *(ROOT / ".ci").iterdir()]
    for folder in ("docs", "stages", "data_mixtures"):
        written += [path for path in (ROOT / folder).rglob("*") if path.suffix in {".md", ".yaml", ".json", ".txt"}]
    outside = re.compile(r"(?<![\w.<])/(?:home|root|tmp|opt|work|Users|mnt)/\w")
    assert [path.relative_to(ROOT).as_posix() for path in written if outside.search(path.read_text())] == []
    assert outside.search("see " + "/".join(["", "home", "me"]))


def test_what_ships_stays_small() -> None:
    assets = ROOT / "vita_mctp" / "assets"
    assert sum(path.stat().st_size for path in assets.rglob("*") if path.is_file()) <= SHIPPED_LIMIT


def test_levels_import_only_lower_ones() -> None:
    result = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_importing_the_package_is_light() -> None:
    heavy = ["torch", "transformers", "gradio", "soundfile", "soxr", "pocketsphinx", "jiwer", "numpy"]
    code = f"import sys, vita_mctp; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
