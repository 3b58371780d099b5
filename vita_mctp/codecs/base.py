"""What an audio tokenizer and an audio decoder must do. B batch, T samples, N codes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

from vita_mctp.types import AudioBlock, AudioCodes, AudioFeatures, Wave, WaveChunk

DecoderState = Any
"""Opaque value owned by one stream; a decoder returns a new one and never keeps it."""


@runtime_checkable
class AudioTokenizer(Protocol):
    """Wave -> codes. Any input rate; resampling to `sample_rate` is the tokenizer's own first step."""

    name: str
    codebook_size: int
    frame_rate: Fraction
    sample_rate: int

    def encode(self, wave: Wave) -> AudioCodes:
        """ceil(seconds * frame_rate) codes for a wave of at least one sample."""
        ...


@runtime_checkable
class AudioFeatureExtractor(Protocol):
    """Wave -> features, for models that hear no codes. Any input rate; resampling is the extractor's own first step."""

    name: str
    feature_size: int
    sample_rate: int

    def encode(self, wave: Wave) -> AudioFeatures:
        """At least one frame of `feature_size` numbers; AudioError for a wave that is too short."""
        ...


@runtime_checkable
class AudioDecoder(Protocol):
    """Codes -> wave, offline or block by block with state; streaming equals offline for every cut."""

    name: str
    codebook_size: int
    frame_rate: Fraction
    sample_rate: int
    block_size: int
    """Codes per block in streaming that this decoder is best fed with."""

    def start(self, seed: int = 0) -> DecoderState:
        """Fresh state for one stream."""
        ...

    def decode_block(self, block: AudioBlock, state: DecoderState) -> tuple[WaveChunk, DecoderState]:
        """Samples that became final with these codes; `is_last` flushes everything held back.

        Over a stream exactly `total_codes * sample_rate / frame_rate` samples come out.
        """
        ...

    def decode(self, codes: AudioCodes) -> Wave:
        """The whole wave at once."""
        ...
