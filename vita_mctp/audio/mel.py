"""Log-mel features: Kaldi's, with FunASR's stacking of frames, which SenseVoice was trained on, and Whisper's.

Kaldi's are written out because they are short and spare a user of VITA-Audio-Plus another package.

N samples, F frames of 10 ms, S of 60 ms, M mel bands, D = STACKED * M features.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vita_mctp.errors import AudioError
from vita_mctp.types import FloatArray

SAMPLE_RATE = 16_000
WINDOW, HOP, FFT_SIZE = SAMPLE_RATE * 25 // 1000, SAMPLE_RATE * 10 // 1000, 512
NUM_MELS = 80
STACKED, STRIDE = 7, 6
"""Frames of 10 ms in one stacked frame, and from one stacked frame to the next ("low frame rate")."""
FEATURE_SIZE = STACKED * NUM_MELS

_LOWEST_HZ, _HIGHEST_HZ = 20.0, SAMPLE_RATE / 2
_PREEMPHASIS = 0.97
_POVEY = 0.85
"""Exponent of a Hann window, which makes it Kaldi's."""
_INT16_SCALE = 1 << 15  # Kaldi's features are of 16-bit samples
_FLOOR = float(np.finfo(np.float32).eps)

DoubleArray = npt.NDArray[np.float64]


def kaldi_fbank(samples: FloatArray, povey: bool = False) -> FloatArray:
    """samples (N,) in [-1, 1] at SAMPLE_RATE -> log-mel energies (F, M), F = 1 + (N - WINDOW) // HOP, not normalised.

    As Kaldi's compute-fbank-feats with no dither; windows that reach over the end are left out. povey: Kaldi's own
    window and samples as they are, as torchaudio has both by default; else a Hamming window and 16-bit samples.
    Raises AudioError for fewer samples than one window.
    """
    if len(samples) < WINDOW:
        raise AudioError(f"got {len(samples)} samples at 16 kHz; wanted at least {WINDOW}: record it again")
    scale = np.float64(1 if povey else _INT16_SCALE)
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * scale
    frames = windows - windows.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = np.hanning(WINDOW) ** _POVEY if povey else np.hamming(WINDOW)
    spectrum = np.fft.rfft((frames - _PREEMPHASIS * before) * window, FFT_SIZE)
    energies = (spectrum.real**2 + spectrum.imag**2) @ _mel_filters()
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


def whisper_log_mel(samples: FloatArray, bands: int) -> FloatArray:
    """samples (N,) at SAMPLE_RATE -> Whisper's features (bands, F) of just these samples, F = N // HOP.

    Fewer samples than half a window of 25 ms, of which no frame can be mirrored, are taken with zeros behind.
    """
    extractor = _whisper_extractor(bands)
    if len(samples) <= WINDOW // 2:
        samples = np.pad(samples, (0, WINDOW // 2 + 1 - len(samples)))
    found = extractor(samples, padding=False, truncation=False, sampling_rate=SAMPLE_RATE, return_tensors="np")
    features: FloatArray = found["input_features"][0]
    return features


@cache
def _whisper_extractor(bands: int) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=bands, sampling_rate=SAMPLE_RATE, hop_length=HOP, n_fft=WINDOW)


def stack_frames(frames: FloatArray) -> FloatArray:
    """frames (F, M) -> (ceil(F / STRIDE), STACKED * M): each frame STRIDE * s among its neighbours, edges repeated."""
    centres = np.arange(0, len(frames), STRIDE)[:, None]
    neighbours = centres + np.arange(STACKED) - (STACKED - 1) // 2
    return frames[neighbours.clip(0, len(frames) - 1)].reshape(len(centres), -1)


@cache
def _mel_filters() -> DoubleArray:
    """(FFT_SIZE // 2 + 1, M) triangles, equally wide and with straight sides on the mel scale."""
    edges = np.linspace(_mel(_LOWEST_HZ), _mel(_HIGHEST_HZ), NUM_MELS + 2)
    bins = _mel(np.arange(FFT_SIZE // 2 + 1) * (SAMPLE_RATE / FFT_SIZE))[:, None]
    width = edges[1] - edges[0]
    return np.maximum(0.0, np.minimum(bins - edges[:-2], edges[2:] - bins) / width)


def _mel(hertz: npt.ArrayLike) -> DoubleArray:
    return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)
