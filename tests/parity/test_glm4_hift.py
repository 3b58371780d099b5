"""HiFT against the reference: pitch, voicing, sines, excitation, last convolution, wave, with random numbers given."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vita_mctp.codecs.flow_decoder.hift import Hift, SourceNoise, starting_phase
from vita_mctp.codecs.flow_decoder.layers import fold_weight_norm
from vita_mctp.codecs.glm4_voice.decoder import load_decoder_config, parse_decoder_config

Tolerances = Callable[[Path], dict[str, Any]]
EVERY = 16
"""The long recordings keep one step of so many."""


def load_hift(folder: Path) -> Hift:
    hift = Hift(load_decoder_config(folder).hift)
    hift.load_state_dict(load_file(folder / "hift.safetensors"))
    return hift.eval()


def recorded_noise(golden: dict[str, Tensor], samples: int) -> SourceNoise:
    base = golden["noise_base"]
    return SourceNoise(
        starting_phase(golden["phase_raw"][..., 0]), base[None, :, torch.arange(samples) % base.shape[1]]
    )


@pytest.mark.parametrize("folded", [False, True])
@torch.inference_mode()
def test_every_stage_of_a_call(hift_case: Any, folded: bool, tolerances: Tolerances) -> None:
    folder, case = hift_case
    near, golden, hift = tolerances(folder), load_file(folder / "hift" / case["file"]), load_hift(folder)
    if folded:
        fold_weight_norm(hift)
    mel, cache = golden["mel"], golden["cache_source"][0]
    noise = recorded_noise(golden, mel.shape[-1] * hift.hop_length)

    def check(name: str, got: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(got, wanted, rtol=0, atol=near[name]["atol"], msg=lambda text: f"{name}: {text}")

    pitch = hift.f0_predictor(mel)
    check("f0", pitch, golden["f0"])
    assert torch.equal(hift.m_source.voiced(pitch)[:, None, :: hift.hop_length], golden["uv_every256"])
    check("source/sine_waves", hift.m_source.sines(pitch, noise)[0][..., ::EVERY], golden["sine_waves_every16"])
    source = hift.m_source(pitch, noise)[0]
    source = torch.cat([cache, source[:, cache.shape[1] :]], 1)
    check("source/sine_waves", source, golden["source"][0])
    features, wanted = hift.features(mel, source), golden["conv_post_out"]
    check("conv_post_out", features if features.shape == wanted.shape else features[..., ::EVERY], wanted)
    check("hift wave", hift(mel, source), golden["wave"])


def test_the_released_tensors_by_name_and_shape(hift_tensors_file: Path) -> None:
    recorded = json.loads(hift_tensors_file.read_text())
    config = parse_decoder_config(json.loads((hift_tensors_file.parent / "decoder_config.json").read_text()))
    with torch.device("meta"):
        hift = Hift(config.hift)
    tensors = {name: list(tensor.shape) for name, tensor in hift.state_dict().items()}
    assert tensors == {name: shape for name, shape, _ in recorded["tensors"]}
    assert sum(map(prod, tensors.values())) == recorded["n_elements"]
    assert sum(parameter.numel() for parameter in hift.parameters()) == recorded["n_parameters"]
