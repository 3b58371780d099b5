"""VITA-Audio-Plus against the reference: what it hears, prefill, losses and gradients, generation.

A golden config does not say the encoder's sizes; they are read off the tensors, except for the number of heads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from naive import generate_naive
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.checkpoints.loading import read_config
from vita_mctp.codecs.registry import feature_positions
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.models.vita import VitaMctpPlusForCausalLM, is_mctp_parameter
from vita_mctp.models.vita.plus import ENCODER_PREFIX
from vita_mctp.types import BACKBONE, AudioFeatures, HeardAudio

NEAR = {"atol": 3e-4, "rtol": 1e-4}
EXCUSING_MARGIN = 1e-3


@pytest.fixture
def recorded(plus_file: Path) -> dict[str, Any]:
    return json.loads(plus_file.read_text())


@pytest.fixture
def tensors(plus_file: Path) -> dict[str, Tensor]:
    return load_file(plus_file.with_suffix(".safetensors"))


@pytest.fixture
def model(plus_file: Path, recorded: dict[str, Any]) -> VitaMctpPlusForCausalLM:
    config = read_config(plus_file.parent)
    config.audio_config["attention_heads"] = recorded["encoder_conf"]["attention_heads"]
    return VitaMctpPlusForCausalLM.from_pretrained(plus_file.parent, config=config).eval()


@pytest.fixture
def heard(recorded: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[HeardAudio, ...]:
    """The golden's recordings in their places."""
    audios = []
    for number, (rows, positions) in enumerate(recorded["audio_indices"]):
        features = AudioFeatures(
            frames := tensors[f"audio{number}"].numpy(), feature_positions("sensevoice", len(frames))
        )
        audios.append(HeardAudio(features, positions[0][0]))
        assert set(rows[0]) == {0} and positions[0] == list(range(audios[-1].start, audios[-1].end))
    return tuple(audios)


def test_sizes_are_read_off_the_tensors(model: VitaMctpPlusForCausalLM, recorded: dict[str, Any]) -> None:
    sizes = model.config.audio_config
    assert {name: sizes[name] for name in sizes if name != "ctc_size"} == {
        name: recorded["encoder_conf"][name] for name in sizes if name != "ctc_size"
    }


@torch.no_grad()
def test_encoder_and_projector_padded_and_alone(
    model: VitaMctpPlusForCausalLM, heard: tuple[HeardAudio, ...], tensors: dict[str, Tensor]
) -> None:
    frames = [torch.from_numpy(audio.features.frames).bfloat16().float() for audio in heard]
    encoder = model.model.audio_model["model"]
    together = encoder(pad_sequence(frames, batch_first=True), [len(each) for each in frames])
    projected = model.encode([audio.features for audio in heard])
    for number, (audio, each) in enumerate(zip(heard, frames, strict=True)):
        wanted = tensors["encoder_out_padded"][number, : audio.features.positions]
        torch.testing.assert_close(together[number, : audio.features.positions], wanted, **NEAR)
        torch.testing.assert_close(encoder(each[None], [len(each)])[0], wanted, **NEAR)
        wanted = tensors["projected_padded"][number, : audio.features.positions]
        torch.testing.assert_close(projected[number], wanted, **NEAR)
        torch.testing.assert_close(model.encode([audio.features])[0], wanted, **NEAR)


@torch.no_grad()
def test_prefill(
    model: VitaMctpPlusForCausalLM,
    recorded: dict[str, Any],
    heard: tuple[HeardAudio, ...],
    tensors: dict[str, Tensor],
) -> None:
    ids = torch.tensor([recorded["input_ids"]])
    torch.testing.assert_close(
        model.listen(model.embed(ids), [heard])[0], tensors["inputs_embeds_after_splice"], **NEAR
    )
    torch.testing.assert_close(model(ids, heard=[heard]).logits[0], tensors["logits"], **NEAR)


