"""CosyVoice2's decoder against VocalNet's copy of it: flow, HiFT, streaming calls, and all names at full size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from cosyvoice2_reference_decoder import CosyVoice2ReferenceDecoder, ReferenceState, new_mel
from glm4_reference_decoder import vocode
from safetensors.torch import load_file
from torch import Tensor, nn

from vita_mctp.codecs.cosyvoice2.decoder import RELEASED, CosyVoice2Config, CosyVoice2Decoder, CosyVoice2Flow
from vita_mctp.codecs.flow_decoder.flow import CodeWindows, attended_keys, time_steps
from vita_mctp.codecs.flow_decoder.hift import Hift, SourceNoise, starting_phase
from vita_mctp.types import AudioBlock


@pytest.fixture(scope="module")
def opened(cosyvoice2_folder: Callable[..., Path]) -> Callable[[Any], CosyVoice2Decoder]:
    """A case's model through the real loader, with its voice prompt."""
    return cache(lambda case: CosyVoice2Decoder.from_folder(cosyvoice2_folder(case.folder, case.tensors)))


def recorded_outputs(flow: CosyVoice2Flow) -> dict[str, Tensor]:
    """Filled by the next call of `flow.mean`."""
    encoder, found = flow.encoder, {}
    modules = {
        "embed_out": encoder.embed,
        "lookahead_out": encoder.pre_lookahead_layer,
        "layers_out": encoder.encoders[-1],
        "upsample_out": encoder.up_layer,
        "up_embed_out": encoder.up_embed,
        "encoder_out": encoder.after_norm,
    }

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, given, out: found.setdefault(name, out)

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    return found


@torch.inference_mode()
def test_every_stage_of_the_flow(cosyvoice2_flow: Any, opened: Callable[[Any], CosyVoice2Decoder]) -> None:
    case, given = cosyvoice2_flow, cosyvoice2_flow.tensors
    flow, voice = opened(case).flow, opened(case).voice
    is_last, noise = not case.stem.endswith("_more"), load_file(case.folder / "noise.safetensors")["z"]
    codes = given["token"].long()
    every = torch.cat([voice.codes[None], codes], 1)

    found = recorded_outputs(flow)
    mu = flow.mean(CodeWindows(every, every))
    mu = (mu if is_last else mu[:, :-6]).transpose(1, 2)
    for name, value in found.items():
        case.check(name, value)
    case.check("mu", mu)
    speaker, frames = flow.speaker(voice.embedding[None]), mu.shape[2]
    case.check("spks", speaker)
    cond = nn.functional.pad(voice.mel, (0, frames - voice.mel.shape[1]))[None]
    case.check("cond", cond)
    steps = torch.arange(frames)[None]
    seen = attended_keys(steps, flow.config.decoder.estimator.static_chunk_size, None)
    conditions, z = torch.cat([mu, speaker[..., None].expand_as(mu), cond], 1), noise[..., :frames]
    time = time_steps(10)[0][0]
    case.check("estimator_step0_cond", flow.decoder.estimator(torch.cat([z, conditions], 1), time, None, seen))
    case.check("estimator_step0_uncond", flow.decoder.estimator(torch.cat([z, conditions * 0], 1), time, None, seen))
    case.check("t_of_step", torch.stack([time for time, _ in time_steps(10)]))
    case.check("mel", new_mel(flow, codes, voice, noise, is_last))
    if "mask_encoder" in given:
        block = flow.encoder.block_size
        assert torch.equal(attended_keys(torch.arange(every.shape[1])[None], block, None)[0], given["mask_encoder"] > 0)
        assert torch.equal(attended_keys(steps, 2 * block, None)[0], given["mask_upsampled"] > 0)
        assert torch.equal(seen[0], given["mask_estimator"] > 0)


def source_noise(phase_raw: Tensor, base: Tensor, samples: int) -> SourceNoise:
    return SourceNoise(starting_phase(phase_raw[..., 0]), base[None, :, torch.arange(samples) % base.shape[1]])


