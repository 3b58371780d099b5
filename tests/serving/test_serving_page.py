"""docs/serving.md says what works: its Python runs against a server."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()


def test_the_clients(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
    assert "http://127.0.0.1:8000" in examples
    exec(compile(examples.replace("http://127.0.0.1:8000", address), "serving.md", "exec"), {})
    heard, asked, live = capsys.readouterr().out.strip().split("\n")
    assert heard == "what is eight plus twelve"
    assert "twenty" in asked and "twenty" in live and (tmp_path / "speech.wav").stat().st_size > 10_000
