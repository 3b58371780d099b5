"""Where threads and the event loop meet: answers are made in threads, and awaited here.

A gate lets so many answers be made at once, so many more wait, and refuses the rest at once, and before that whoever
would make the others stutter.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from vita_mctp.cancel import Cancel
from vita_mctp.serving.errors import ApiError
from vita_mctp.serving.load import Load
from vita_mctp.serving.metrics import Metrics
from vita_mctp.serving.options import Limits

T = TypeVar("T")
_LONGEST_RETRY = 30
_REMEMBERED = 32


async def in_thread(make: Callable[[Cancel], Iterator[T]], pool: Executor) -> AsyncGenerator[T, None]:
    """What an iterator made in a thread of `pool` gives; closing this cancels it. Its error is raised."""
    loop, cancel = asyncio.get_running_loop(), Cancel()
    queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

    def post(item: tuple[T] | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def work() -> None:
        try:
            for value in make(cancel):
                post((value,))
                if cancel.is_set:
                    break
            post(None)
        except BaseException as error:  # noqa: BLE001  it is raised where the values are awaited
            post(error)

    pool.submit(work)
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        cancel.set()


class Gate:
    """Belongs to one event loop."""

    def __init__(self, limits: Limits, metrics: Metrics, load: Load) -> None:
        self._limits, self._metrics, self._load = limits, metrics, load
        self._slots = asyncio.Semaphore(limits.running)
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self.running = self.waiting = self.conversations = 0
        self.draining = False

    @asynccontextmanager
    async def answer(self) -> AsyncIterator[None]:
        """Held while an answer is made. Raises ApiError (429) when too many wait, (503) when the server ends.

        The former also when those being made would stutter with one more.
        """
        self._check_load()
        if self._slots.locked() and self.waiting >= self._limits.waiting:
            raise self._refusal("queue", 429, "too many answers are waiting; ask again later")
        self.waiting += 1
        self._show()
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
            self._show()
        self.running += 1
        self._show()
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds.append(time.monotonic() - began)
            self.running -= 1
            self._slots.release()
            self._show()

    def enter_conversation(self) -> None:
        """Raises ApiError as `answer`; else `leave_conversation` is called at its end."""
        self._check_load()
        if self.conversations >= self._limits.conversations:
            raise self._refusal("conversations", 429, "too many conversations are open; come again later")
        self.conversations += 1
        self._show()

    def leave_conversation(self) -> None:
        self.conversations -= 1
        self._show()

    async def drain(self, seconds: float) -> None:
        """Lets nobody in, and returns when all answers are made or the time for that is over."""
        self.draining = True
        end = time.monotonic() + seconds
        while (self.running or self.waiting) and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def _check_load(self) -> None:
        """Whoever comes when nothing is made is let in: that is how the load is measured anew."""
        if self.draining:
            raise self._refusal("draining", 503, "the server is about to end; ask another one")
        at_once = max(self.running, min(self.running + self.waiting + 1, self._limits.running))
        if at_once > 1 and self._load.factor(at_once) > self._limits.real_time_factor:
            raise self._refusal("load", 429, "one more answer would make those being played stutter; ask again later")

    def _refusal(self, reason: str, status: int, message: str) -> ApiError:
        self._metrics.refused.labels(reason).inc()
        each = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        seconds = each * (self.waiting + 1) / self._limits.running
        return ApiError(status, message, code=reason, retry_after=max(1, min(_LONGEST_RETRY, round(seconds))))

    def _show(self) -> None:
        self._metrics.running.set(self.running)
        self._metrics.waiting.set(self.waiting)
        self._metrics.conversations.set(self.conversations)
