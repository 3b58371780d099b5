"""Memories of answers that are over, for requests that go on from them: what was read is not read again.

A conversation's next prompt begins with the last one's ids and the answer's, as far as that was heard. Nobody needs to
say which conversation a request belongs to: the kept answer is taken that has most ids in common with its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vita_mctp.decoding.request import Request, SequenceState
from vita_mctp.decoding.runners import Runner
from vita_mctp.types import HeardAudio, IntArray


@dataclass(frozen=True, eq=False)
class _Kept:
    """prompt: so many of the ids were the request's."""

    ids: IntArray
    prompt: int
    heard: frozenset[HeardAudio]
    memory: Any

    def common(self, ids: IntArray, heard: frozenset[HeardAudio]) -> int:
        """First positions that both hold alike, recordings included; never all of a prompt, whose end is to be read."""
        length = min(len(self.ids), len(ids) - 1)
        different = np.flatnonzero(self.ids[:length] != ids[:length])
        ends = [audio.start for audio in heard ^ self.heard]
        return int(min([length, *different[:1], *ends]))


class KeptMemories:
    """Belongs to one engine. most_tokens: of all that is kept; the longest unused goes first. 0 keeps nothing."""

    def __init__(self, runner: Runner, most_tokens: int) -> None:
        self._runner, self._most = runner, most_tokens
        self._kept: list[_Kept] = []

    def open(self, request: Request) -> Any:
        """A memory for `request`: fresh, or one that has read the beginning of its prompt, and is kept no longer.

        It has room for all of the model's positions, since what goes on from it is not known.
        """
        if not self._most:
            return self._runner.open(request)
        ids, heard = np.array(request.prompt_ids), frozenset(request.heard)
        found = [(kept.common(ids, heard), kept) for kept in self._kept]
        # Less than half a prompt is a system text that another conversation shares.
        found = [(common, kept) for common, kept in found if 2 * common >= kept.prompt]
        while found:
            common, kept = max(found, key=lambda each: each[0])
            if (memory := self._runner.reopen(kept.memory, request, common)) is not None:
                self._kept.remove(kept)
                return memory
            found.remove((common, kept))
        return self._runner.open(replace(request, max_new_tokens=self._runner.max_positions))

    def keep(self, state: SequenceState) -> None:
        """Of an answer that is over, or was given up."""
        if len(state.ids) <= self._most and state.memory is not None:
            prompt = len(state.request.prompt_ids)
            self._kept.append(_Kept(np.array(state.ids), prompt, frozenset(state.request.heard), state.memory))
        while sum(len(kept.ids) for kept in self._kept) > self._most:
            del self._kept[0]
