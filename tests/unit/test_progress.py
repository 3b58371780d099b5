"""Progress shows on a terminal, where it takes long, and nowhere else."""

import io
import subprocess
import sys

import pytest

from vita_mctp import progress
from vita_mctp.progress import bars, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_rate_and_remaining_time_on_a_terminal_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0)
    assert list(track(range(3), "shards")) == [0, 1, 2]
    assert list(track(iter("ab"), "rows", 2)) == ["a", "b"]
    with bars() as show:
        for part in ("answering", "scoring"):
            for done in (3, 4):
                show(part, done, 4)
    text = shown.getvalue()
    assert (text == "") is not terminal
    for fact in ("shards: 100%", "rows: 100%", "answering: 100%", "scoring: 100%", "3/3", "it/s"):
        assert (fact in text) is terminal


def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    list(track(range(1000), "layers"))
    assert shown.getvalue() == ""


def test_without_a_terminal_its_library_is_not_imported() -> None:
    script = "import sys; from vita_mctp.progress import track; list(track([1], 'x')); print('tqdm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n"
