"""A recording -> the voice that CosyVoice2's decoder speaks in, as VocalNet's scripts prepare it.

This wants the folder's two ONNX models, once: the speech tokenizer and the speaker model CAM++. What comes out is one
safetensors file, with which speaking needs neither. N samples, F mel frames, M mel bands.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vita_mctp.audio.mel import SAMPLE_RATE, kaldi_fbank, whisper_log_mel
from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.cosyvoice2.decoder import FRAMES_PER_CODE
from vita_mctp.codecs.flow_decoder.folder import VoicePrompt
from vita_mctp.errors import AudioError, CheckpointError
from vita_mctp.types import FloatArray, IntArray, Wave

TOKENIZER_FILE, SPEAKER_FILE = "speech_tokenizer_v2.onnx", "campplus.onnx"
MEL_RATE = 24_000
SILENCE_BEHIND = 4_800
"""Samples at 16 kHz."""
_FRAME, _HOP = 440, 220
_QUIETEST = 1e-5
_TRIM_DB = 60.0
_PEAK = 0.8
_MEL_FFT, _MEL_HOP, _MEL_BANDS, _MEL_HIGHEST = 1920, 480, 80, 8000.0
_SPEECH_BANDS = 128


class PromptModels(Protocol):
    """What a voice is prepared with; both take samples (N,) at 16 kHz."""

    def codes(self, samples: FloatArray) -> IntArray: ...

    def embedding(self, samples: FloatArray) -> FloatArray:
        """(E,) of the speaker."""
        ...


def prepare_voice(wave: Wave, models: PromptModels) -> VoicePrompt:
    """Raises AudioError for a recording below 16 kHz or without a sample."""
    samples = prompt_samples(wave)
    mel = prompt_mel(sinc_resample(samples, SAMPLE_RATE, MEL_RATE))
    codes = models.codes(samples)
    count = min(len(codes), mel.shape[1] // FRAMES_PER_CODE)
    embedding = torch.from_numpy(models.embedding(samples))
    return VoicePrompt(torch.from_numpy(codes[:count]), mel[:, : count * FRAMES_PER_CODE].contiguous(), embedding)


def prompt_samples(wave: Wave) -> FloatArray:
    """At 16 kHz, without the silence at either end, no louder than a peak of 0.8, and 0.3 s of zeros behind."""
    if wave.sample_rate < SAMPLE_RATE or not len(wave.samples):
        came = f"{len(wave.samples)} samples at {wave.sample_rate} Hz"
        raise AudioError(f"got {came} for a voice; wanted a recording of {SAMPLE_RATE} Hz or more: record it again")
    samples = trim(sinc_resample(wave.samples, wave.sample_rate, SAMPLE_RATE))
    peak = np.abs(samples).max()
    scaled = samples / peak * np.float32(_PEAK) if peak > _PEAK else samples
    return np.concatenate([scaled, np.zeros(SILENCE_BEHIND, np.float32)])


def trim(samples: FloatArray) -> FloatArray:
    """From the first to the last frame less than 60 dB below the loudest one."""
    padded = np.pad(samples, _FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    loudness = 20 * np.log10(np.maximum(np.sqrt(np.square(frames).mean(1)), _QUIETEST))
    loud = np.flatnonzero(loudness > loudness.max() - _TRIM_DB)
    return samples[loud[0] * _HOP : (loud[-1] + 1) * _HOP]


def prompt_mel(samples: FloatArray) -> Tensor:
    """(N,) at 24 kHz -> (M, F = N // 480) natural logarithms of magnitudes."""
    margin = (_MEL_FFT - _MEL_HOP) // 2
    padded = torch.from_numpy(np.pad(samples, margin, mode="reflect"))
    window = torch.hann_window(_MEL_FFT)
    spectrum = torch.stft(padded, _MEL_FFT, _MEL_HOP, window=window, center=False, return_complex=True)
    magnitudes = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return (_mel_filters() @ magnitudes).clamp(min=1e-5).log()


@cache
def _mel_filters() -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(_MEL_FFT // 2 + 1, _MEL_BANDS, 0.0, _MEL_HIGHEST, MEL_RATE, "slaney", "slaney")
    return torch.from_numpy(filters.T).float()


def speaker_features(samples: FloatArray) -> FloatArray:
    """(N,) at 16 kHz -> (F, 80), what CAM++ reads: mean 0 over time."""
    features = kaldi_fbank(samples, povey=True)
    return features - features.mean(axis=0)


class OnnxModels:
    """Both models of a released folder, on the CPU (`PromptModels`)."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError when one is not there or no ONNX model."""
        self.tokenizer, self.speaker = _open(folder / TOKENIZER_FILE), _open(folder / SPEAKER_FILE)

    def codes(self, samples: FloatArray) -> IntArray:
        pieces = [samples[at : at + 30 * SAMPLE_RATE] for at in range(0, len(samples), 30 * SAMPLE_RATE)]
        return np.concatenate([self._piece(whisper_log_mel(piece, _SPEECH_BANDS)) for piece in pieces])

    def embedding(self, samples: FloatArray) -> FloatArray:
        found: FloatArray = _run(self.speaker, speaker_features(samples)[None]).astype(np.float32).reshape(-1)
        return found

    def _piece(self, features: FloatArray) -> IntArray:
        ids: IntArray = _run(self.tokenizer, features[None], np.array([features.shape[1]], np.int32)).reshape(-1)
        return ids.astype(np.int64)


def _open(path: Path) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except OSError as error:
        reason = error.strerror
    except Exception as error:  # noqa: BLE001  onnxruntime's own classes have no common one
        reason = " ".join(str(error).split())[:200]
    raise CheckpointError(f"cannot open {path}: {reason}; download it from FunAudioLLM/CosyVoice2-0.5B") from None


def _run(model: Any, *inputs: Any) -> Any:
    """The first output, inputs in the model's own order."""
    values = {given.name: value for given, value in zip(model.get_inputs(), inputs, strict=True)}
    return model.run(None, values)[0]
