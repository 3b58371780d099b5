"""How one thread tells another to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Cancel:
    """Ends one answer. Any thread may set it, at any time and more than once; it is never taken back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._calls: dict[object, Callable[[], None]] = {}

    @property
    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._lock:
            self._set = True
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:  # not under the lock: they take locks of their own
            call()

    def on_set(self, call: Callable[[], None]) -> Callable[[], None]:
        """Has `call` called once by whoever sets this, or at once where it is set; gives back what takes that back."""
        with self._lock:
            if not self._set:
                key = object()  # the same call may be asked for twice
                self._calls[key] = call
                return lambda: self._forget(key)
        call()
        return lambda: None

    def _forget(self, key: object) -> None:
        with self._lock:
            self._calls.pop(key, None)
