"""Work for several processes: each opens its job once and takes items until none is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from vita_mctp.errors import VitaError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_jobs(
    name: str, open_job: Callable[[int], Callable[[Item], Result]], items: Sequence[Item], processes: int
) -> Iterator[Result]:
    """Each item's result, as they are done; what a job raises ends the work.

    name: of the work, such as "answering". open_job: called once in each process, with its number from 0; picklable
    where there are several. Raises VitaError also for a process that dies.
    """
    if processes == 1:
        yield from map(open_job(0), items)
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU, nor the parent's threads
    numbers = context.SimpleQueue()
    for number in range(processes):
        numbers.put(number)
    with ProcessPoolExecutor(processes, context, _open, (open_job, numbers)) as pool:
        futures: list[Future[Result]] = [pool.submit(_run, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise VitaError(
                f"a process that was {name} ended without a word, perhaps for lack of memory; run the same "
                "command again, with fewer --processes, and it goes on"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_job: Callable[[Any], Any] | VitaError | None = None


def _open(open_job: Callable[[int], Callable[[Any], Any]], numbers: Any) -> None:
    """In a new process, which an interrupt ends without a word, and so does its parent's end.

    A VitaError is kept for the first item: what an initialiser raises loses its words.
    """
    global _job
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _job = open_job(numbers.get())
    except VitaError as error:
        _job = error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(item: Any) -> Any:
    if isinstance(_job, VitaError):
        raise _job
    assert _job is not None
    return _job(item)
