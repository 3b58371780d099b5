"""One job for each sample, over one process or several; every result is in the journal before it counts."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from vita_mctp.errors import OutputError, VitaError
from vita_mctp.evaluation.cases import Case, as_lines, parse_lines
from vita_mctp.files import write_whole
from vita_mctp.schema import Schema


class Entry(Schema):
    """What a job gives for the sample of that id."""

    id: str


Kind = TypeVar("Kind", bound=Entry)
Made = TypeVar("Made", bound=Entry, covariant=True)
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


def write_text(path: Path, text: str) -> None:
    """A whole file below folders that are made where they lack. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}; name another path or free some space")


class Work(Protocol[Made]):
    """Opened once in each process that shares it, so it must be picklable where there are several."""

    @property
    def name(self) -> str: ...

    def open(self, worker: int) -> Callable[[Case], Made]:
        """worker: this process's number, from 0. The job gives an entry with the case's id."""
        ...


def complete(
    journal: Journal[Kind],
    work: Work[Kind],
    cases: Sequence[Case],
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Kind]:
    """Does what the journal lacks, and gives all of its entries.

    An error that a job raises ends the work; what was done until then is kept, and the next call goes on from it.
    """
    entries = journal.entries()
    left = [case for case in cases if case.id not in entries]
    done = len(cases) - len(left)
    for entry in _results(work, left, min(processes, len(left))) if left else ():
        journal.append(entry)
        entries[entry.id] = entry
        done += 1
        if progress is not None:
            progress(work.name, done, len(cases))
    return entries


def _results(work: Work[Kind], cases: Sequence[Case], processes: int) -> Iterator[Kind]:
    if processes == 1:
        yield from map(work.open(0), cases)
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU, nor the parent's threads
    numbers = context.SimpleQueue()
    for number in range(processes):
        numbers.put(number)
    with ProcessPoolExecutor(processes, context, _open, (work, numbers)) as pool:
        futures: list[Future[Kind]] = [pool.submit(_run, case) for case in cases]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise VitaError(
                f"a process that was {work.name} ended without a word, perhaps for lack of memory; run the same "
                "command again, with fewer --processes, and it goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_job: Callable[[Case], Any] | VitaError | None = None


def _open(work: Work[Any], numbers: Any) -> None:
    """In a new process. A VitaError is kept for the first case: what an initialiser raises loses its words."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends the work
    try:
        _job = work.open(numbers.get())
    except VitaError as error:
        _job = error


def _run(case: Case) -> Any:
    if isinstance(_job, VitaError):
        raise _job
    assert _job is not None
    return _job(case)
