"""The released decoder's config.yaml, read without importing anything, and the plain config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vita_mctp.codecs.glm4_voice.decoder import load_decoder_config, parse_decoder_config
from vita_mctp.errors import CheckpointError

RELEASED = """
__set_seed1: !apply:random.seed [1986]
sample_rate: 22050
llm_input_size: 1024
spk_embed_dim: 192
llm: !new:no.such.module.TransformerLM
    llm_input_size: !ref <llm_input_size>
    text_encoder: !new:no.such.module.ConformerEncoder
        static_chunk_size: 1
flow: !new:no.such.module.MaskedDiffWithXvec
    input_size: 512
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: 16384
    input_frame_rate: 12.5
    only_mask_loss: True
    encoder: !new:no.such.module.BlockConformerEncoder
        output_size: 512
        attention_heads: 8
        linear_units: 2048
        num_blocks: 6
        dropout_rate: 0.1
        positional_dropout_rate: 0.1
        attention_dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'block_rel_selfattn'
        block_size: 10
        input_size: 512
        use_cnn_module: False
        macaron_style: False
    length_regulator: !new:no.such.module.InterpolateRegulator
        channels: 80
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:no.such.module.ConditionalCFM
        in_channels: 240
        n_spks: 1
        spk_emb_dim: 80
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.7
                reg_loss_type: 'l1'
        estimator: !new:no.such.module.ConditionalDecoder
            in_channels: 320
            out_channels: 80
            channels: [256, 256]
            dropout: 0
            attention_head_dim: 64
            n_blocks: 4
            num_mid_blocks: 12
            num_heads: 8
            act_fn: 'gelu'
hift: !new:no.such.module.HiFTGenerator
    in_channels: 80
    base_channels: 512
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:no.such.module.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: 512
"""
FULL_SIZE = Path(__file__).parents[1] / "parity/goldens/glm4_voice/full_size/decoder_config.json"


def _folder(path: Path, text: str) -> Path:
    (path / "config.yaml").write_text(text)
    return path


def test_released_yaml_is_the_full_size_json(tmp_path: Path) -> None:
    config = load_decoder_config(_folder(tmp_path, RELEASED))

    assert config == parse_decoder_config(json.loads(FULL_SIZE.read_text()))
    assert config.flow.decoder.cfm_params.sigma_min == 1e-6  # YAML 1.1 would read a string
    assert config.hift.sampling_rate == config.sample_rate == 22050
    assert config.frame_rate * 2 == 25


@pytest.mark.parametrize(
    ("line", "replacement", "complaint"),
    [
        ("block_size: 10", "block_sise: 10", "block_size"),
        ("vocab_size: 16384", "vocab_size: many", "vocab_size: got 'many'"),
        ("use_cnn_module: False", "use_cnn_module: True", "use_cnn_module: got True"),
        ("channels: 80", "channels: 64", "channels is 64.*wants 80"),
        ("upsample_rates: [8, 8]", "upsample_rates: [8, 4]", "hop_len is 128.*wants 256"),
        ("kernel_sizes: [16, 16]", "kernel_sizes: [16]", "number of upsample_kernel_sizes is 1.*wants 2"),
        ("kernel_sizes: [3, 7, 11]", "kernel_sizes: [3, 7]", "number of resblock_dilation_sizes is 3.*wants 2"),
        ("kernel_sizes: [7, 11]", "kernel_sizes: [7]", "number of source_resblock_kernel_sizes is 1.*wants 2"),
        ("!ref <spk_embed_dim>", "!ref <speaker>", "<speaker> names no plain value"),
        ("!ref <spk_embed_dim>", "!ref <spk_embed_dim> * 2", "more than the name of one key"),
        ("!new:no.such.module.HiFTGenerator", "!!python/object/apply:os.getcwd", "could not determine a constructor"),
        ("sample_rate: 22050", "sample_rate: [22050", "not YAML"),
    ],
)
def test_other_files_are_refused_by_key(tmp_path: Path, line: str, replacement: str, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint) as error:
        load_decoder_config(_folder(tmp_path, RELEASED.replace(line, replacement, 1)))
    assert str(tmp_path / "config.yaml") in str(error.value)


def test_a_folder_without_either_file_names_the_repository(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.yaml nor config\.json.*THUDM/glm-4-voice-decoder"):
        load_decoder_config(tmp_path)
