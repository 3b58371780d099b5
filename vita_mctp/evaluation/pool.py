"""One job for each sample, over one process or several; every result is in the journal before it counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Generic, TypeVar

from vita_mctp.errors import DataError
from vita_mctp.evaluation.benchmarks import Case
from vita_mctp.files import cannot_write
from vita_mctp.processes import run_jobs
from vita_mctp.schema import Schema


class Entry(Schema):
    """What a job gives for the sample of that id."""

    id: str


Kind = TypeVar("Kind", bound=Entry)
Line = TypeVar("Line", bound=Schema)
Open = Callable[[int], Callable[[Case], Kind]]
"""Called once in each process that shares the work, with its number from 0; picklable where there are several.

Gives the job: a case in, an entry with the case's id out.
"""

Progress = Callable[[str, int, int], None]
"""(what is being done, done, in all)."""


class Journal(Generic[Kind]):
    """Entries on the disk one by one, in a file that survives a kill at any moment; of one id the latest counts.

    A line that a kill has cut short is dropped, and its work is done again.
    """

    def __init__(self, path: Path, kind: type[Kind]) -> None:
        self.path, self._kind = path, kind

    def entries(self) -> dict[str, Kind]:
        """By id. Raises DataError for a line that is whole and yet no entry."""
        if not self.path.exists():
            return {}
        written = self.path.read_text(encoding="utf-8", errors="replace")
        whole = written[: written.rfind("\n") + 1]
        return {entry.id: entry for entry in parse_lines(whole, self.path, self._kind)}

    def append(self, entry: Kind) -> None:
        """Raises OutputError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                _drop_cut_line(file)
                file.write(as_lines([entry]).encode())
        except OSError as error:
            raise cannot_write(self.path, error) from None


def _drop_cut_line(file: IO[bytes]) -> None:
    size = file.seek(0, 2)
    file.seek(max(size - 1, 0))
    if size and file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def read_lines(path: Path, schema: type[Line]) -> list[Line]:
    """The objects of a file of JSON lines. Raises DataError for a file that is not there, or naming the wrong line."""
    try:
        return parse_lines(path.read_text(encoding="utf-8"), path, schema)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}; wanted: the folder of a finished run") from None


def parse_lines(text: str, path: Path, schema: type[Line]) -> list[Line]:
    """What the lines say. Raises DataError naming the line that says something else."""
    found = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: {error}; wanted: a JSON object; run the evaluation again") from None
        found.append(schema.parse(values, f"{path}:{number}", DataError))
    return found


def as_lines(values: Iterable[Schema]) -> str:
    """What `parse_lines` takes."""
    return "".join(json.dumps(value.to_json_values(), ensure_ascii=False) + "\n" for value in values)


def complete(
    journal: Journal[Kind],
    name: str,
    open_job: Open[Kind],
    cases: Sequence[Case],
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Kind]:
    """Does what the journal lacks, and gives all of its entries. name: of the work, such as "answering".

    An error that a job raises ends the work; what was done until then is kept, and the next call goes on from it.
    """
    entries = journal.entries()
    left = [case for case in cases if case.id not in entries]
    done = len(cases) - len(left)
    for entry in run_jobs(name, open_job, left, min(processes, len(left))) if left else ():
        journal.append(entry)
        entries[entry.id] = entry
        done += 1
        if progress is not None:
            progress(name, done, len(cases))
    return entries
