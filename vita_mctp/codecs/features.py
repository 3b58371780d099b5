"""What models without input codes hear: SenseVoice's features, for VITA-Audio-Plus, and Whisper's, for VocalNet.

SenseVoice's are FunASR's front end, as SenseVoiceSmall was trained with it. A recording becomes mel frames of 10 ms,
stacked to frames of 60 ms and normalised with the statistics that lie beside SenseVoiceSmall's weights. FunASR by
default adds a random least significant bit to every sample before (dither); here the same recording always gives the
same features. S frames of 60 ms, D features.

Whisper's are large-v3's: log-mel frames of 10 ms, 128 bands, as of a recording padded to 30 s. What lies behind a
recording is constant, and is left to the encoder to put there: frames go two beyond the length that counts, as the
window of the last ones reaches over the end. F frames, M bands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vita_mctp.audio import resample
from vita_mctp.audio.mel import FEATURE_SIZE, HOP, SAMPLE_RATE, kaldi_fbank, stack_frames, whisper_log_mel
from vita_mctp.errors import AudioError, CheckpointError
from vita_mctp.types import AudioFeatures, FloatArray, Wave

STATISTICS_FILE = "am.mvn"
_REMEDY = "download am.mvn from FunAudioLLM/SenseVoiceSmall"

QUERIES = 4
"""Rows that the encoder puts before a recording's frames: language, event, emotion, text normalisation."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What brings features to mean 0 and variance 1: (features + shift) * scale, each (D,)."""

    shift: FloatArray
    scale: FloatArray

    @classmethod
    def from_file(cls, file: Path) -> FeatureStatistics:
        """Reads the text of a Kaldi network of two layers. Raises CheckpointError when there is no such text."""
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {file} ({error}); {_REMEDY}") from None
        return cls(_layer(text, "AddShift", file), _layer(text, "Rescale", file))


def _layer(text: str, name: str, file: Path) -> FloatArray:
    found = re.search(rf"<{name}>[^\[]*\[([^\]]*)\]", text)
    try:
        values = np.array(found.group(1).split() if found else [], dtype=np.float32)
    except ValueError:
        values = np.zeros(0, np.float32)
    if values.shape != (FEATURE_SIZE,) or not np.isfinite(values).all():
        raise CheckpointError(
            f"{file}: got {len(values)} numbers in the brackets behind <{name}>; wanted {FEATURE_SIZE}: {_REMEDY} again"
        )
    return values


class SenseVoiceFrontEnd:
    """Wave -> features (`AudioFeatureExtractor`). Stateless."""

    name = "sensevoice"
    feature_size, sample_rate = FEATURE_SIZE, SAMPLE_RATE

    def __init__(self, statistics: FeatureStatistics | None = None) -> None:
        """statistics: None leaves features as they are, which the released weights do not understand."""
        self.statistics = statistics

    @classmethod
    def from_folder(cls, folder: Path) -> SenseVoiceFrontEnd:
        """Reads am.mvn of FunAudioLLM/SenseVoiceSmall; CheckpointError when it is missing or damaged."""
        return cls(FeatureStatistics.from_file(folder / STATISTICS_FILE))

    @staticmethod
    def positions(frames: int) -> int:
        """One for each frame, and those of the queries."""
        return frames + QUERIES

    def encode(self, wave: Wave) -> AudioFeatures:
        """(S, D) features, a frame for every begun 60 ms of whole windows; AudioError below one window of 25 ms."""
        frames = stack_frames(kaldi_fbank(resample(wave, self.sample_rate).samples))
        if self.statistics is not None:
            frames = (frames + self.statistics.shift) * self.statistics.scale
        return AudioFeatures(frames, self.positions(len(frames)))


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

    @classmethod
    def positions_in(cls, seconds: float) -> int:
        """Of a recording that long, before it is read; 0: too short."""
        return cls.positions(mel_length(min(round(seconds * SAMPLE_RATE), LONGEST)) + _BEYOND)

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
