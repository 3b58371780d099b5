"""The figures of each way of packing, against packings done by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from vita_mctp.cli import main
from vita_mctp.data.packing import fills, read_lengths
from vita_mctp.errors import ConfigError, DataError


def test_fills_are_those_of_a_packing_by_hand() -> None:
    reference, first, *best = fills([6, 5, 4, 5, 99], 10).values()  # 6 | 5 4 | 5;  6 4 | 5 5;  6 4 | 5 5
    assert (reference, first, best) == (20 / 30, 1.0, [1.0, 1.0])
    assert list(fills([4, 5, 6, 5], 10).values())[1:3] == [20 / 30, 1.0]  # 4 5 | 6 | 5;  6 4 | 5 5


def test_the_command_prints_them_and_refuses_what_is_no_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("6\n5\n4\n5\n")
    assert main(["data", "pack-report", str(path), "--row-length", "10"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "4 samples, 20 tokens, 0 longer than a row of 10" and printed[1].endswith("66.67%")
    for text, message in (("3\n0\n", ":2: got '0'"), ("3\n\n", ":2: got ''"), ("", "is empty")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_lengths(path)
    with pytest.raises(ConfigError, match="none of 1 samples"):
        fills([11], 10)
