"""The GLM-4-Voice speech tokenizer: any voice at any rate -> codes, 12.5 per second.

Its network is Whisper's encoder with causal convolutions and block-causal attention, then a codebook: frames attend
both ways inside their block and to every earlier block. All is computed as the released system does it: torchaudio's
resampling, segments of 30 s that know nothing of each other, and zeros behind each of a batch up to the longest. The
many keys of a Whisper that a tokenizer never reads are passed over.

B segments, T samples, M mel bands, F log-mel frames, E = F / 2 encoder frames, N = E / pooling codes, D width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from vita_mctp.arrays import check_shapes
from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.base import encode_pieces
from vita_mctp.codecs.flow_decoder.config import Layers, Size, agree
from vita_mctp.codecs.released import load_tensors, shapes_of, without_memory
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema, read_json
from vita_mctp.types import AudioCodes, FloatArray, IntArray, Wave

CONV_STRIDE = 2
"""Log-mel frames per frame of the tokenizer's encoder: its second convolution's stride, which no file names."""
MODEL_FILE, FEATURES_FILE = "config.json", "preprocessor_config.json"
TOKENIZER_REMEDY = (
    "download the whole of THUDM/glm-4-voice-tokenizer (1.46 GB, under the GLM-4 model licence): "
    "hf download THUDM/glm-4-voice-tokenizer --local-dir glm-4-voice-tokenizer"
)
WEIGHTS_FILE = "model.safetensors"
PREFIX = "model.encoder."
"""Before each name in files of the Whisper that the tokenizer was trained in."""
BATCH_SIZE = 128
"""Segments that the released system computes at once."""
KERNEL = 3


class FeatureConfig(Schema, extra="ignore"):
    """Samples -> log-mel frames."""

    sampling_rate: Literal[16_000]
    n_fft: Annotated[int, Field(ge=2, le=1 << 14, multiple_of=2)]
    hop_length: Annotated[int, Field(ge=1, le=1 << 13)]
    feature_size: Annotated[int, Field(ge=1, le=1 << 10)]
    """Mel bands."""
    chunk_length: Annotated[int, Field(ge=1, le=600)]
    """Seconds of a segment; a longer recording is cut into segments that know nothing of each other."""
    padding_side: Literal["right"] = "right"

    @property
    def segment_samples(self) -> int:
        return self.chunk_length * self.sampling_rate


class EncoderConfig(Schema, extra="ignore"):
    """Log-mel frames -> codes."""

    d_model: Annotated[int, Field(ge=1, le=1 << 14)]
    encoder_attention_heads: Annotated[int, Field(ge=1, le=256)]
    encoder_ffn_dim: Size
    num_mel_bins: Annotated[int, Field(ge=1, le=1 << 10)]
    max_source_positions: Annotated[int, Field(ge=1, le=1 << 20)]
    pooling_kernel_size: Annotated[int, Field(ge=1, le=1 << 10)]
    """Encoder frames per code."""
    pooling_position: Layers
    quantize_position: Layers
    """Number of layers, whatever `encoder_layers` says: those behind the quantiser were never released."""
    quantize_vocab_size: Annotated[int, Field(ge=1, le=1 << 20)]
    quantize_causal_block_size: Annotated[int, Field(ge=1, le=1 << 20)]
    """Encoder frames that attend to each other both ways."""
    pooling_type: Literal["avg"] = "avg"
    activation_function: Literal["gelu"] = "gelu"
    scale_embedding: Literal[False] = False
    encoder_causal_convolution: Literal[True] = True
    encoder_causal_attention: Literal[False] = False
    quantize_causal_encoder: Literal[False] = False
    quantize_encoder_only: Literal[True] = True


class TokenizerConfig(Schema):
    """Both halves of the tokenizer, and the rates that follow from them."""

    features: FeatureConfig
    encoder: EncoderConfig

    @property
    def samples_per_frame(self) -> int:
        """Of the encoder."""
        return self.features.hop_length * CONV_STRIDE

    @property
    def samples_per_code(self) -> int:
        return self.samples_per_frame * self.encoder.pooling_kernel_size

    @property
    def frame_rate(self) -> Fraction:
        """Codes per second."""
        return Fraction(self.features.sampling_rate, self.samples_per_code)

    @model_validator(mode="after")
    def _check_halves(self) -> Self:
        features, encoder = self.features, self.encoder
        block, pooling = encoder.quantize_causal_block_size, encoder.pooling_kernel_size
        positions = features.segment_samples // self.samples_per_frame
        agree(
            (
                ("feature_size", features.feature_size, encoder.num_mel_bins),
                ("pooling_position", encoder.pooling_position, encoder.quantize_position),
                ("d_model % encoder_attention_heads", encoder.d_model % encoder.encoder_attention_heads, 0),
                ("quantize_causal_block_size % pooling_kernel_size", block % pooling, 0),
                ("samples per segment % samples per code", features.segment_samples % self.samples_per_code, 0),
                ("max_source_positions", encoder.max_source_positions, max(positions, encoder.max_source_positions)),
                ("hop_length", features.hop_length, min(features.hop_length, features.n_fft // 2)),
            )
        )
        return self


def load_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Reads `config.json` and `preprocessor_config.json` of a tokenizer's folder.

    Raises CheckpointError: one is missing, damaged, or not that of such a tokenizer; the message names the key.
    """
    try:
        model, features = read_json(folder / MODEL_FILE), read_json(folder / FEATURES_FILE)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {TOKENIZER_REMEDY}") from None
    return parse_tokenizer_config(model, features, str(folder))


