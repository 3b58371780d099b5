"""How a step is computed. The plan says what, the scheduler says who, a runner says how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vita_mctp.decoding.request import Request, SequenceState

Token = tuple[int, int]
"""A final token: its id and the level that made it."""


class Runner(Protocol):
    """Runs one model. Everything of one request lies in what `open` returns, so any number of them may be under way."""

    vocab_size: int
    max_positions: int
    num_blocks: int

    def open(self, request: Request) -> Any:
        """A fresh `SequenceState.memory`."""
        ...

    def run(self, states: Sequence[SequenceState]) -> list[list[Token]]:
        """One step for every state: its new tokens in order, none while a long prompt is read, or a whole cycle.

        The states' cursors and memories move on; their ids are the caller's to extend, by all of the tokens or, where
        the answer ends among them, by some and never again.
        """
        ...
