"""How full rows become by each way of packing, the reference's among them.

    PYTHONPATH=. python tests/training/packing_fill.py LENGTHS ROW_LENGTH

LENGTHS is a file with one length of a sample, in tokens, a line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vita_mctp.data.row_stream import CHUNK, best_fit_decreasing


def fills(lengths: Sequence[int], row_length: int) -> dict[str, float]:
    """Fraction of the rows' positions that hold a token, samples longer than a row left out."""
    fitting = [length for length in lengths if length <= row_length]
    chunks = [fitting[start : start + CHUNK] for start in range(0, len(fitting), CHUNK)]
    rows = {
        "reference, in order of arrival": _next_fit(fitting, row_length),
        f"first fit among {CHUNK}": sum(_first_fit(chunk, row_length) for chunk in chunks),
    } | {f"best fit, longest first, among {buffer}": _best_fit(fitting, row_length, buffer) for buffer in (512, CHUNK)}
    return {way: sum(fitting) / (count * row_length) for way, count in rows.items()}


def _best_fit(lengths: Sequence[int], row_length: int, buffer: int) -> int:
    """Rows used when `buffer` samples are packed together; those of the emptiest row wait for the next ones."""
    rows, waiting = 0, list[int]()
    for length in lengths:
        waiting.append(length)
        if len(waiting) >= buffer:
            bins = [[waiting[index] for index in members] for members in best_fit_decreasing(waiting, row_length)]
            waiting = min(bins, key=sum) if len(bins) > 1 else []
            rows += len(bins) - bool(waiting)
    return rows + len(best_fit_decreasing(waiting, row_length))


def _next_fit(lengths: Sequence[int], row_length: int) -> int:
    """Rows used when a sample that does not fit behind the one before it begins the next row, as released."""
    rows, used = 1, 0
    for length in lengths:
        fits = used + length <= row_length
        rows, used = (rows, used + length) if fits else (rows + 1, length)
    return rows


def _first_fit(lengths: Sequence[int], row_length: int) -> int:
    """Rows used when each sample goes into the first row with room."""
    room: list[int] = []
    for length in lengths:
        row = next((number for number, free in enumerate(room) if free >= length), None)
        if row is None:
            room.append(row_length - length)
        else:
            room[row] -= length
    return len(room)


if __name__ == "__main__":
    for way, fraction in fills([int(line) for line in Path(sys.argv[1]).read_text().split()], int(sys.argv[2])).items():
        print(f"{way:<38} {fraction:7.2%}")
