"""A decoder's folder as released and as converted, and the reference streaming on one with small random weights."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glm4_reference_decoder import Glm4VoiceReferenceDecoder
from safetensors.torch import save_file
from torch import Tensor

from vita_mctp.codecs.base import AudioDecoder
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.glm4_voice.decoder import Glm4Flow, Glm4VoiceDecoder, parse_decoder_config
from vita_mctp.errors import CheckpointError
from vita_mctp.types import AudioBlock, AudioCodes

CONFIG: dict[str, Any] = {
    "sample_rate": 22050,
    "flow": {
        "input_size": 16,
        "output_size": 80,
        "spk_embed_dim": 192,
        "vocab_size": 64,
        "input_frame_rate": 12.5,
        "encoder": {
            "input_size": 16,
            "output_size": 16,
            "attention_heads": 2,
            "linear_units": 16,
            "num_blocks": 1,
            "block_size": 10,
        },
        "length_regulator": {"channels": 80, "sampling_ratios": [1]},
        "decoder": {
            "in_channels": 240,
            "n_spks": 1,
            "spk_emb_dim": 80,
            "cfm_params": {"inference_cfg_rate": 0.7},
            "estimator": {
                "in_channels": 320,
                "out_channels": 80,
                "channels": [16, 16],
                "attention_head_dim": 8,
                "n_blocks": 1,
                "num_mid_blocks": 1,
                "num_heads": 2,
            },
        },
    },
    "hift": {
        "in_channels": 80,
        "base_channels": 8,
        "nb_harmonics": 2,
        "sampling_rate": 22050,
        "nsf_alpha": 0.1,
        "nsf_sigma": 0.003,
        "nsf_voiced_threshold": 10,
        "upsample_rates": [8, 8],
        "upsample_kernel_sizes": [16, 16],
        "istft_params": {"n_fft": 16, "hop_len": 4},
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
        "source_resblock_kernel_sizes": [3, 3],
        "source_resblock_dilation_sizes": [[1], [1]],
        "f0_predictor": {"in_channels": 80, "cond_channels": 8},
    },
}
HOP = 256


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the released files: a configuration, and two pickled mappings of tensors."""
    folder, config = tmp_path_factory.mktemp("decoder"), parse_decoder_config(CONFIG)
    torch.manual_seed(0)
    for name, module in (("flow", Glm4Flow(config.flow)), ("hift", Hift(config.hift))):
        torch.save(OrderedDict(module.state_dict()), folder / f"{name}.pt")
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def decoder(released: Path) -> Glm4VoiceReferenceDecoder:
    return Glm4VoiceReferenceDecoder.from_folder(released)


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(released, tmp_path / "copy"))


def codes_of(count: int) -> AudioCodes:
    return AudioCodes(np.arange(count) * 7 % 64, 64, Fraction(25, 2), "glm4_voice")


def speak(decoder: AudioDecoder, blocks: list[list[int]]) -> list[np.ndarray]:
    state, waves = decoder.start(), []
    for index, codes in enumerate(blocks):
        chunk, state = decoder.decode_block(AudioBlock(tuple(codes), index, index == len(blocks) - 1), state)
        assert (chunk.index, chunk.is_last) == (index, index == len(blocks) - 1)
        waves.append(chunk.samples)
    return waves


