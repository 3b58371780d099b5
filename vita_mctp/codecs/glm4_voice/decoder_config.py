"""Sizes and constants of the GLM-4-Voice speech decoder: the flow (tokens -> mel) and HiFT (mel -> wave).

The fields are those of the released `config.yaml`. What the released model fixes and this code computes in one way only
is typed as that one value, so that a decoder of another make is refused and not misread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, Literal

from vita_mctp.codecs.glm4_voice.tagged_yaml import read_tagged_yaml
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.strict import build_strict

SAMPLE_RATE, HOP_LENGTH = 22050, 256
"""Hz and samples per frame of the mel between flow and HiFT. The reference writes both into its code."""
CONFIG_FILES = ("config.yaml", "config.json")
"""The released file and the plain one, in the order of looking for them."""
_UNUSED = ("llm", "text_encoder_input_size", "llm_input_size", "llm_output_size", "spk_embed_dim")
"""Top-level keys of the released file that only feed its unused language model, or other keys by reference."""


@dataclass(frozen=True)
class FlowEncoderConfig:
    """Conformer blocks without convolutions, attending causally over blocks of `block_size` tokens."""

    input_size: int
    output_size: int
    attention_heads: int
    linear_units: int
    num_blocks: int
    block_size: int
    dropout_rate: float = 0.0
    positional_dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    normalize_before: Literal[True] = True
    input_layer: Literal["linear"] = "linear"
    pos_enc_layer_type: Literal["rel_pos_espnet"] = "rel_pos_espnet"
    selfattention_layer_type: Literal["block_rel_selfattn"] = "block_rel_selfattn"
    use_cnn_module: Literal[False] = False
    macaron_style: Literal[False] = False


@dataclass(frozen=True)
class RegulatorConfig:
    """Convolutions over the stretched encoder output, one for each ratio."""

    channels: int
    sampling_ratios: tuple[Literal[1], ...]


@dataclass(frozen=True)
class CfmConfig:
    """Conditional flow matching; `training_cfg_rate`, `sigma_min` and `reg_loss_type` matter to training alone."""

    inference_cfg_rate: float
    """Weight of guidance g: (1 + g) conditioned - g unconditioned."""
    sigma_min: float = 1e-6
    solver: Literal["euler"] = "euler"
    t_scheduler: Literal["cosine"] = "cosine"
    training_cfg_rate: float = 0.2
    reg_loss_type: str = "l1"


@dataclass(frozen=True)
class EstimatorConfig:
    """U-net of residual convolutions and transformer blocks that gives the velocity of the mel."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    attention_head_dim: int
    n_blocks: int
    num_mid_blocks: int
    num_heads: int
    dropout: float = 0.0
    act_fn: Literal["gelu"] = "gelu"


@dataclass(frozen=True)
class FlowDecoderConfig:
    """`in_channels` counts the reference's inputs without the condition; the estimator's own count is the true one."""

    in_channels: int
    n_spks: int
    spk_emb_dim: int
    cfm_params: CfmConfig
    estimator: EstimatorConfig


@dataclass(frozen=True)
class FlowConfig:
    """Speech tokens to log-mel frames."""

    input_size: int
    output_size: int
    """Mel bands."""
    spk_embed_dim: int
    vocab_size: int
    input_frame_rate: float
    """Speech tokens per second."""
    encoder: FlowEncoderConfig
    length_regulator: RegulatorConfig
    decoder: FlowDecoderConfig
    output_type: Literal["mel"] = "mel"
    only_mask_loss: bool = True


@dataclass(frozen=True)
class IstftConfig:
    """The inverse transform that ends HiFT."""

    n_fft: int
    hop_len: int


@dataclass(frozen=True)
class F0PredictorConfig:
    """Convolutions that read the pitch off the mel."""

    in_channels: int
    cond_channels: int
    num_class: Literal[1] = 1