def test_losses_and_gradients(
    model: VitaMctpPlusForCausalLM,
    recorded: dict[str, Any],
    heard: tuple[HeardAudio, ...],
    tensors: dict[str, Tensor],
    check_gradients: Callable[[Any, dict[str, Any]], None],
) -> None:
    ids, labels = (torch.tensor([recorded[name]]) for name in ("train_input_ids", "train_labels"))
    for name, expected in recorded["train"].items():
        set_trainable(model, lm_frozen="lm_frozen" in name)
        output = model(ids, labels, heard=[heard], label_shift="reference_row", output_hidden_states=True)
        losses = torch.stack([output.loss, output.lm_loss, *output.mtp_losses]).tolist()
        wanted = [expected["total_loss"], expected["lm_loss"], *expected["mtp_losses"]]
        assert losses == pytest.approx(wanted, rel=2e-5), name
        for level, hidden in enumerate(output.hidden_states):
            torch.testing.assert_close(hidden[0], tensors[f"train.block{level}_hidden"], **NEAR)
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if name.startswith(ENCODER_PREFIX)}
        assert gradients and all(gradient is None for gradient in gradients.values())
        check_gradients(model, dict.fromkeys(gradients) | expected["grad_params"])


def set_trainable(model: VitaMctpPlusForCausalLM, *, lm_frozen: bool) -> None:
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        frozen = name.startswith(ENCODER_PREFIX) or (lm_frozen and not is_mctp_parameter(model.config, name))
        parameter.requires_grad_(not frozen)


def requests_of(recorded: dict[str, Any], heard: tuple[HeardAudio, ...], num_blocks: int) -> list[Request]:
    return [
        Request(
            tuple(recorded["input_ids"]), parse_mode(case["mode"], num_blocks), len(case["new_tokens"]), heard=heard
        )
        for case in recorded["generate"]
    ]


def test_generation(model: VitaMctpPlusForCausalLM, recorded: dict[str, Any], heard: tuple[HeardAudio, ...]) -> None:
    """In one batch and by the naive twin: tokens, and which block made what."""
    requests = requests_of(recorded, heard, model.config.num_nextn_predict_layers)
    together = Engine(EagerRunner(model)).generate(requests)
    for case, request, result in zip(recorded["generate"], requests, together, strict=True):
        for found in (result, generate_naive(model, request)):
            same = equal_tokens(case, found.ids)
            sources = ["main" if event.level == BACKBONE else event.level - 1 for event in found.events]
            assert sources[:same] == case["block"][:same], case["name"]


def test_work_of_each_step(
    model: VitaMctpPlusForCausalLM,
    recorded: dict[str, Any],
    heard: tuple[HeardAudio, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = requests_of(recorded, heard, model.config.num_nextn_predict_layers)
    for case, request in zip(recorded["generate"], requests, strict=True):
        engine = Engine(EagerRunner(model))
        state, read = engine.start(request), []
        with monkeypatch.context() as patched:
            for name in ("backbone", "block"):
                part = getattr(model, name)
                index = 0 if name == "backbone" else 1

                def noted(
                    *args: Any, part: Any = part, index: int = index, read: Any = read, **kwargs: Any
                ) -> torch.Tensor:
                    read.append(args[index].shape[1])
                    return part(*args, **kwargs)

                patched.setattr(model, name, noted)
            while state.reason is None:
                engine.advance([state])
        same = equal_tokens(case, tuple(state.ids[len(request.prompt_ids) :]))
        assert read[:same] == case["query_len"][:same], case["name"]


def equal_tokens(case: dict[str, Any], ids: tuple[int, ...]) -> int:
    """How many tokens can be compared: up to one that differs, which the reference must not have been sure of."""
    for place, (ours, theirs) in enumerate(zip(ids, case["new_tokens"], strict=True)):
        if ours != theirs:
            assert case["margin"][place] < EXCUSING_MARGIN, (case["name"], place)
            return place + 1
    return len(ids)
