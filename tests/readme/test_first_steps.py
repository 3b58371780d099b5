"""docs/first_steps.ipynb runs from its first cell to its last, and is shown as it ran."""

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = DOCS / "first_steps.ipynb"
SHOWN = ("eight plus twelve is twenty", "turbo", "step 10 ")


def outputs(cells: list[dict]) -> str:
    return json.dumps([cell["outputs"] for cell in cells if cell["cell_type"] == "code"])


def test_it_is_shown_as_it_ran() -> None:
    """Small, every cell run in order, no error, nothing of one machine."""
    text = NOTEBOOK.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(text) < 300_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "<audio controls" in outputs(cells) and '"error"' not in outputs(cells)
    assert all(word not in text for word in ("/home/", "/root/", "/opt/", "/tmp/"))


@pytest.mark.slow
def test_it_runs() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=170, resources={"metadata": {"path": str(DOCS)}}).execute()
    assert all(word in outputs(notebook.cells) for word in SHOWN)