def parse_tokenizer_config(model: Any, features: Any, where: str = "tokenizer config") -> TokenizerConfig:
    """Released mappings -> TokenizerConfig. Raises CheckpointError on missing, ill-typed or contradictory keys."""
    where = f"{where}, of THUDM/glm-4-voice-tokenizer or its like"
    return TokenizerConfig.parse({"encoder": model, "features": features}, where, CheckpointError)


class WhisperVqEncoder(nn.Module):
    """Log-mel features -> codes; names and shapes of parameters as released."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.d_model
        self.pooling, self.block = config.pooling_kernel_size, config.quantize_causal_block_size
        layer = WhisperConfig(
            d_model=width,
            encoder_attention_heads=config.encoder_attention_heads,
            encoder_ffn_dim=config.encoder_ffn_dim,
            activation_function=config.activation_function,
            attn_implementation="sdpa",
        )
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, KERNEL)
        self.conv2 = nn.Conv1d(width, width, KERNEL, stride=CONV_STRIDE)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(layer) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // config.pooling_kernel_size, width)
        """Released for what came behind the codes in training; no code depends on it."""

    def forward(self, features: Tensor, lengths: Sequence[int]) -> Tensor:
        """Features (B, M, F) of segments -> (B, N, D) for `nearest`. lengths: B counts of valid encoder frames."""
        x = features.to(self.conv1.weight.dtype)
        for conv in (self.conv1, self.conv2):
            x = functional.gelu(conv(functional.pad(x, (KERNEL - 1, 0))))
        x = x.transpose(1, 2)
        seen = attended_frames(lengths, x.shape[1], self.block).to(x.device)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, seen)
        return x.unflatten(1, (-1, self.pooling)).mean(dim=2)

    def nearest(self, hidden: Tensor) -> IntArray:
        """(B, N, D) -> ids (B, N) of the nearest codes."""
        ids: IntArray = squared_distances(hidden, self.codebook.weight).argmin(dim=2).cpu().numpy()
        return ids


def attended_frames(lengths: Sequence[int], frames: int, block: int) -> Tensor:
    """(B, 1, E, E) bool: a frame sees its own block and all before it, as far as they are valid."""
    steps = torch.arange(frames)
    seen = steps // block <= (steps // block)[:, None]
    return seen & (steps < torch.tensor(lengths)[:, None])[:, None, None]


def squared_distances(hidden: Tensor, codebook: Tensor) -> Tensor:
    """(B, N, D) to each of (V, D), in float32: (B, N, V), as |x|^2 + |c|^2 - 2 x c."""
    hidden, codebook = hidden.float(), codebook.float()
    norms = hidden.square().sum(dim=2, keepdim=True) + codebook.square().sum(dim=1)
    return norms - 2.0 * (hidden @ codebook.T)


class Glm4VoiceTokenizer:
    """Waves -> codes. Released models were given channel 0 of a stereo recording: `read_wave(..., channel=0)`."""

    name = "glm4_voice"
    num_codebooks = 1

    def __init__(self, config: TokenizerConfig, encoder: WhisperVqEncoder) -> None:
        self.config, self.encoder = config, encoder
        self.extractor = WhisperFeatureExtractor(**config.features.model_dump())
        self.codebook_size, self.frame_rate = config.encoder.quantize_vocab_size, config.frame_rate
        self.sample_rate = config.features.sampling_rate

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Glm4VoiceTokenizer:
        """Opens a downloaded THUDM/glm-4-voice-tokenizer; codes are the released ones in float32.

        Raises CheckpointError: a file, key or tensor is missing, damaged or does not fit; the message names it.
        """
        config = load_tokenizer_config(folder)
        return cls(config, load_encoder(config.encoder, folder, device=device, dtype=dtype))

    def encode(self, wave: Wave) -> AudioCodes:
        return self.encode_batch([wave])[0]

    def encode_batch(self, waves: Sequence[Wave], batch_size: int = BATCH_SIZE) -> list[AudioCodes]:
        """The codes of each wave; `batch_size` segments of them all are computed at once."""
        found = encode_pieces([self.segments(wave) for wave in waves], self._encode_segments, batch_size)
        return [AudioCodes(each, self.codebook_size, self.frame_rate, self.name) for each in found]

    def segments(self, wave: Wave) -> list[FloatArray]:
        """The wave's samples at `sample_rate`, cut every 30 s."""
        samples = sinc_resample(wave.samples, wave.sample_rate, self.sample_rate)
        size = self.config.features.segment_samples
        return [samples[at : at + size] for at in range(0, len(samples), size)]

    def features(self, segments: Sequence[FloatArray]) -> Tensor:
        """(T,) samples of each -> (B, M, F), zeros behind the shorter ones up to whole codes of the longest."""
        device = self.encoder.codebook.weight.device
        found = self.extractor(
            segments,
            padding="longest",
            pad_to_multiple_of=self.config.samples_per_code,
            sampling_rate=self.sample_rate,
            device=str(device),
            return_tensors="pt",
        )
        features: Tensor = found["input_features"].to(device)
        return features

    @torch.inference_mode()
    def _encode_segments(self, segments: Sequence[FloatArray]) -> list[IntArray]:
        """Samples (T,) of segments, none empty -> their ids."""
        frames = [-(-len(samples) // self.config.samples_per_frame) for samples in segments]
        rows = self.encoder.nearest(self.encoder(self.features(segments), frames))
        counts = [-(-len(samples) // self.config.samples_per_code) for samples in segments]
        return [row[:count] for row, count in zip(rows, counts, strict=True)]


def empty_encoder(config: EncoderConfig) -> WhisperVqEncoder:
    """The network without its numbers, on the meta device."""
    return without_memory(lambda: WhisperVqEncoder(config))


def training_buffers(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codebook's moving averages: released, of no use to a finished codebook, never read."""
    return {"ema_count": (config.quantize_vocab_size,), "ema_weight": (config.quantize_vocab_size, config.d_model)}


def load_encoder(
    config: EncoderConfig, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> WhisperVqEncoder:
    """The folder's network, in eval mode and without gradients.

    Its names are the released ones, or those of the whole Whisper that it was trained in, of which the decoder, the
    last norm and further layers are left out. Raises CheckpointError as `released.read_tensors`.
    """
    path, encoder, depth = folder / WEIGHTS_FILE, empty_encoder(config), config.quantize_position
    stored = load_tensors(path, TOKENIZER_REMEDY)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items() if name.startswith(PREFIX)}
    for name in list(tensors):
        found = re.match(r"layers\.(\d+)\.|layer_norm", name)
        if found and int(found[1] or depth) >= depth:
            del tensors[name]
    tensors, needed = tensors or stored, shapes_of(encoder)
    found_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(found_shapes, needed, path, TOKENIZER_REMEDY, optional=training_buffers(config))
    encoder.load_state_dict({name: tensors[name].to(device, dtype) for name in needed}, assign=True)
    return encoder.eval().requires_grad_(False)
