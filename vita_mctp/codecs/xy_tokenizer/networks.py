"""XY-Tokenizer's networks under their released tensor names: log-mel -> codes, and codes -> samples.

Two encoders of Whisper's form, one for what is said and one for how it sounds, whose states are joined, packed four to
one and quantised in steps, each codebook coding what the ones before left over. Nothing is causal.

F log-mel frames of 10 ms, T = F / 2 states, N = T / 4 frames of codes, Q codebooks, D width. A batch is one recording.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from vita_mctp.codecs.flow_decoder.config import Layers as Count
from vita_mctp.codecs.flow_decoder.config import Size, agree
from vita_mctp.codecs.flow_decoder.hift import overlap_add
from vita_mctp.codecs.flow_decoder.layers import NormedConv1d, named
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema, read_json

CONFIG_FILE = "config.json"
_Width = Annotated[int, Field(ge=4, le=1 << 14, multiple_of=2)]
_Heads = Annotated[int, Field(ge=1, le=256)]


class EncoderConfig(Schema, extra="ignore"):
    """Log-mel frames -> states, one for two frames."""

    num_mel_bins: Size = 80
    d_model: _Width = 768
    encoder_layers: Count = 12
    encoder_attention_heads: _Heads = 12
    encoder_ffn_dim: Size = 3072
    sampling_rate: Literal[16000] = 16000
    hop_length: Literal[160] = 160
    stride_size: Literal[2] = 2
    kernel_size: Literal[3] = 3
    max_audio_seconds: Literal[30] = 30
    scale_embedding: Literal[False] = False
    activation_function: Literal["gelu"] = "gelu"


class AdapterConfig(Schema, extra="ignore"):
    """States -> states, by way of `d_model`."""

    input_dim: Size = 768
    output_dim: Size = 768
    d_model: _Width = 768
    max_source_positions: Annotated[int, Field(ge=1, le=1 << 16)] = 1500
    encoder_layers: Count = 4
    encoder_attention_heads: _Heads = 12
    encoder_ffn_dim: Size = 3072


class AcousticDecoderConfig(Schema, extra="ignore"):
    """States -> mel frames, two for each."""

    num_mel_bins: Size = 80
    d_model: _Width = 768
    decoder_layers: Count = 12
    decoder_attention_heads: _Heads = 12
    decoder_ffn_dim: Size = 3072
    stride_size: Literal[2] = 2
    kernel_size: Literal[3] = 3
    max_audio_seconds: Literal[30] = 30
    activation_function: Literal["gelu"] = "gelu"


class DownsampleConfig(Schema, extra="ignore"):
    d_model: _Width = 768
    avg_pooler: Literal[4] = 4


class QuantizerConfig(Schema, extra="ignore"):
    """Residual vector quantisation."""

    input_dim: Size = 3072
    rvq_dim: Size = 512
    output_dim: Size = 3072
    num_quantizers: Annotated[int, Field(ge=1, le=64)] = 8
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20)] = 1024
    codebook_dim: Size = 512


class UpsampleConfig(Schema, extra="ignore"):
    d_model: _Width = 768
    stride: Literal[4] = 4


class VocosConfig(Schema, extra="ignore"):
    """Mel frames -> samples."""

    input_channels: Size = 80
    dim: Size = 512
    intermediate_dim: Size = 4096
    num_layers: Count = 30
    n_fft: Annotated[int, Field(ge=320, le=1 << 14, multiple_of=320)] = 640
    hop_size: Literal[160] = 160
    padding: Literal["same"] = "same"


class XyConfig(Schema, extra="ignore"):
    sample_rate: Literal[16000] = 16000
    semantic_encoder_kwargs: EncoderConfig = EncoderConfig()
    semantic_encoder_adapter_kwargs: AdapterConfig = AdapterConfig()
    acoustic_encoder_kwargs: EncoderConfig = EncoderConfig()
    pre_rvq_adapter_kwargs: AdapterConfig = AdapterConfig(input_dim=1536)
    downsample_kwargs: DownsampleConfig = DownsampleConfig()
    quantizer_kwargs: QuantizerConfig = QuantizerConfig()
    post_rvq_adapter_kwargs: AdapterConfig = AdapterConfig(input_dim=3072, output_dim=3072, max_source_positions=375)
    upsample_kwargs: UpsampleConfig = UpsampleConfig()
    acoustic_decoder_kwargs: AcousticDecoderConfig = AcousticDecoderConfig()
    vocos_kwargs: VocosConfig = VocosConfig()

    @classmethod
    def from_folder(cls, folder: Path) -> XyConfig:
        """Raises CheckpointError for a config.json that does not describe such a codec; without one: as released."""
        path = folder / CONFIG_FILE
        return cls.parse(read_json(path) if path.is_file() else {}, str(path), CheckpointError)

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        semantic, acoustic = self.semantic_encoder_kwargs, self.acoustic_encoder_kwargs
        adapter, before = self.semantic_encoder_adapter_kwargs, self.pre_rvq_adapter_kwargs
        quantizer, after = self.quantizer_kwargs, self.post_rvq_adapter_kwargs
        down, up, decoder = self.downsample_kwargs, self.upsample_kwargs, self.acoustic_decoder_kwargs
        widths = {
            name: (part.d_model, part.encoder_attention_heads)
            for name, part in self
            if isinstance(part, EncoderConfig | AdapterConfig)
        }
        widths["acoustic_decoder_kwargs"] = (decoder.d_model, decoder.decoder_attention_heads)
        agree(
            [
                *((f"{name}: d_model % heads", width % count, 0) for name, (width, count) in widths.items()),
                ("acoustic_encoder_kwargs: num_mel_bins", acoustic.num_mel_bins, semantic.num_mel_bins),
                ("semantic_encoder_adapter_kwargs: input_dim", adapter.input_dim, semantic.d_model),
                ("pre_rvq_adapter_kwargs: input_dim", before.input_dim, adapter.output_dim + acoustic.d_model),
                ("downsample_kwargs: d_model", down.d_model, before.output_dim),
                ("quantizer_kwargs: input_dim", quantizer.input_dim, down.d_model * down.avg_pooler),
                ("quantizer_kwargs: codebook_dim", quantizer.codebook_dim, quantizer.rvq_dim),
                ("post_rvq_adapter_kwargs: input_dim", after.input_dim, quantizer.output_dim),
                ("upsample_kwargs: d_model", up.d_model, decoder.d_model),
                ("post_rvq_adapter_kwargs: output_dim", after.output_dim, up.d_model * up.stride),
                ("vocos_kwargs: input_channels", self.vocos_kwargs.input_channels, decoder.num_mel_bins),
            ]
        )
        return self


STATES = 1500
"""Positions of an encoder, 30 s."""
PACKED = 4
"""States of one frame of codes."""
_VOCOS_KERNEL = 7
_NORM_EPS = 1e-6
_MAX_MAGNITUDE = 100.0


def sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width): sines, then cosines, as Whisper's encoder has them."""
    rates = torch.exp(-math.log(10_000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class Layers(nn.Module):
    """Whisper's layers with full attention, behind fixed positions."""

    positional_embedding: Tensor

    def __init__(self, count: int, width: int, heads: int, hidden: int, positions: int = STATES) -> None:
        super().__init__()
        self.register_buffer("positional_embedding", sinusoids(positions, width))
        layer = WhisperConfig(
            d_model=width, encoder_attention_heads=heads, encoder_ffn_dim=hidden, attn_implementation="sdpa"
        )
        self.layers = nn.ModuleList(WhisperEncoderLayer(layer) for _ in range(count))
        self.layer_norm = nn.LayerNorm(width)

    def attend(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        x = x + self.positional_embedding[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, None)
        y: Tensor = self.layer_norm(x)
        return y


class AudioEncoder(Layers):
    def __init__(self, config: EncoderConfig) -> None:
        width = config.d_model
        super().__init__(config.encoder_layers, width, config.encoder_attention_heads, config.encoder_ffn_dim)
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, mel: Tensor, states: int) -> Tensor:
        """(1, M, F) of a recording and what follows its end -> (1, states, D); the convolutions see what follows."""
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mel))))
        return self.attend(x[..., :states].transpose(1, 2))