@torch.inference_mode()
def test_every_stage_of_the_vocoder(cosyvoice2_hift: Any, opened: Callable[[Any], CosyVoice2Decoder]) -> None:
    case, given = cosyvoice2_hift, cosyvoice2_hift.tensors
    hift, mel = opened(case).hift, given["mel"]
    noise = source_noise(given["phase_raw"], given["noise_base"], mel.shape[-1] * hift.hop_length)

    pitch = hift.f0_predictor(mel)
    case.check("f0", pitch)
    case.check("uv", hift.m_source.voiced(pitch))
    case.check("sine", hift.m_source.sines(pitch, noise)[0])
    wave, source = vocode(hift, mel, given["cache_source"][0], noise)
    case.check("source", source)
    case.check("conv_post_out", hift.features(mel, source))
    case.check("wave", wave)


@dataclass(frozen=True)
class RecordedNoise:
    """Of all stream cases of a folder."""

    folder: Path

    def mel(self, bands: int, frames: int) -> Tensor:
        return load_file(self.folder / "noise.safetensors")["z"][..., :frames]

    def source(self, call: int, harmonics: int, samples: int) -> SourceNoise:
        given = load_file(self.folder / "stream" / "noise.safetensors")
        return source_noise(given["phase_raw"][call : call + 1], given["noise_base"], samples)


@torch.inference_mode()
def test_streaming_call_by_call(
    cosyvoice2_stream: Any, opened: Callable[[Any], CosyVoice2Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, given = cosyvoice2_stream, cosyvoice2_stream.tensors
    parts, calls = opened(case), iter(range(100))

    def checked(hift: Hift, mel: Tensor, cache: Tensor, random: SourceNoise) -> tuple[Tensor, Tensor]:
        call = next(calls)
        wave, source = vocode(hift, mel, cache, random)
        case.check(f"hift_mel.{call}", mel)
        case.check(f"f0.{call}", hift.f0_predictor(mel))
        case.check(f"source.{call}", source)
        return wave, source

    monkeypatch.setattr("cosyvoice2_reference_decoder.vocode", checked)
    decoder = CosyVoice2ReferenceDecoder(parts, lambda _: RecordedNoise(case.folder))  # type: ignore[arg-type, return-value]
    plan = json.loads((case.folder / "stream" / "calls.json").read_text())[case.stem]
    codes, state, pieces = given["token"][0].tolist(), decoder.start(), []
    for arrival in plan["arrivals"]:
        end = arrival["tokens_so_far"]
        block = AudioBlock(tuple(codes[end - arrival["new_tokens"] : end]), arrival["arrival"], arrival["last"])
        if plan["stream"]:
            chunk, state = decoder.decode_block(block, state)
            samples = torch.from_numpy(chunk.samples)
        else:
            samples, _ = decoder._call(ReferenceState(state.noise, block.codes), None)
        assert len(samples) == sum(call["samples"] for call in arrival["vocoder_calls"])
        pieces.append(samples)
    wave = torch.cat(pieces)
    assert len(wave) == plan["total_samples"] and next(calls) == sum("hift_mel" in key for key in given)
    case.check("wave", wave)


@pytest.mark.parametrize("part", ["flow", "hift"])
def test_the_released_tensors_by_name_and_shape(
    cosyvoice2_full_size: Path, cosyvoice2_values: Callable[..., Any], part: str
) -> None:
    listed = json.loads(cosyvoice2_full_size.with_name(f"{part}_state_dict.json").read_text())
    sizes = json.loads(cosyvoice2_full_size.with_name("config.json").read_text())
    config = CosyVoice2Config.parse(cosyvoice2_values(sizes), "")
    assert config == CosyVoice2Config.read_json(RELEASED)
    with torch.device("meta"):
        module = CosyVoice2Flow(config.flow) if part == "flow" else Hift(config.hift)
    assert {name: list(tensor.shape) for name, tensor in module.state_dict().items()} == listed
    assert sum(map(prod, listed.values())) == {"flow": 112_549_360, "hift": 20_821_295}[part]
