"""Sizes of XY-Tokenizer; the defaults are those of the released model, the names those of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vita_mctp.codecs.flow_decoder.config import Layers, Size, agree
from vita_mctp.errors import CheckpointError
from vita_mctp.schema import Schema, read_json

CONFIG_FILE = "config.json"
_Width = Annotated[int, Field(ge=4, le=1 << 14, multiple_of=2)]
_Heads = Annotated[int, Field(ge=1, le=256)]


class EncoderConfig(Schema, extra="ignore"):
    """Log-mel frames -> states, one for two frames."""

    num_mel_bins: Size = 80
    d_model: _Width = 768
    encoder_layers: Layers = 12
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
    encoder_layers: Layers = 4
    encoder_attention_heads: _Heads = 12
    encoder_ffn_dim: Size = 3072


class AcousticDecoderConfig(Schema, extra="ignore"):
    """States -> mel frames, two for each."""

    num_mel_bins: Size = 80
    d_model: _Width = 768
    decoder_layers: Layers = 12
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
    num_layers: Layers = 30
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
        semantic, acoustic, quantizer = (
            self.semantic_encoder_kwargs,
            self.acoustic_encoder_kwargs,
            self.quantizer_kwargs,
        )
        adapter, before, after = (
            self.semantic_encoder_adapter_kwargs,
            self.pre_rvq_adapter_kwargs,
            self.post_rvq_adapter_kwargs,
        )
        down, up, decoder = self.downsample_kwargs, self.upsample_kwargs, self.acoustic_decoder_kwargs
        heads = {
            "semantic_encoder": (semantic.d_model, semantic.encoder_attention_heads),
            "acoustic_encoder": (acoustic.d_model, acoustic.encoder_attention_heads),
            "semantic_encoder_adapter": (adapter.d_model, adapter.encoder_attention_heads),
            "pre_rvq_adapter": (before.d_model, before.encoder_attention_heads),
            "post_rvq_adapter": (after.d_model, after.encoder_attention_heads),
            "acoustic_decoder": (decoder.d_model, decoder.decoder_attention_heads),
        }
        agree(
            [
                *((f"{name}_kwargs: d_model % heads", width % count, 0) for name, (width, count) in heads.items()),
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
