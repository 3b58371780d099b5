"""Who runs in the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from vita_mctp.decoding.request import Request, SequenceState
from vita_mctp.errors import ConfigError


class Scheduler:
    """First come, first served: up to `max_batch` requests run, the others wait. Belongs to one thread."""

    def __init__(self, max_batch: int) -> None:
        if max_batch < 1:
            raise ConfigError(f"max_batch {max_batch} given; wanted at least 1")
        self.max_batch = max_batch
        self._waiting: deque[SequenceState] = deque()
        self._running: list[SequenceState] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def __contains__(self, request_id: str) -> bool:
        return any(state.request.id == request_id for state in (*self._waiting, *self._running))

    def add(self, state: SequenceState) -> None:
        self._waiting.append(state)

    def drop(self, request_id: str) -> SequenceState | None:
        """Forgets a request, and gives it back if it ran; ids that are not here have ended already."""
        dropped = next((state for state in self._running if state.request.id == request_id), None)
        self._waiting = deque(state for state in self._waiting if state.request.id != request_id)
        self._running = [state for state in self._running if state.request.id != request_id]
        return dropped

    def schedule(self, allocate: Callable[[Request], Any]) -> list[SequenceState]:
        """Those to run now: with newcomers as far as there is room, who get their memory here, not while they wait."""
        while self._waiting and len(self._running) < self.max_batch:
            self._waiting[0].memory = allocate(self._waiting[0].request)
            self._running.append(self._waiting.popleft())
        return list(self._running)

    def retire(self) -> list[SequenceState]:
        """Forgets what has ended, and gives it back."""
        ended = [state for state in self._running if state.reason is not None]
        self._running = [state for state in self._running if state.reason is None]
        return ended