class Adapter(Layers):
    """(1, T, input_dim) -> (1, T, output_dim)."""

    def __init__(self, config: AdapterConfig) -> None:
        width, positions = config.d_model, config.max_source_positions
        heads, hidden = config.encoder_attention_heads, config.encoder_ffn_dim
        super().__init__(config.encoder_layers, width, heads, hidden, positions)
        self.proj = nn.Linear(config.input_dim, width) if config.input_dim != width else nn.Identity()
        self.out_proj = nn.Linear(width, config.output_dim) if config.output_dim != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out_proj(self.attend(self.proj(x)))
        return y


class Downsample(nn.Module):
    """Packs four states (1, T, D) into one (1, N, 4 D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        packed = PACKED * width
        self.gate_proj = nn.Conv1d(width, packed, PACKED, PACKED, bias=False)
        self.up_proj = nn.Conv1d(width, packed, PACKED, PACKED, bias=False)
        self.down_proj = nn.Linear(packed, packed, bias=False)
        self.layer_norm = nn.LayerNorm(packed)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.transpose(1, 2)
        gated = functional.silu(self.gate_proj(channels)) * self.up_proj(channels)
        y: Tensor = self.layer_norm(self.down_proj(gated.transpose(1, 2)) + x.reshape(len(x), -1, PACKED * x.shape[2]))
        return y


class Codebook(nn.Module):
    codebook: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(size, width))


class Quantizer(nn.Module):
    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.input_proj = NormedConv1d(config.input_dim, config.rvq_dim, 1)
        self.output_proj = NormedConv1d(config.rvq_dim, config.output_dim, 1)
        books = (Codebook(config.codebook_size, config.codebook_dim) for _ in range(config.num_quantizers))
        self.quantizers = nn.ModuleList(books)

    @property
    def codebooks(self) -> Tensor:
        """(Q, size, width)."""
        return torch.stack([book.codebook for book in self.quantizers])  # type: ignore[misc]

    def distances(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """(1, N, 4 D) -> ids (N, Q), and the distances (N, Q, size) that each was chosen by."""
        left, ids, found = self.input_proj(packed.transpose(1, 2))[0].T.float(), [], []
        for codes in self.codebooks.float():
            found.append(torch.cdist(left, codes, compute_mode="donot_use_mm_for_euclid_dist"))
            ids.append(found[-1].argmin(1))
            left = left - codes[ids[-1]]
        return torch.stack(ids, 1), torch.stack(found, 1)

    def decode(self, ids: Tensor) -> Tensor:
        """(N, Q) -> (1, N, output_dim)."""
        total = self.codebooks[torch.arange(ids.shape[1], device=ids.device), ids].sum(1)
        y: Tensor = self.output_proj(total.T[None]).transpose(1, 2)
        return y


class Upsample(nn.Module):
    """(1, N, 4 D) -> (1, 4 N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose1d(PACKED * width, width, PACKED, PACKED, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up_conv(x.transpose(1, 2)).transpose(1, 2)
        return y


class AcousticDecoder(Layers):
    """(1, T, D) -> mel (1, M, 2 T)."""

    def __init__(self, config: AcousticDecoderConfig) -> None:
        width = config.d_model
        super().__init__(config.decoder_layers, width, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.deconv1 = nn.ConvTranspose1d(width, width, 3, stride=2)
        self.deconv2 = nn.ConvTranspose1d(width, config.num_mel_bins, 3)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.attend(x).transpose(1, 2)
        return functional.gelu(self.deconv2(functional.gelu(self.deconv1(frames))))[..., : 2 * x.shape[1]]


class ConvNextBlock(nn.Module):
    """(1, C, F) -> (1, C, F): a convolution of each channel, then two linear layers over the channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, _VOCOS_KERNEL, padding=_VOCOS_KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.pwconv1, self.pwconv2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pwconv2(functional.gelu(self.pwconv1(self.norm(self.dwconv(x).transpose(1, 2)))))
        return x + (self.gamma * inner).transpose(1, 2)


class Window(nn.Module):
    window: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(size))


class Vocos(nn.Module):
    """Mel (1, M, F) -> samples (hop F,), by an inverse Fourier transform of what the blocks give (arXiv 2306.00814)."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        width, size = config.dim, config.n_fft
        self.size, self.hop = size, config.hop_size
        self.backbone = named(
            embed=nn.Conv1d(config.input_channels, width, _VOCOS_KERNEL, padding=_VOCOS_KERNEL // 2),
            norm=nn.LayerNorm(width, eps=_NORM_EPS),
            convnext=nn.Sequential(*(ConvNextBlock(width, config.intermediate_dim) for _ in range(config.num_layers))),
            final_layer_norm=nn.LayerNorm(width, eps=_NORM_EPS),
        )
        self.head = named(out=nn.Linear(width, size + 2), istft=Window(size))

    def forward(self, mel: Tensor) -> Tensor:
        embed, norm, blocks, last = self.backbone
        x = last(blocks(norm(embed(mel).transpose(1, 2)).transpose(1, 2)).transpose(1, 2))
        out, istft = self.head
        magnitude, angle = out(x).float().chunk(2, -1)
        spectrum = torch.polar(magnitude.exp().clamp(max=_MAX_MAGNITUDE), angle)
        window = istft.get_buffer("window").float()
        pieces = torch.fft.irfft(spectrum, self.size) * window
        envelope = window.square()[:, None].expand(-1, mel.shape[2])[None]
        cut, total = (self.size - self.hop) // 2, self.hop * mel.shape[2]
        wave = overlap_add(pieces.transpose(1, 2), self.hop) / overlap_add(envelope, self.hop).clamp(min=1e-11)
        return wave[0, cut : cut + total]


class XyNetwork(nn.Module):
    """The whole codec."""

    def __init__(self, config: XyConfig) -> None:
        super().__init__()
        self.semantic_encoder = AudioEncoder(config.semantic_encoder_kwargs)
        self.semantic_encoder_adapter = Adapter(config.semantic_encoder_adapter_kwargs)
        self.acoustic_encoder = AudioEncoder(config.acoustic_encoder_kwargs)
        self.pre_rvq_adapter = Adapter(config.pre_rvq_adapter_kwargs)
        self.downsample = Downsample(config.downsample_kwargs.d_model)
        self.quantizer = Quantizer(config.quantizer_kwargs)
        self.post_rvq_adapter = Adapter(config.post_rvq_adapter_kwargs)
        self.upsample = Upsample(config.upsample_kwargs.d_model)
        self.acoustic_decoder = AcousticDecoder(config.acoustic_decoder_kwargs)
        self.vocos = Vocos(config.vocos_kwargs)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the device and type that it computes with."""
        return self.quantizer.get_parameter("output_proj.bias").new_zeros(0)

    def pack(self, mel: Tensor, states: int) -> Tensor:
        """(M, F) features of a recording and what follows it -> (1, N = states // 4, 4 D), what is quantised."""
        features = mel[None].to(self.like)
        meant = self.semantic_encoder_adapter(self.semantic_encoder(features, states))
        sound = self.acoustic_encoder(features, states)
        joined = self.pre_rvq_adapter(torch.cat([meant, sound], 2))
        y: Tensor = self.downsample(joined[:, : states // PACKED * PACKED])
        return y

    def speak(self, ids: Tensor) -> Tensor:
        """(N, Q) of at most 30 s -> samples (1280 N,)."""
        states = self.upsample(self.post_rvq_adapter(self.quantizer.decode(ids)))
        y: Tensor = self.vocos(self.acoustic_decoder(states))
        return y
