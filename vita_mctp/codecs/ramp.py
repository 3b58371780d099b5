"""A codec whose every sample tells its code and its place within it: the measuring stick of sample accounting.

Code n is the ramp (n + o / hop) / codebook_size, o = 0..hop-1. A chunk lost, doubled, moved or cut short shows in the
samples themselves. The decoder holds back `look_ahead` codes, as a vocoder with a future context does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vita_mctp.errors import CheckpointError
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray, IntArray, Wave, WaveChunk


@dataclass(frozen=True)
class RampSettings:
    """What `ramp.json` in a codec folder may hold."""

    codebook_size: int = 64
    sample_rate: int = 16_000
    block_size: int = 8
    look_ahead: int = 2
    frame_rate_numerator: int = 25
    frame_rate_denominator: int = 2

    @classmethod
    def from_folder(cls, folder: Path) -> RampSettings:
        path = folder / "ramp.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder} lacks ramp.json, which a ramp codec folder holds; write {{}} for the defaults"
            )
        try:
            values = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}), a JSON object is wanted; write it again") from None
        if unknown := sorted(set(values) - set(cls.__dataclass_fields__)):
            raise CheckpointError(f"{path} has unknown keys {unknown}; known: {sorted(cls.__dataclass_fields__)}")
        return cls(**values)


class _Ramp:
    name = "ramp"

    def __init__(self, settings: RampSettings | None = None) -> None:
        self.settings = settings = settings or RampSettings()
        self.codebook_size = settings.codebook_size
        self.sample_rate = settings.sample_rate
        self.block_size = settings.block_size
        self.frame_rate = Fraction(settings.frame_rate_numerator, settings.frame_rate_denominator)
        hop = self.sample_rate / self.frame_rate
        if hop.denominator != 1:
            raise CheckpointError(f"a ramp has a whole number of samples for each code, got {hop}; change its rates")
        self.hop = hop.numerator


class RampTokenizer(_Ramp):
    """Reads each code off the middle sample of its hop."""

    @classmethod
    def from_folder(cls, folder: Path) -> RampTokenizer:
        return cls(RampSettings.from_folder(folder))

    def encode(self, wave: Wave) -> AudioCodes:
        count = -(-len(wave.samples) * self.frame_rate // wave.sample_rate)
        middles = (np.arange(count) * 2 + 1) * wave.sample_rate / float(2 * self.frame_rate)
        places = np.minimum(middles.astype(np.int64), len(wave.samples) - 1)
        codes = np.floor(np.abs(wave.samples[places]) * self.codebook_size).astype(np.int64)
        return AudioCodes(np.minimum(codes, self.codebook_size - 1), self.codebook_size, self.frame_rate, self.name)


@dataclass(frozen=True)
class RampState:
    """Codes taken in and not yet given out, and the index of the next chunk."""

    held: tuple[int, ...] = ()
    index: int = 0


class RampDecoder(_Ramp):
    """Writes each code as its ramp."""

    @classmethod
    def from_folder(cls, folder: Path) -> RampDecoder:
        return cls(RampSettings.from_folder(folder))

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
        ramp = np.arange(self.hop, dtype=np.float64) / self.hop
        return ((ids[:, None] + ramp) / self.codebook_size).astype(np.float32).reshape(-1)
