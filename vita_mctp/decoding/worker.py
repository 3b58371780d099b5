"""The one owner of an engine, where several threads ask at once: their answers share each step's batch."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from itertools import count
from queue import SimpleQueue
from weakref import WeakSet

from vita_mctp.cancel import Cancel
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.request import Request
from vita_mctp.types import TokenEvent


@dataclass(eq=False)
class _Outbox:
    """What one stream waits for: new events, nothing at all where it was cancelled, or the engine's error."""

    request_id: str
    queue: SimpleQueue[list[TokenEvent] | BaseException] = field(default_factory=SimpleQueue)


class EngineWorker:
    """Steps the engine in a thread of its own, which lives as long as there are requests.

    Every stream has a queue of its own, so a client that stops reading holds nobody up. Safe to call from any thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # guards what follows; free while the engine computes
        self._inbox: list[Request | str] = []  # requests to add and numbers to cancel, in the order they came
        self._outboxes: dict[str, _Outbox] = {}  # by number, which is the request's id in the engine
        self._numbers = count()
        self._thread: threading.Thread | None = None
        _WORKERS.add(self)

    def stream(self, request: Request, cancel: Cancel | None = None) -> Generator[TokenEvent, None, None]:
        """The events of one request as they become final; closing the generator cancels it, as does `cancel`.

        The request is refused here and now, or queued at the first `next`. An error of the engine is raised.
        """
        self._engine.budget(request)
        return self._events(request, cancel or Cancel())

    def cancel(self, request_id: str) -> None:
        """Ends every stream of this id before the next step; others go on."""
        with self._lock:
            for number in [number for number, outbox in self._outboxes.items() if outbox.request_id == request_id]:
                self._drop(number)

    def close(self) -> None:
        """Cancels everything and waits for the thread to end. The worker may be used again."""
        with self._lock:
            thread = self._thread
            for number in list(self._outboxes):
                self._drop(number)
        if thread is not None:
            thread.join()

    def _events(self, request: Request, cancel: Cancel) -> Generator[TokenEvent, None, None]:
        outbox = _Outbox(request.id)
        number = self._submit(request, outbox)
        forget = cancel.on_set(lambda: self._stop(number))
        try:
            while new := outbox.queue.get():
                if isinstance(new, BaseException):
                    raise new
                yield from new
                if new[-1].ends is not None:
                    return
        finally:
            forget()
            self._stop(number)

    def _stop(self, number: str) -> None:
        with self._lock:
            self._drop(number)

    def _submit(self, request: Request, outbox: _Outbox) -> str:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="vita-mctp engine", daemon=True)
                _THREADS.add(thread)
                thread.start()
                self._thread = thread
            number = str(next(self._numbers))
            self._outboxes[number] = outbox
            self._inbox.append(replace(request, id=number))
        return number

    def _drop(self, number: str) -> None:
        """With the lock: no more events of a request; no-op for one that has ended."""
        if (outbox := self._outboxes.pop(number, None)) is not None:
            self._inbox.append(number)
            outbox.queue.put([])

    def _work(self) -> None:
        while True:
            try:
                if not self._take_over():
                    return
                self._deliver(self._engine.step())
            except Exception as error:  # noqa: BLE001  nobody may wait for ever for an engine that failed
                self._fail(error)

    def _take_over(self) -> bool:
        """Hands what came to the engine; False, and the thread is over, when there is nothing to do."""
        with self._lock:
            for item in self._inbox:
                if isinstance(item, str):
                    self._engine.cancel(item)
                else:
                    self._engine.add(item)
            self._inbox.clear()
            if not len(self._engine):
                self._thread = None
            return len(self._engine) > 0

    def _deliver(self, events: dict[str, list[TokenEvent]]) -> None:
        with self._lock:
            for number, new in events.items():
                if new and (outbox := self._outboxes.get(number)) is not None:
                    outbox.queue.put(new)
                    if new[-1].ends is not None:
                        del self._outboxes[number]

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._inbox = [item for item in self._inbox if isinstance(item, str)]
            for number, outbox in self._outboxes.items():
                self._engine.cancel(number)
                outbox.queue.put(error)
            self._outboxes.clear()


_WORKERS: WeakSet[EngineWorker] = WeakSet()
_THREADS: WeakSet[threading.Thread] = WeakSet()


@atexit.register
def _end() -> None:
    """No thread may be inside native code when the interpreter goes.

    A thread without requests is its worker's no more, but may be the last to hold it, and free the model.
    """
    for worker in list(_WORKERS):
        worker.close()
    for thread in list(_THREADS):
        thread.join()
