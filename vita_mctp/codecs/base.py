"""What an audio tokenizer and an audio decoder must do, and how codes are cut for a decoder.

B batch, T samples, N frames of codes, Q codebooks. With Q = 1 codes are (N,), else (N, Q).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import chain, islice
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from vita_mctp.errors import ConfigError
from vita_mctp.types import AudioBlock, AudioCodes, AudioFeatures, Code, IntArray, Wave, WaveChunk

_Piece = TypeVar("_Piece")
DecoderState = Any
"""Opaque value owned by one stream; a decoder returns a new one and never keeps it."""


@runtime_checkable
class AudioTokenizer(Protocol):
    """Wave -> codes. Any input rate; resampling to `sample_rate` is the tokenizer's own first step."""

    name: str
    num_codebooks: int
    codebook_size: int
    """Of each codebook."""
    frame_rate: Fraction
    """Frames of codes per second."""
    sample_rate: int

    def encode(self, wave: Wave) -> AudioCodes:
        """ceil(seconds * frame_rate) frames of codes for a wave of at least one sample."""
        ...


@runtime_checkable
class AudioFeatureExtractor(Protocol):
    """Wave -> features, for models without input codes. Any input rate; resampling is the extractor's first step."""

    name: str
    feature_size: int
    sample_rate: int

    @staticmethod
    def positions(frames: int) -> int:
        """Of a prompt, that so many frames take once the model's encoder has read them."""
        ...

    def encode(self, wave: Wave) -> AudioFeatures:
        """At least one frame of `feature_size` numbers; AudioError for a wave that is too short."""
        ...


@runtime_checkable
class AudioDecoder(Protocol):
    """Codes -> wave, offline or block by block with state; streaming equals offline for every cut."""

    name: str
    num_codebooks: int
    codebook_size: int
    frame_rate: Fraction
    sample_rate: int
    block_size: int
    """Frames of codes per block in streaming that this decoder is best fed with."""

    def start(self, seed: int = 0) -> DecoderState:
        """Fresh state for one stream."""
        ...

    def decode_block(self, block: AudioBlock, state: DecoderState) -> tuple[WaveChunk, DecoderState]:
        """Samples that became final with these codes; `is_last` flushes everything held back.

        Over a stream exactly `N * sample_rate / frame_rate` samples come out.
        """
        ...

    def decode(self, codes: AudioCodes) -> Wave:
        """The whole wave at once."""
        chunk, _ = self.decode_block(codes.as_block(), self.start())
        return Wave(chunk.samples, self.sample_rate)


@runtime_checkable
class BatchDecoder(AudioDecoder, Protocol):
    """A decoder that takes blocks of several streams at once; each gets what it would get alone."""

    def decode_blocks(
        self, blocks: Sequence[AudioBlock], states: Sequence[Any]
    ) -> list[tuple[WaveChunk, DecoderState]]: ...

    def decode_block(self, block: AudioBlock, state: DecoderState) -> tuple[WaveChunk, DecoderState]:
        [result] = self.decode_blocks([block], [state])
        return result


def decode_blocks(
    decoder: AudioDecoder, blocks: Sequence[AudioBlock], states: Sequence[DecoderState]
) -> list[tuple[WaveChunk, DecoderState]]:
    """`decode_block` for several streams: in one batch where the decoder takes one."""
    if isinstance(decoder, BatchDecoder):
        return decoder.decode_blocks(blocks, states)
    return [decoder.decode_block(block, state) for block, state in zip(blocks, states, strict=True)]


def check_ids(codes: Sequence[Code], codebook_size: int, codec: str) -> None:
    """Raises ConfigError for an id that is none of a codec's, as a talker's markers are, before it reaches a table."""
    ids = [id for code in codes for id in (code if isinstance(code, tuple) else (code,))]
    if wrong := [id for id in ids if not 0 <= id < codebook_size]:
        raise ConfigError(f"got the id {wrong[0]}; wanted 0 to {codebook_size - 1}, the codes of {codec}")


def encode_pieces(
    cut: Sequence[Sequence[_Piece]], encode: Callable[[list[_Piece]], Iterable[IntArray]], at_once: int
) -> list[IntArray]:
    """The ids of several recordings, each cut into pieces, of which `encode` takes so many of them all at once."""
    every = list(chain.from_iterable(cut))
    batches = (every[start : start + at_once] for start in range(0, len(every), at_once))
    ids = chain.from_iterable(map(encode, batches))
    return [np.concatenate([np.zeros(0, np.int64), *islice(ids, len(pieces))]) for pieces in cut]


class AudioChunker:
    """Cuts one answer's codes into blocks, wherever segments begin and end in the text.

    block_sizes: codes in each block, the last size for all further ones; a small first one is for an early first sound.
    """

    def __init__(self, block_sizes: Sequence[int]) -> None:
        if not block_sizes or min(block_sizes) < 1:
            raise ConfigError(f"got the block sizes {list(block_sizes)}; wanted at least one code in each block")
        self._sizes = tuple(block_sizes)
        self._codes: list[Code] = []
        self._index = 0

    def push(self, code: Code) -> AudioBlock | None:
        """The block that this code completes, if any."""
        self._codes.append(code)
        if len(self._codes) < self._sizes[min(self._index, len(self._sizes) - 1)]:
            return None
        return self._cut(is_last=False)

    def finish(self) -> AudioBlock:
        """The rest, perhaps nothing, marked as the last, so that a decoder gives out what it held back."""
        return self._cut(is_last=True)

    def _cut(self, is_last: bool) -> AudioBlock:
        block = AudioBlock(tuple(self._codes), self._index, is_last)
        self._codes = []
        self._index += 1
        return block
