"""The GLM-4-Voice speech tokenizer: any voice at any rate -> codes, 12.5 per second.

T samples of one segment, L samples of the longest one of a batch in whole codes. All is computed as the released system
does it: torchaudio's resampling, segments of 30 s that know nothing of each other, and zeros behind each segment of a
batch up to the longest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vita_mctp.audio.mel import WhisperLogMel
from vita_mctp.audio.resample import sinc_resampler
from vita_mctp.codecs.glm4_voice.config import (
    TOKENIZER_REMEDY,
    EncoderConfig,
    FeatureConfig,
    TokenizerConfig,
    load_tokenizer_config,
)
from vita_mctp.codecs.glm4_voice.encoder import WhisperVqEncoder
from vita_mctp.codecs.released import check_shapes, shapes_of, without_memory
from vita_mctp.errors import CheckpointError
from vita_mctp.types import AudioCodes, FloatArray, IntArray, Wave

WEIGHTS_FILE = "model.safetensors"
PREFIX = "model.encoder."
"""Before each name in files of the Whisper that the tokenizer was trained in."""
BATCH_SIZE = 128
"""Segments that the released system computes at once."""


class Glm4VoiceTokenizer:
    """Waves -> codes. Released models were given channel 0 of a stereo recording: `read_wave(..., channel=0)`."""

    name = "glm4_voice"
    num_codebooks = 1

    def __init__(self, config: TokenizerConfig, encoder: WhisperVqEncoder) -> None:
        self.config, self.encoder = config, encoder
        self.features = log_mel(config.features, encoder.device)
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


def log_mel(config: FeatureConfig, device: torch.device | str = "cpu") -> WhisperLogMel:
    return WhisperLogMel(config.sampling_rate, config.n_fft, config.hop_length, config.feature_size, device)


def empty_encoder(config: EncoderConfig) -> WhisperVqEncoder:
    """The network without its numbers, on the meta device."""
    return without_memory(lambda: WhisperVqEncoder(config))


def training_buffers(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codebook's moving averages: released, of no use to a finished codebook, never read."""
    return {
        "ema_count": (config.quantize_vocab_size,),
        "ema_weight": (config.quantize_vocab_size, config.d_model),
    }


def load_encoder(
    config: EncoderConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WhisperVqEncoder:
    """The folder's network, in eval mode and without gradients; each tensor is read once, straight where it belongs.

    Raises:
        CheckpointError: the file is not there or cut short, or a tensor is missing, surplus or of another shape.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}: {TOKENIZER_REMEDY}")
    encoder = empty_encoder(config)
    wanted = shapes_of(encoder)
    try:
        with safe_open(path, framework="pt", device=str(device)) as stored:
            names = plain_names(stored.keys(), config)
            shapes = {name: tuple(stored.get_slice(key).get_shape()) for name, key in names.items()}
            check_shapes(shapes, wanted, path, TOKENIZER_REMEDY, optional=training_buffers(config))
            tensors = {name: stored.get_tensor(names[name]).to(dtype) for name in wanted}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): {TOKENIZER_REMEDY}") from None
    encoder.load_state_dict(tensors, assign=True)
    return encoder.eval().requires_grad_(False)


def plain_names(stored: Iterable[str], config: EncoderConfig) -> dict[str, str]:
    """Name in the network -> name in the file: the released ones, or those of the whole Whisper, of which the decoder,
    the last norm and further layers are left out."""
    stored = list(stored)
    prefixed = [name for name in stored if name.startswith(PREFIX)]
    if not prefixed:
        return {name: name for name in stored}
    names = {name.removeprefix(PREFIX): name for name in prefixed}
    return {name: key for name, key in names.items() if not _behind_quantizer(name, config.quantize_position)}


def _behind_quantizer(name: str, num_layers: int) -> bool:
    layer = re.match(r"layers\.(\d+)\.", name)
    return name.startswith("layer_norm") or (layer is not None and int(layer[1]) >= num_layers)
