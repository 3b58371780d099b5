"""Whisper large-v3's features, for VocalNet: log-mel frames of 10 ms, 128 bands, as of a recording padded to 30 s.

What lies behind a recording is constant, and is left to the encoder to put there: frames go two beyond the length that
counts, as the window of the last ones reaches over the end. F frames, M bands.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vita_mctp.audio import resample
from vita_mctp.audio.mel import HOP, SAMPLE_RATE, whisper_log_mel
from vita_mctp.errors import AudioError
from vita_mctp.types import AudioFeatures, Wave

BANDS = 128
LONGEST = 30 * SAMPLE_RATE
"""Samples; what is longer is cut."""

_BEYOND = 2
_FRAMES_OF_ROW = 2 * 5
"""The encoder halves the frames, the adaptor joins five rows to one."""


class WhisperFrontEnd:
    """Wave -> features (`AudioFeatureExtractor`). Stateless."""

    name = "whisper"
    feature_size, sample_rate = BANDS, SAMPLE_RATE

    @classmethod
    def from_folder(cls, folder: Path) -> WhisperFrontEnd:
        """Nothing is read: its constants are Whisper's."""
        return cls()

    @staticmethod
    def positions(frames: int) -> int:
        return (frames - _BEYOND + 1) // _FRAMES_OF_ROW

    def encode(self, wave: Wave) -> AudioFeatures:
        """(F, M), a position for each tenth of a second. Raises AudioError below the first one."""
        samples = resample(wave, SAMPLE_RATE).samples[:LONGEST]
        count = mel_length(len(samples))
        if not self.positions(count + _BEYOND):
            raise AudioError(f"got {len(samples)} samples at 16 kHz; wanted a tenth of a second: record it again")
        mel = whisper_log_mel(np.pad(samples, (0, LONGEST - len(samples))), BANDS).T
        beyond = max(0, count + _BEYOND - len(mel))
        frames = np.pad(mel[: count + _BEYOND], ((0, beyond), (0, 0)), constant_values=mel.min())
        return AudioFeatures(np.ascontiguousarray(frames), self.positions(len(frames)))


def mel_length(samples: int) -> int:
    """Frames that count of so many samples, by the authors' rule: half a frame more, rounded half to even."""
    return round(samples / LONGEST * (LONGEST // HOP) + 0.5)
