"""The GLM-4-Voice flow against the reference's: every intermediate tensor of every recorded case, and all names."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from glm4_reference_decoder import REFERENCE_SEED, ReleasedFlow
from safetensors.torch import load_file
from torch import Tensor

from vita_mctp.codecs.flow_decoder.flow import relative_positions, time_steps
from vita_mctp.codecs.glm4_voice.decoder import Glm4Flow, load_decoder_config, parse_decoder_config


@cache
def load_flow(folder: Path) -> Glm4Flow:
    flow = Glm4Flow(load_decoder_config(folder).flow).eval()
    flow.load_state_dict(load_file(folder / "flow.safetensors"))
    return flow


class Recorded:
    """One case: its tensors, and the comparison of a tensor with the recorded one, where there is one."""

    def __init__(self, folder: Path, case: dict[str, Any], tolerances: dict[str, Any]) -> None:
        self.flow = load_flow(folder)
        self.released = ReleasedFlow(self.flow)
        self.tensors = load_file(folder / "flow" / case["file"])
        self.tokens = torch.cat([self.tensors["prompt_token"], self.tensors["token"]], dim=1).long()
        self.tolerances = tolerances

    def check(self, key: str, value: Tensor, tolerance: str = "encoder_out/encoder_proj_out/mu/spks/cond") -> None:
        wanted = self.tensors[key]
        torch.testing.assert_close(value, wanted, rtol=0, atol=self.tolerances[tolerance]["atol"])

    def condition(self) -> Tensor:
        known = self.tensors["prompt_feat"].transpose(1, 2)
        return torch.nn.functional.pad(known, (0, self.tensors["z"].shape[2] - known.shape[2]))


@pytest.fixture
def recorded(flow_case: tuple[Path, dict[str, Any]], tolerances: Callable[[Path], dict[str, Any]]) -> Recorded:
    return Recorded(*flow_case, tolerances(flow_case[0]))


@torch.inference_mode()
def test_encoder_and_regulator(recorded: Recorded) -> None:
    flow, tokens = recorded.flow, recorded.tokens

    hidden = flow.encoder(flow.input_embedding(tokens))
    mu = recorded.released.mean(tokens)

    recorded.check("encoder_out", hidden)
    recorded.check("mu", mu)
    assert mu.shape[1] == recorded.released.num_frames(tokens.shape[1])
    recorded.check("spks", flow.speaker(recorded.tensors["embedding"]))
    if "encoder_proj_out" in recorded.tensors:
        recorded.check("encoder_proj_out", flow.encode_codes(tokens))
        recorded.check("pos_emb", relative_positions(*hidden.shape[1:])[None], "pos_emb")
        recorded.check("cond", recorded.condition())


@torch.inference_mode()
def test_first_velocities_and_times(recorded: Recorded) -> None:
    given, flow = recorded.tensors, recorded.flow
    times = torch.stack([time for time, _ in time_steps(len(given["t_of_step"]))])
    mu = given["mu"].transpose(1, 2)
    conditions = torch.cat([mu, given["spks"][..., None].expand_as(mu), recorded.condition()], dim=1)

    guided = flow.decoder.estimator(torch.cat([given["z"], conditions], dim=1), times[0])
    free = flow.decoder.estimator(torch.cat([given["z"], conditions * 0], dim=1), times[0])

    recorded.check("t_of_step", times, "t_of_step")
    recorded.check("estimator_out_step0_cond", guided, "estimator_out_step0_*")
    recorded.check("estimator_out_step0_uncond", free, "estimator_out_step0_*")


@torch.inference_mode()
def test_mel_with_given_noise(recorded: Recorded) -> None:
    given = recorded.tensors
    mel = recorded.released(
        given["token"].long(), given["prompt_token"].long(), given["prompt_feat"], given["embedding"], given["z"]
    )
    recorded.check("mel", mel, "flow mel")


def test_the_seed_draws_the_references_noise(recorded: Recorded) -> None:
    wanted = recorded.tensors["z"]
    assert torch.equal(torch.randn(wanted.shape, generator=torch.Generator().manual_seed(REFERENCE_SEED)), wanted)


def test_full_size_tensors(flow_tensors_file: Path) -> None:
    listed = json.loads(flow_tensors_file.read_text())
    config = parse_decoder_config(json.loads((flow_tensors_file.parent / "decoder_config.json").read_text()))
    with torch.device("meta"):
        tensors = Glm4Flow(config.flow).state_dict()

    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {name: shape for name, shape, _ in listed["tensors"]}
    assert sum(tensor.numel() for tensor in tensors.values()) == listed["n_elements"]
