"""Kaldi's log-mel features with FunASR's stacking of frames, which SenseVoice was trained on.

They are written out because they are short and spare a user of VITA-Audio-Plus another package.

N samples, F frames of 10 ms, S of 60 ms, M mel bands, D = STACKED * M features.
"""

from __future__ import annotations

from functools import cache

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
_INT16_SCALE = 1 << 15  # Kaldi's features are of 16-bit samples
_FLOOR = float(np.finfo(np.float32).eps)

DoubleArray = npt.NDArray[np.float64]


def kaldi_fbank(samples: FloatArray) -> FloatArray:
    """samples (N,) in [-1, 1] at SAMPLE_RATE -> log-mel energies (F, M), F = 1 + (N - WINDOW) // HOP, not normalised.

    As Kaldi's compute-fbank-feats with a Hamming window and no dither; windows that reach over the end are left out.
    Raises AudioError for fewer samples than one window.
    """
    if len(samples) < WINDOW:
        raise AudioError(f"got {len(samples)} samples at 16 kHz; wanted at least {WINDOW}: record it again")
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * np.float64(_INT16_SCALE)
    frames = windows - windows.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft((frames - _PREEMPHASIS * before) * np.hamming(WINDOW), FFT_SIZE)
    energies = (spectrum.real**2 + spectrum.imag**2) @ _mel_filters()
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


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
