"""Two finished runs side by side: the metrics, the paired difference, and what cannot be compared."""

import json
from pathlib import Path

import pytest

from vita_mctp.cli import main
from vita_mctp.evaluation.metrics import ResultRow
from vita_mctp.evaluation.pool import as_lines
from vita_mctp.evaluation.report import compare_runs, read_run

SUMMARY = {
    "task": "asr",
    "benchmark": {"name": "librispeech-test-clean", "samples": 2620},
    "judges": [],
    "rules": {"plain": "plain/1"},
    "whole_set": False,
    "weights": "0123",
    "environment": {"commit": "abc", "accelerators": [], "processor": "a processor", "date": "today"},
}


def finish(folder: Path, edits: list[int], mode: str = "boost", **changes: object) -> str:
    """A run over samples of ten words with so many edits."""
    folder.mkdir()
    texts = {"prompt": "", "references": ["x"], "text": "x", "audio": None, "transcripts": {}, "mode": mode}
    times = {"tokens": 1, "total_seconds": 1, "first_sound_seconds": None, "audio_seconds": 0, "failure": None}
    common = {"rule": "plain", "on": "text", "whole": 10, "reference": "x", "hypothesis": "x"}
    rows = [
        ResultRow.parse({"id": str(i), **texts, **times, "scores": [{**common, "part": edit}]}, "the test")
        for i, edit in enumerate(edits)
    ]
    (folder / "rows.jsonl").write_text(as_lines(rows))
    config = {"system": {"model": "nano", "seed": 0}}
    summary = {**SUMMARY, "config": config, "mode": mode, "n_total": len(rows), "n_failed": 0, **changes}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def test_differences_are_paired_and_to_the_first(tmp_path: Path) -> None:
    names = [finish(tmp_path / "a", [3] * 20), finish(tmp_path / "b", [1] * 20), finish(tmp_path / "c", [2, 4] * 10)]
    first, second, third = compare_runs([read_run(Path(name)) for name in names])
    assert (first.estimate.value, second.estimate.value, third.estimate.value) == pytest.approx((0.3, 0.1, 0.3))
    assert first.against is None and second.against is not None and third.against is not None
    assert second.against.difference.value == pytest.approx(-0.2) and second.against.p_value == pytest.approx(1 / 10001)
    assert third.against.difference.value == pytest.approx(0) and third.against.p_value == 1


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [finish(tmp_path / "a", [3] * 20, "vanilla"), finish(tmp_path / "b", [1] * 20)]
    page = tmp_path / "deep" / "page.md"
    assert main(["evaluate", "report", *names, "--out", str(page)]) == 0
    text = page.read_text()
    assert (
        "| b | nano | boost | 20 (0) | plain | text | 10.0 (10.0 to 10.0) | -20.0 (-20.0 to -20.0) | 0.0001 |" in text
    )
    assert "The whole set has 2620 samples" in text and "- rule plain: plain/1" in text and "weights 0123" in text
    assert capsys.readouterr().out == f"{page}\n"


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = finish(tmp_path / "a", [1, 2])
    (tmp_path / "empty").mkdir()
    for other, complaint in (
        (finish(tmp_path / "more", [1, 2, 3]), "differ in 1 samples, such as '2'"),
        (finish(tmp_path / "ruled", [1, 2], rules={"plain": "plain/2"}), "differ in their rules"),
        (str(tmp_path / "empty"), "wanted: the folder of a finished run"),
    ):
        assert main(["evaluate", "report", first, other]) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1
