"""Sizes of the nano codec. Every rate is derived from `sample_rate`, `hop_length` and the two strides."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

from vita_mctp.errors import CheckpointError


@dataclass(frozen=True)
class NanoCodecConfig:
    """One codebook at 12.5 codes per second: 16 kHz / 160 samples a frame / 8 frames a code."""

    sample_rate: int = 16_000
    hop_length: int = 160
    """Samples per log-mel frame."""
    mel_window: int = 512
    num_mels: int = 80
    patch_frames: int = 2
    """Log-mel frames per step of the fine (50 Hz) stage."""
    stride: int = 4
    """Fine steps per code."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Finite scalar quantisation levels per dimension; their product is the codebook size."""
    fine_width: int = 160
    coarse_width: int = 256
    expansion: int = 3
    kernel_size: int = 7
    encoder_fine_layers: int = 3
    encoder_coarse_layers: int = 5
    decoder_coarse_layers: int = 3
    decoder_fine_layers: int = 3
    decoder_lookahead: int = 2
    """Codes of future context that the decoder waits for."""
    vocoder_width: int = 192
    vocoder_layers: int = 4
    vocoder_lookahead: int = 3
    """Log-mel frames of future context that the vocoder waits for."""
    vocoder_fft: int = 640

    def __post_init__(self) -> None:
        if self.vocoder_fft % (2 * self.hop_length):
            raise CheckpointError(
                f"vocoder_fft {self.vocoder_fft} must be a multiple of 2 * hop_length {self.hop_length}"
            )

    @property
    def frames_per_code(self) -> int:
        return self.patch_frames * self.stride

    @property
    def samples_per_code(self) -> int:
        return self.frames_per_code * self.hop_length

    @property
    def frame_rate(self) -> Fraction:
        """Codes per second."""
        return Fraction(self.sample_rate, self.samples_per_code)

    @property
    def codebook_size(self) -> int:
        return prod(self.levels)

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> NanoCodecConfig:
        path = folder / "config.json"
        if not path.is_file():
            raise CheckpointError(f"no nano codec in {folder}: config.json is missing")
        values: dict[str, Any] = json.loads(path.read_text())
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise CheckpointError(f"{path}: unknown keys {unknown}; known: {sorted(known)}")
        typed: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**typed)
