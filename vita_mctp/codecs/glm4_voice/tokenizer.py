"""The GLM-4-Voice speech tokenizer: any voice at any rate -> codes, 12.5 per second.

T samples of one segment, L samples of the longest one of a batch in whole codes. All is computed as the released system
does it: torchaudio's resampling, segments of 30 s that know nothing of each other, and zeros behind each segment of a
batch up to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vita_mctp.audio.sinc import sinc_resampler
from vita_mctp.codecs.glm4_voice.features import LogMel
from vita_mctp.codecs.glm4_voice.tokenizer_config import TokenizerConfig, load_tokenizer_config
from vita_mctp.codecs.glm4_voice.tokenizer_weights import load_encoder
from vita_mctp.codecs.glm4_voice.whisper_encoder import WhisperVqEncoder
from vita_mctp.types import AudioCodes, FloatArray, IntArray, Wave

NAME = "glm4_voice"
BATCH_SIZE = 128
"""Segments that the released system computes at once."""


class Glm4VoiceTokenizer:
    """Waves -> codes. A released model heard channel 0 of a stereo recording: `read_wave(..., channel=0)`."""

    name = NAME

    def __init__(self, config: TokenizerConfig, encoder: WhisperVqEncoder) -> None:
        self.config, self.encoder = config, encoder
        self.features = LogMel(config.features, encoder.device)
        self.codebook_size, self.frame_rate = config.encoder.quantize_vocab_size, config.frame_rate
        self.sample_rate = config.features.sampling_rate

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Glm4VoiceTokenizer:
        """Opens a downloaded THUDM/glm-4-voice-tokenizer; codes are the released ones in float32.

        Raises:
            CheckpointError: a file, key or tensor is missing, damaged or does not fit; the message names it.
        """
        config = load_tokenizer_config(folder)
        return cls(config, load_encoder(config.encoder, folder, device=device, dtype=dtype))

    def encode(self, wave: Wave) -> AudioCodes:
        return self.encode_batch([wave])[0]

    def encode_batch(self, waves: Sequence[Wave], batch_size: int = BATCH_SIZE) -> list[AudioCodes]:
        """The codes of each wave; `batch_size` segments of them all are computed at once."""
        size = self.config.features.segment_samples
        heard = [self.resample(wave) for wave in waves]
        segments = [samples[start : start + size] for samples in heard for start in range(0, len(samples), size)]
        ids = [
            row
            for start in range(0, len(segments), batch_size)
            for row in self._encode_segments(segments[start : start + batch_size])
        ]
        counts = [-(-len(samples) // size) for samples in heard]
        ends = np.cumsum(counts)
        return [self.codes(ids[end - count : end]) for end, count in zip(ends, counts, strict=True)]

    def resample(self, wave: Wave) -> FloatArray:
        """The wave's samples at `sample_rate`."""
        return sinc_resampler(wave.sample_rate, self.sample_rate)(wave.samples)

    def codes(self, pieces: Sequence[IntArray]) -> AudioCodes:
        """Pieces of ids, in order, as one."""
        ids = np.concatenate([np.zeros(0, np.int64), *pieces])
        return AudioCodes(ids, self.codebook_size, self.frame_rate, self.name)

    def pad_segments(self, segments: Sequence[FloatArray]) -> Tensor:
        """(T,) each -> (B, L) with zeros behind each, L whole codes."""
        hop = self.config.samples_per_code
        padded = np.zeros((len(segments), -(-max(map(len, segments)) // hop) * hop), np.float32)
        for row, samples in zip(padded, segments, strict=True):
            row[: len(samples)] = samples
        return torch.from_numpy(padded).to(self.encoder.device)

    @torch.inference_mode()
    def _encode_segments(self, segments: Sequence[FloatArray]) -> list[IntArray]:
        """Samples (T,) of segments, none empty -> their ids."""
        frames = [-(-len(samples) // self.config.samples_per_frame) for samples in segments]
        quantized, _ = self.encoder(self.features(self.pad_segments(segments)), frames)
        rows = quantized.ids.cpu().numpy()
        counts = [-(-len(samples) // self.config.samples_per_code) for samples in segments]
        return [row[:count] for row, count in zip(rows, counts, strict=True)]