def assert_same(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_folder_in_safetensors_speaks_the_same(folder: Path, decoder: AudioDecoder) -> None:
    for name in ("flow", "hift"):
        save_file(dict(torch.load(folder / f"{name}.pt")), folder / f"{name}.safetensors")
        (folder / f"{name}.pt").unlink()
    assert_same(speak(Glm4VoiceReferenceDecoder.from_folder(folder), [[3, 1, 4]]), speak(decoder, [[3, 1, 4]]))


def test_loading_leaves_no_empty_tensor_no_gradient_and_no_weight_norm(released: Path) -> None:
    parts = Glm4VoiceDecoder.from_folder(released)
    assert not any(name.endswith("weight_g") for name in parts.hift.state_dict())
    for module in (parts.flow, parts.hift):
        assert not module.training
        for tensor in [*module.parameters(), *module.buffers()]:
            assert not tensor.is_meta and not tensor.requires_grad


def test_the_flow_alone_takes_another_type(released: Path) -> None:
    half = Glm4VoiceReferenceDecoder.from_folder(released, dtype=torch.bfloat16)
    assert {p.dtype for p in half.flow.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.hift.parameters()} == {torch.float32}
    first, last = speak(half, [[1] * 10, [2] * 4])
    assert len(first) == 33 * HOP and np.isfinite(last).all()


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("flow", lambda t: t.pop("encoder_proj.bias"), "flow.pt lacks encoder_proj.bias"),
        ("hift", lambda t: t.pop("ups.1.weight_g"), "hift.pt lacks ups.1.weight_g"),
        ("hift", lambda t: t.update(extra=torch.zeros(1)), "hift.pt holds extra"),
        ("hift", lambda t: t.update({"conv_pre.bias": torch.zeros(3)}), r"conv_pre.bias has shape \(3,\).* \(8,\)"),
        ("flow", lambda t: t.update(step=7), "something else than a mapping of names to tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, part: str, change: Change, message: str) -> None:
    tensors = torch.load(folder / f"{part}.pt")
    change(tensors)
    torch.save(tensors, folder / f"{part}.pt")
    with pytest.raises(CheckpointError, match=message):
        Glm4VoiceDecoder.from_folder(folder)


class NotATensor:
    """What an untrusted file might hold."""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        lambda path: torch.save({"a": NotATensor()}, path),
    ],
)
def test_a_file_cut_short_or_unsafe_is_one_line(folder: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(folder / "hift.pt")
    with pytest.raises(CheckpointError, match=r"hift.pt is cut short.*download the whole of") as caught:
        Glm4VoiceDecoder.from_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "hift.pt").unlink()
    with pytest.raises(CheckpointError, match=r"neither hift\.pt nor hift\.safetensors"):
        Glm4VoiceDecoder.from_folder(folder)


def test_the_tail_is_spoken_when_the_last_block_is_empty(decoder: AudioDecoder) -> None:
    codes = codes_of(20).ids.tolist()
    frames = [len(wave) / HOP for wave in speak(decoder, [codes[:10], codes[10:], []])]
    assert frames == [33, 69, 35]
    assert sum(frames) == 137  # all that 20 tokens make


@pytest.mark.parametrize(
    ("blocks", "silent"), [([[5] * 5, [5, 5], [6]], [True, False, False]), ([[], [5] * 3, []], [True, True, False])]
)
def test_a_beginning_too_short_waits(decoder: AudioDecoder, blocks: list[list[int]], silent: list[bool]) -> None:
    waves = speak(decoder, blocks)
    assert [len(wave) == 0 for wave in waves] == silent
    merged, codes = [wave for wave in waves if len(wave)], [code for block in blocks for code in block]
    joined = [codes] if len(merged) == 1 else [blocks[0] + blocks[1], blocks[2]]
    assert_same(merged, speak(decoder, joined))


def test_an_answer_without_codes_is_silence(decoder: AudioDecoder) -> None:
    assert [len(wave) for wave in speak(decoder, [[], []])] == [0, 0]
    assert len(decoder.decode(codes_of(0)).samples) == 0


def test_two_streams_do_not_mix_and_states_are_values(decoder: AudioDecoder) -> None:
    one, other = [[1] * 10, [2] * 8], [[40] * 10, [41] * 8]
    states = [decoder.start(), decoder.start()]
    waves: list[list[np.ndarray]] = [[], []]
    for index in range(2):
        for row, blocks in enumerate((one, other)):
            block = AudioBlock(tuple(blocks[index]), index, index == 1)
            decoder.decode_block(block, states[row])  # a second call from one state must find it as it was
            chunk, states[row] = decoder.decode_block(block, states[row])
            waves[row].append(chunk.samples)
    for blocks, wave in zip((one, other), waves, strict=True):
        assert_same(wave, speak(decoder, blocks))


def test_the_global_generator_is_left_alone(decoder: AudioDecoder) -> None:
    before = torch.get_rng_state()
    decoder.decode(codes_of(3))
    assert torch.equal(torch.get_rng_state(), before)
