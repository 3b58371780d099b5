"""Work shared out gives what one process gives, and an error or a death costs only what was under way."""

from pathlib import Path
from typing import Any

import pytest

from vita_mctp.errors import ConfigError, DataError, EndpointError, VitaError
from vita_mctp.evaluation.benchmarks import answer_case
from vita_mctp.evaluation.pool import Entry, Journal, complete

CASES = [answer_case(f"{n:02d}", Path("q.wav"), "?", "abcdefghijkl"[:n]) for n in range(12)]
WANTED = {f"{n:02d}": n for n in range(12)}


def counts(entries: dict[str, Any]) -> dict[str, int]:
    return {name: entry.references for name, entry in entries.items()}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawned process imports with the path of the one that spawns it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("processes", [1, 3])
def test_everything_is_done_once_and_kept(tmp_path: Path, processes: int) -> None:
    from pool_work import Count, OpenCount

    journal, shown = Journal(tmp_path / "deep" / "journal.jsonl", Count), []
    journal.append(Count(id="03", references=3))
    assert (
        counts(complete(journal, "counting", OpenCount(), CASES, processes, lambda *state: shown.append(state)))
        == WANTED
    )
    assert counts(journal.entries()) == WANTED and len(journal.path.read_text().splitlines()) == 12
    assert shown == [("counting", done, 12) for done in range(2, 13)]


@pytest.mark.parametrize(
    ("processes", "failing", "error", "words"),
    [
        (1, "error", EndpointError, "the server is gone"),
        (2, "error", EndpointError, "the server is gone"),
        (2, "death", VitaError, "counting ended without a word"),
        (2, "opening", ConfigError, "nothing to open"),
    ],
)
def test_what_was_done_before_a_failure_is_kept(
    tmp_path: Path, processes: int, failing: str, error: type[VitaError], words: str
) -> None:
    from pool_work import Count, OpenCount

    journal = Journal(tmp_path / "journal.jsonl", Count)
    with pytest.raises(error, match=words):
        complete(journal, "counting", OpenCount("06", failing), CASES, processes)
    kept = counts(journal.entries())
    assert "06" not in kept and kept.items() <= WANTED.items()
    assert processes > 1 or len(kept) == 6
    assert counts(complete(journal, "counting", OpenCount(), CASES)) == WANTED


def test_a_line_cut_short_is_dropped_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    class Note(Entry):
        text: str = ""

    journal = Journal(tmp_path / "journal.jsonl", Note)
    journal.append(Note(id="a", text="é\u2028\n"))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"id": "b", "te\xc3')
    assert list(journal.entries()) == ["a"]
    journal.append(Note(id="c"))
    assert journal.path.read_bytes() == whole + b'{"id": "c", "text": ""}\n'
    journal.path.write_bytes(whole + b'{"text": "x"}\n')
    with pytest.raises(DataError, match=r"journal\.jsonl:2: missing key id"):
        journal.entries()
