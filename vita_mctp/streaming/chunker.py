"""Audio codes gathered into blocks that the audio decoder is fed with."""

from __future__ import annotations

from vita_mctp.errors import ConfigError
from vita_mctp.types import AudioBlock


class AudioChunker:
    """Cuts one answer's codes into blocks. Where segments begin and end in the text plays no part.

    block_size: codes in a block; first_block_size: codes in the first one, fewer for an earlier first sound.
    The last block is sent by `finish`, even when it is empty, so that a decoder gives out what it held back.
    """

    def __init__(self, block_size: int, first_block_size: int | None = None) -> None:
        self._wanted = block_size if first_block_size is None else first_block_size
        if block_size < 1 or self._wanted < 1:
            raise ConfigError(f"a block holds at least one code, got block sizes {self._wanted} and {block_size}")
        self._block_size = block_size
        self._codes: list[int] = []
        self._index = 0

    def push(self, code: int) -> AudioBlock | None:
        """The block that this code completes, if any."""
        self._codes.append(code)
        if len(self._codes) < self._wanted:
            return None
        self._wanted = self._block_size
        return self._cut(is_last=False)

    def finish(self) -> AudioBlock:
        """The rest, marked as the last; nothing may be pushed after it."""
        return self._cut(is_last=True)

    def _cut(self, is_last: bool) -> AudioBlock:
        block = AudioBlock(tuple(self._codes), self._index, is_last)
        self._codes = []
        self._index += 1
        return block