@dataclass(frozen=True)
class HiftConfig:
    """Log-mel frames to samples."""

    in_channels: int
    """Mel bands."""
    base_channels: int
    nb_harmonics: int
    sampling_rate: int
    nsf_alpha: float
    """Amplitude of the sine source."""
    nsf_sigma: float
    """Deviation of the noise in its voiced parts."""
    nsf_voiced_threshold: float
    """Hz, above which a frame is voiced."""
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    istft_params: IstftConfig
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    source_resblock_kernel_sizes: tuple[int, ...]
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    f0_predictor: F0PredictorConfig
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99


@dataclass(frozen=True)
class DecoderConfig:
    """Both halves of the decoder."""

    sample_rate: int
    flow: FlowConfig
    hift: HiftConfig

    @property
    def frame_rate(self) -> Fraction:
        """Tokens per second."""
        return Fraction(self.flow.input_frame_rate)


def load_decoder_config(folder: Path) -> DecoderConfig:
    """Reads `config.yaml` as released, or else `config.json`, of a decoder's folder.

    Raises:
        CheckpointError: there is neither, or it is not the configuration of such a decoder; the message names the key.
    """
    path = next((folder / name for name in CONFIG_FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder} has neither {' nor '.join(CONFIG_FILES)}, so it is no GLM-4-Voice decoder: "
            "download the whole of THUDM/glm-4-voice-decoder"
        )
    return parse_decoder_config(read_tagged_yaml(path), str(path))


def parse_decoder_config(values: Mapping[str, Any], where: str = "decoder config") -> DecoderConfig:
    """Nested mappings -> DecoderConfig. Raises CheckpointError on unknown, missing, ill-typed or contradictory keys."""
    wanted = {key: value for key, value in values.items() if key not in _UNUSED and not str(key).startswith("__")}
    try:
        config: DecoderConfig = build_strict(DecoderConfig, wanted, where)
        _check_agreement(config, where)
    except ConfigError as error:
        hint = "only THUDM/glm-4-voice-decoder and decoders of its make can be loaded"
        raise CheckpointError(f"{error} ({hint})") from error
    return config


def _check_agreement(config: DecoderConfig, where: str) -> None:
    flow, hift, encoder, estimator = config.flow, config.hift, config.flow.encoder, config.flow.decoder.estimator
    bands = flow.output_size
    for key, came, wanted in (
        ("sample_rate", config.sample_rate, SAMPLE_RATE),
        ("hift: sampling_rate", hift.sampling_rate, SAMPLE_RATE),
        ("hift: upsample_rates * hop_len", prod(hift.upsample_rates) * hift.istft_params.hop_len, HOP_LENGTH),
        ("hift: in_channels", hift.in_channels, bands),
        ("hift: number of upsample_kernel_sizes", len(hift.upsample_kernel_sizes), len(hift.upsample_rates)),
        ("hift: number of resblock_dilation_sizes", len(hift.resblock_dilation_sizes), len(hift.resblock_kernel_sizes)),
        (
            "hift: number of source_resblock_kernel_sizes",
            len(hift.source_resblock_kernel_sizes),
            len(hift.upsample_rates),
        ),
        (
            "hift: number of source_resblock_dilation_sizes",
            len(hift.source_resblock_dilation_sizes),
            len(hift.upsample_rates),
        ),
        ("hift: f0_predictor: in_channels", hift.f0_predictor.in_channels, bands),
        ("flow: encoder: input_size", encoder.input_size, flow.input_size),
        ("flow: encoder: output_size % attention_heads", encoder.output_size % encoder.attention_heads, 0),
        ("flow: length_regulator: channels", flow.length_regulator.channels, bands),
        ("flow: decoder: spk_emb_dim", flow.decoder.spk_emb_dim, bands),
        ("flow: decoder: estimator: in_channels", estimator.in_channels, 4 * bands),
        ("flow: decoder: estimator: out_channels", estimator.out_channels, bands),
    ):
        if came != wanted:
            raise ConfigError(f"{where}: {key} is {came}, but the rest of the configuration wants {wanted}")
