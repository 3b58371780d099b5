"""Sizes and constants of flow decoders: the flow (codes -> mel) and HiFT (mel -> samples).

The fields are those of the released `config.yaml` files. What the released models fix and this code computes in one way
only is typed as that one value, so that a decoder of another make is refused and not misread.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from vita_mctp.schema import Schema

NUM_GROUPS = 8
"""Of the norms of an estimator that is not causal."""

Size = Annotated[int, Field(ge=1, le=1 << 16)]
Layers = Annotated[int, Field(ge=1, le=64)]
Rate = Annotated[float, Field(ge=0, le=1 << 20)]
_Channels = Annotated[int, Field(ge=1, le=1 << 14)]
_Sizes = Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=8)]


def agree(checks: Iterable[tuple[str, Any, Any]]) -> None:
    """Key, what came, what the rest wants. Raises ValueError, which names the first key that differs."""
    for key, came, fits in checks:
        if came != fits:
            raise ValueError(f"{key} is {came}, but the rest of the configuration wants {fits}")


class CfmConfig(Schema):
    """Conditional flow matching; `training_cfg_rate`, `sigma_min` and `reg_loss_type` matter to training alone."""

    inference_cfg_rate: Rate
    """Weight of guidance g: (1 + g) conditioned - g unconditioned."""
    sigma_min: Rate = 1e-6
    solver: Literal["euler"] = "euler"
    t_scheduler: Literal["cosine"] = "cosine"
    training_cfg_rate: Rate = 0.2
    reg_loss_type: str = "l1"


class EstimatorConfig(Schema):
    """U-net of residual convolutions and transformer blocks that gives the velocity of the mel."""

    in_channels: Size
    out_channels: Size
    channels: Annotated[tuple[_Channels, ...], Field(min_length=1, max_length=8)]
    attention_head_dim: Annotated[int, Field(ge=1, le=1 << 10)]
    n_blocks: Annotated[int, Field(ge=1, le=16)]
    num_mid_blocks: Annotated[int, Field(ge=0, le=64)]
    num_heads: Annotated[int, Field(ge=1, le=256)]
    dropout: Rate = 0.0
    act_fn: Literal["gelu"] = "gelu"
    causal: bool = False
    """Whether its convolutions see no frame to come; then it has one level and norms over the channels alone."""
    static_chunk_size: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Frames of a block that attend to each other and to all before; 0: each frame attends to all."""

    @model_validator(mode="after")
    def _check_causal(self) -> Self:
        agree(
            (
                ("channels", list(self.channels), list(self.channels[:1]) if self.causal else list(self.channels)),
                ("channels % 8", 0 if self.causal else sum(width % NUM_GROUPS for width in self.channels), 0),
                ("static_chunk_size", self.static_chunk_size, self.static_chunk_size if self.causal else 0),
            )
        )
        return self


class FlowDecoderConfig(Schema):
    """`in_channels` counts the reference's inputs without the condition; the estimator's own count is the true one."""

    in_channels: Size
    n_spks: Size
    spk_emb_dim: Size
    cfm_params: CfmConfig
    estimator: EstimatorConfig


class FlowConfig(Schema):
    """Codes to log-mel frames; each codec adds its encoder."""

    input_size: Size
    output_size: Annotated[int, Field(ge=1, le=1 << 10)]
    """Mel bands."""
    spk_embed_dim: Size
    vocab_size: Annotated[int, Field(ge=1, le=1 << 20)]
    input_frame_rate: Annotated[float, Field(gt=0, le=1000)]
    """Codes per second."""
    decoder: FlowDecoderConfig
    output_type: Literal["mel"] = "mel"
    only_mask_loss: bool = True

    @model_validator(mode="after")
    def _check_bands(self) -> Self:
        bands, estimator = self.output_size, self.decoder.estimator
        agree(
            (
                ("decoder: spk_emb_dim", self.decoder.spk_emb_dim, bands),
                ("decoder: estimator: in_channels", estimator.in_channels, 4 * bands),
                ("decoder: estimator: out_channels", estimator.out_channels, bands),
            )
        )
        return self


class IstftConfig(Schema):
    """The inverse transform that ends HiFT."""

    n_fft: Annotated[int, Field(ge=2, le=1 << 12, multiple_of=2)]
    hop_len: Annotated[int, Field(ge=1, le=1 << 11)]

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if 2 * self.hop_len > self.n_fft:
            raise ValueError(f"hop_len is {self.hop_len}, but n_fft {self.n_fft} wants at most the half of it")
        return self


class F0PredictorConfig(Schema):
    """Convolutions that read the pitch off the mel."""

    in_channels: Size
    cond_channels: Annotated[int, Field(ge=1, le=1 << 13)]
    num_class: Literal[1] = 1


class HiftConfig(Schema):
    """Log-mel frames to samples."""

    in_channels: Size
    """Mel bands."""
    base_channels: Annotated[int, Field(ge=2, le=1 << 13)]
    nb_harmonics: Annotated[int, Field(ge=0, le=256)]
    sampling_rate: Annotated[int, Field(ge=1, le=192_000)]
    nsf_alpha: Rate
    """Amplitude of the sine source."""
    nsf_sigma: Rate
    """Deviation of the noise in its voiced parts."""
    nsf_voiced_threshold: Rate
    """Hz, above which a frame is voiced."""
    upsample_rates: _Sizes
    upsample_kernel_sizes: _Sizes
    istft_params: IstftConfig
    resblock_kernel_sizes: _Sizes
    resblock_dilation_sizes: Annotated[tuple[_Sizes, ...], Field(max_length=8)]
    source_resblock_kernel_sizes: _Sizes
    source_resblock_dilation_sizes: Annotated[tuple[_Sizes, ...], Field(max_length=8)]
    f0_predictor: F0PredictorConfig
    lrelu_slope: Rate = 0.1
    audio_limit: Annotated[float, Field(gt=0, le=1)] = 0.99

    @property
    def hop_length(self) -> int:
        """Samples for each mel frame."""
        return prod(self.upsample_rates) * self.istft_params.hop_len

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels, blocks = len(self.upsample_rates), len(self.resblock_kernel_sizes)
        odd = [size for size in (*self.resblock_kernel_sizes, *self.source_resblock_kernel_sizes) if size % 2 == 0]
        agree(
            (
                ("f0_predictor: in_channels", self.f0_predictor.in_channels, self.in_channels),
                ("number of upsample_kernel_sizes", len(self.upsample_kernel_sizes), levels),
                ("number of resblock_dilation_sizes", len(self.resblock_dilation_sizes), blocks),
                ("number of source_resblock_kernel_sizes", len(self.source_resblock_kernel_sizes), levels),
                ("number of source_resblock_dilation_sizes", len(self.source_resblock_dilation_sizes), levels),
                ("base_channels % 2 ** number of upsample_rates", self.base_channels % 2**levels, 0),
                ("even kernel sizes of resblocks", odd, []),
            )
        )
        if self.hop_length > 1 << 14:
            raise ValueError(
                f"upsample_rates and hop_len make {self.hop_length} samples of a frame; wanted a few hundred"
            )
        for kernel, rate in zip(self.upsample_kernel_sizes, self.upsample_rates, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(
                    f"upsample_kernel_sizes has {kernel}, but rate {rate} wants an even number more than it"
                )
        return self
