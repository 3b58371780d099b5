"""What a tokenizer's folder may hold and what is said when it does not; resampling of many channels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.glm4_voice.tokenizer import Glm4VoiceTokenizer
from vita_mctp.errors import CheckpointError
from vita_mctp.types import Wave

MODEL = Path(__file__).parents[1] / "parity" / "goldens" / "glm4_voice" / "tokenizer" / "model"
WAVE = Wave(np.random.default_rng(0).uniform(-0.3, 0.3, 9_000).astype(np.float32), 16_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def ids_of(folder: Path) -> list[int]:
    ids: list[int] = Glm4VoiceTokenizer.from_folder(folder).encode(WAVE).ids.tolist()
    return ids


def as_trained(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the whole Whisper, with what lies behind the quantiser."""
    prefixed = {f"model.encoder.{name}": tensor for name, tensor in tensors.items()}
    surplus = ["model.encoder.layers.3.fc1.bias", "model.encoder.layer_norm.weight", "model.decoder.layer_norm.weight"]
    return prefixed | {name: torch.zeros(32) for name in surplus}


def without_averages(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("ema_")}


@pytest.mark.parametrize("change", [as_trained, without_averages])
def test_other_forms_of_the_same_weights(folder: Path, change: Any) -> None:
    expected = ids_of(folder)
    assert len(set(expected)) > 2
    rewrite(folder, change)
    assert ids_of(folder) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: x for n, x in t.items() if n != "conv2.bias"}, "lacks conv2.bias"),
        (lambda t: t | {"layers.3.fc1.bias": torch.zeros(64)}, "holds layers.3.fc1.bias"),
        (
            lambda t: t | {"codebook.weight": torch.zeros(100, 32)},
            r"codebook.weight has shape \(100, 32\).*\(128, 32\)",
        ),
        (lambda t: t | {"ema_count": torch.zeros(3)}, r"ema_count has shape \(3,\)"),
    ],
)
def test_a_wrong_tensor_is_named(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        Glm4VoiceTokenizer.from_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named_with_where_to_get_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*1.46 GB.*licence.*hf download THUDM/glm-4-voice-tokenizer"):
        Glm4VoiceTokenizer.from_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_half_a_download_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=rf"{name} is .*damaged.*hf download"):
        Glm4VoiceTokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "pooling_type", "max"),
        ("config.json", "encoder_causal_convolution", False),
        ("config.json", "pooling_position", 2),
        ("config.json", "max_source_positions", 1_000),
        ("config.json", "d_model", None),
        ("preprocessor_config.json", "feature_size", 80),
        ("preprocessor_config.json", "padding_side", "left"),
    ],
)
def test_a_tokenizer_of_another_make_is_refused(folder: Path, name: str, key: str, value: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=f"THUDM/glm-4-voice-tokenizer.*{key}"):
        Glm4VoiceTokenizer.from_folder(folder)


def test_rates_follow_from_the_folder(folder: Path) -> None:
    tokenizer = Glm4VoiceTokenizer.from_folder(folder)
    assert (tokenizer.frame_rate, tokenizer.sample_rate, tokenizer.codebook_size) == (Fraction(25, 2), 16_000, 128)
    codes = tokenizer.encode(WAVE)
    assert (codes.codec, codes.frame_rate, codes.codebook_size) == ("glm4_voice", Fraction(25, 2), 128)
    assert len(tokenizer.encode(Wave(WAVE.samples[:0], 16_000)).ids) == 0
    assert tokenizer.encode_batch([]) == []


def test_groups_of_any_size_give_the_same_codes(folder: Path) -> None:
    tokenizer = Glm4VoiceTokenizer.from_folder(folder)
    waves = [Wave(WAVE.samples[:length], rate) for length in (9_000, 0, 100, 5_120) for rate in (8_000, 16_000)]
    together = [codes.ids.tolist() for codes in tokenizer.encode_batch(waves)]
    assert together == [codes.ids.tolist() for codes in tokenizer.encode_batch(waves, batch_size=2)]
    assert together == [tokenizer.encode(wave).ids.tolist() for wave in waves]


def test_other_precision_is_what_the_weights_become(folder: Path) -> None:
    tokenizer = Glm4VoiceTokenizer.from_folder(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in tokenizer.encoder.parameters()} == {torch.bfloat16}
    assert len(tokenizer.encode(WAVE).ids) == 8


@pytest.mark.parametrize("rates", [(48_000, 16_000), (22_050, 16_000), (8_000, 16_000), (44_101, 16_000)])
def test_channels_are_resampled_apart_and_any_length_fits(rates: tuple[int, int]) -> None:
    for samples in (0, 1, 7, 2_000):
        wave = np.random.default_rng(samples).uniform(-1, 1, (2, samples)).astype(np.float32)
        heard = sinc_resample(wave, *rates)
        assert heard.shape == (2, -(-samples * rates[1] // rates[0]))
        np.testing.assert_allclose(heard[1], sinc_resample(wave[1], *rates), atol=2e-6)


@pytest.mark.parametrize(("hertz", "kept"), [(1_000, 1.0), (5_000, 1.0), (11_000, 0.0)])
def test_what_the_new_rate_cannot_hold_is_filtered_out(hertz: int, kept: float) -> None:
    wave = np.sin(2 * np.pi * hertz * np.arange(9_600) / 48_000).astype(np.float32)
    heard = sinc_resample(wave, 48_000, 16_000)
    expected = kept * np.sin(2 * np.pi * hertz * np.arange(3_200) / 16_000)
    np.testing.assert_allclose(heard[50:-50], expected[50:-50], atol=0.02)
