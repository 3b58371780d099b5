"""A codec whose every sample shows its code and its position within it: the measuring stick of sample accounting.

A frame is Q ramps behind each other, one for each codebook; that of id n is (n + o / part) / codebook_size,
o = 0..part-1, where part = hop / Q samples. A chunk lost, doubled, moved or cut short shows in the samples themselves.
The decoder holds back `look_ahead` frames, as a vocoder with a future context does. Importing this registers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from vita_mctp.codecs.registry import register
from vita_mctp.data.tokenize import CodecSource
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema
from vita_mctp.types import AudioBlock, AudioCodes, Code, FloatArray, IntArray, Wave, WaveChunk

register("ramp", tokenizer="ramp:RampTokenizer", decoder="ramp:RampDecoder")
SETTINGS_FILE = "ramp.json"
_Size = Annotated[int, Field(ge=1, le=1 << 20)]


class RampSettings(Schema):
    """What `ramp.json` in a codec folder may hold."""

    codebook_size: _Size = 64
    num_codebooks: Annotated[int, Field(ge=1, le=64)] = 1
    sample_rate: _Size = 16_000
    block_size: _Size = 8
    look_ahead: Annotated[int, Field(ge=0, le=1 << 20)] = 2
    frame_rate_numerator: _Size = 25
    frame_rate_denominator: _Size = 2


class _Ramp:
    name = "ramp"

    def __init__(self, settings: RampSettings | None = None) -> None:
        self.settings = settings = settings or RampSettings()
        self.codebook_size, self.num_codebooks = settings.codebook_size, settings.num_codebooks
        self.sample_rate, self.block_size = settings.sample_rate, settings.block_size
        self.frame_rate = Fraction(settings.frame_rate_numerator, settings.frame_rate_denominator)
        part = self.sample_rate / self.frame_rate / self.num_codebooks
        if part.denominator != 1:
            raise CheckpointError(
                f"got {part} samples for each code of a ramp; wanted a whole number: change its rates"
            )
        self.part = part.numerator

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        return cls(RampSettings.read_json(folder / SETTINGS_FILE))


class RampTokenizer(_Ramp):
    """Reads each code off the middle sample of its ramp."""

    def encode(self, wave: Wave) -> AudioCodes:
        count = -(-len(wave.samples) * self.frame_rate // wave.sample_rate) * self.num_codebooks
        rate = self.frame_rate * self.num_codebooks
        middles = (np.arange(count) * 2 + 1) * wave.sample_rate / float(2 * rate)
        positions = np.minimum(middles.astype(np.int64), len(wave.samples) - 1)
        ids = np.floor(np.abs(wave.samples[positions]) * self.codebook_size).astype(np.int64)
        ids = np.minimum(ids, self.codebook_size - 1)
        if self.num_codebooks > 1:
            ids = ids.reshape(-1, self.num_codebooks)
        return AudioCodes(ids, self.codebook_size, self.frame_rate, self.name)


@dataclass(frozen=True)
class RampState:
    """Codes taken in and not yet given out, and the index of the next chunk."""

    held: tuple[Code, ...] = ()
    index: int = 0


class RampDecoder(_Ramp):
    """Writes each code as its ramp."""

    def start(self, seed: int = 0) -> RampState:
        return RampState()

    def decode_block(self, block: AudioBlock, state: RampState) -> tuple[WaveChunk, RampState]:
        codes = state.held + block.codes
        ready = len(codes) if block.is_last else max(0, len(codes) - self.settings.look_ahead)
        samples = self._samples(np.asarray(codes[:ready], np.int64))
        chunk = WaveChunk(samples, self.sample_rate, state.index, block.is_last)
        return chunk, RampState(codes[ready:], state.index + 1)

    def decode(self, codes: AudioCodes) -> Wave:
        return Wave(self._samples(codes.ids), self.sample_rate)

    def _samples(self, ids: IntArray) -> FloatArray:
        """(n,) or (n, Q) -> n * hop samples."""
        ramp = np.arange(self.part, dtype=np.float64) / self.part
        return ((ids.reshape(-1, 1) + ramp) / self.codebook_size).astype(np.float32).reshape(-1)


@dataclass(frozen=True)
class RampSource(CodecSource):
    """A codec's folder for other processes, which import this module to read it."""
