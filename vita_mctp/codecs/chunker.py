"""Audio codes gathered into blocks that the audio decoder is fed with."""

from __future__ import annotations

from collections.abc import Sequence

from vita_mctp.errors import ConfigError
from vita_mctp.types import AudioBlock


class AudioChunker:
    """Cuts one answer's codes into blocks. Where segments begin and end in the text plays no part.

    block_sizes: codes in each block, the last size for all further ones; a small first one is for an early first sound.
    The last block is sent by `finish`, even when it is empty, so that a decoder gives out what it held back.
    """

    def __init__(self, block_sizes: Sequence[int]) -> None:
        if not block_sizes or min(block_sizes) < 1:
            raise ConfigError(f"each block holds at least one code, got the block sizes {list(block_sizes)}")
        self._sizes = tuple(block_sizes)
        self._codes: list[int] = []
        self._index = 0

    def push(self, code: int) -> AudioBlock | None:
        """The block that this code completes, if any."""
        self._codes.append(code)
        if len(self._codes) < self._sizes[min(self._index, len(self._sizes) - 1)]:
            return None
        return self._cut(is_last=False)

    def finish(self) -> AudioBlock:
        """The rest, marked as the last; nothing may be pushed after it."""
        return self._cut(is_last=True)

    def _cut(self, is_last: bool) -> AudioBlock:
        block = AudioBlock(tuple(self._codes), self._index, is_last)
        self._codes = []
        self._index += 1
        return block
