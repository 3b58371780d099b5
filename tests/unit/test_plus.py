"""VITA-Audio-Plus: decoding with recordings, what blocks see of them, gradients, and checkpoints of either class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import generate_naive
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.codecs.features import SenseVoiceFrontEnd
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.vita import VitaMctpForCausalLM, VitaMctpPlusConfig, VitaMctpPlusForCausalLM
from vita_mctp.models.vita.plus import ENCODER_PREFIX, SenseVoice
from vita_mctp.training.optimizer import set_trainable
from vita_mctp.types import AudioFeatures, HeardAudio

FEATURES = 10
SMALL_ENCODER = {
    "input_size": FEATURES,
    "output_size": 8,
    "attention_heads": 2,
    "linear_units": 12,
    "num_blocks": 2,
    "tp_blocks": 1,
    "ctc_size": 5,
}
IDS = torch.arange(24)[None] % 48


def random_plus(seed: int = 0, num_blocks: int = 2, **config: object) -> VitaMctpPlusForCausalLM:
    """A model in float64 with weights large enough that what is heard changes what is said."""
    torch.manual_seed(seed)
    model = VitaMctpPlusForCausalLM(
        VitaMctpPlusConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=24,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=1 + num_blocks,
            num_nextn_predict_layers=num_blocks,
            max_position_embeddings=512,
            initializer_range=0.4,
            audio_config=SMALL_ENCODER,
            **config,
        )
    )
    return model.to(torch.float64).eval()


def features(frames: int, seed: int = 0) -> AudioFeatures:
    values = np.random.default_rng(seed).normal(0, 1, (frames, FEATURES)).astype(np.float32)
    return AudioFeatures(values, SenseVoiceFrontEnd.positions(frames))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Zero to two recordings, anywhere in a prompt."""
    ids = draw(st.lists(st.integers(0, 47), min_size=1, max_size=6))
    heard = []
    for _ in range(draw(st.integers(0, 2))):
        heard.append(HeardAudio(features(draw(st.integers(1, 9)), seed=draw(st.integers(0, 99))), start=len(ids)))
        ids += [7] * heard[-1].features.positions + draw(st.lists(st.integers(0, 47), max_size=4))
    return Request(
        prompt_ids=tuple(ids),
        mode=parse_mode(draw(st.sampled_from(["vanilla", "boost", "turbo", "2,3,1,5", "0,4"])), 3),
        max_new_tokens=draw(st.integers(1, 16)),
        sampling=SamplingParams(temperature=draw(st.sampled_from([0.0, 1.0])), seed=draw(st.integers(0, 9))),
        heard=tuple(heard),
    )


@settings(deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 99), batch=st.lists(requests(), min_size=1, max_size=4), max_batch=st.integers(1, 4))
def test_a_batch_with_and_without_recordings_equals_naive(seed: int, batch: list[Request], max_batch: int) -> None:
    model = random_plus(seed, num_blocks=3)
    assert Engine(EagerRunner(model), max_batch=max_batch).generate(batch) == [
        generate_naive(model, request) for request in batch
    ]


@torch.no_grad()
def test_recordings_reach_the_backbone_and_of_the_blocks_only_the_hidden_states() -> None:
    model = random_plus()
    heard = [[HeardAudio(features(4), start=3)]]
    plain, spoken = ([hidden for _, hidden in model.chain(IDS, heard=audio)] for audio in ([], heard))
    assert torch.equal(plain[0][0, :3], spoken[0][0, :3]) and not torch.isclose(plain[0][0, 3:], spoken[0][0, 3:]).any()
    embeds, positions = model.embed(IDS)[:, 1:], torch.arange(1, 24)[None]
    assert torch.allclose(spoken[1], model.block(0, embeds, spoken[0][:, :-1], positions))


@torch.no_grad()
def test_a_recording_is_heard_alike_alone_and_beside_a_longer_one() -> None:
    model, short, long = random_plus(), features(3), features(20, seed=1)
    assert torch.allclose(model.encode([short])[0], model.encode([long, short])[1])


@torch.no_grad()
def test_features_are_rounded_to_bfloat16_unless_the_config_says_otherwise() -> None:
    released, exact = random_plus(), random_plus(audio_feature_dtype="float32")
    recording = features(5)
    rounded = AudioFeatures(torch.from_numpy(recording.frames).bfloat16().float().numpy(), recording.positions)
    assert torch.equal(released.encode([recording])[0], exact.encode([rounded])[0])
    assert not torch.allclose(released.encode([recording])[0], exact.encode([recording])[0])


@pytest.mark.parametrize("heard", [[], [[HeardAudio(features(4), start=3)]]], ids=["without", "with a recording"])
def test_every_trained_parameter_takes_part_in_every_step(heard: list[list[HeardAudio]]) -> None:
    model = random_plus().train()
    trainable = set_trainable(model, freeze_backbone=False)
    encoder = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert encoder == {name for name, _ in model.named_parameters() if name.startswith(ENCODER_PREFIX)}
    assert trainable == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    output = model(IDS, IDS, heard=heard)
    output.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []
    ears = torch.stack([weight.grad.abs().sum() for weight in model.model.audio_projection.parameters()])
    assert (ears > 0).all() if heard else (ears == 0).all()


@pytest.mark.parametrize("detach", [None, "when_frozen"])
def test_blocks_do_not_train_the_backbone_unless_told(detach: str | None) -> None:
    gradients = []
    for weight in (0.0, 1.0):
        model = random_plus(mtp_loss_weight=weight)
        model(IDS, IDS, heard=[[HeardAudio(features(4), start=3)]], detach=detach).loss.backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert torch.allclose(*gradients) == (detach is None)


def test_recordings_out_of_place_or_of_another_size_are_refused() -> None:
    model, recording = random_plus(), features(4)
    with pytest.raises(ConfigError, match=r"recording at positions \[2, 10\); wanted it inside the prompt's 9 tokens"):
        Request(tuple(range(9)), parse_mode("vanilla", 2), 5, heard=(HeardAudio(recording, start=2),))
    with pytest.raises(ValueError, match="ends behind the last of 24 positions"):
        model(IDS, heard=[[HeardAudio(recording, start=17)]])
    with pytest.raises(ConfigError, match="wants frames of 10 numbers, got 560"):
        model.encode([AudioFeatures(np.zeros((2, 560), np.float32), 6)])


def test_a_model_that_hears_codes_refuses_recordings(make_tiny_model: Callable[..., VitaMctpForCausalLM]) -> None:
    with pytest.raises(ConfigError, match=r"hears audio codes, not features: .*VITA-Audio-Plus"):
        make_tiny_model(0, 1)(IDS, heard=[[HeardAudio(features(4), start=3)]])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    random_plus().float().save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def test_a_round_trip_keeps_every_bit_and_the_released_names(saved: Path, tmp_path: Path) -> None:
    model = load_model(saved)
    assert type(model) is VitaMctpPlusForCausalLM and not model.training
    model.save_pretrained(tmp_path / "again")
    first, second = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    released = load_file(Path(__file__).parents[1] / "parity" / "goldens" / "plus" / "model.safetensors")
    numberless = [
        {".".join("#" if part.isdigit() else part for part in name.split(".")) for name in names}
        for names in (first, released)
    ]
    assert numberless[0] == numberless[1]


def test_transformers_own_loaders_give_the_same_class(saved: Path) -> None:
    assert type(AutoConfig.from_pretrained(saved)) is VitaMctpPlusConfig
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert type(model) is VitaMctpPlusForCausalLM
    ours = load_model(saved)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))


def test_sizes_that_a_config_leaves_out_are_read_off_the_tensors(saved: Path) -> None:
    wanted = load_model(saved).config.audio_config
    edit_config(saved, audio_config=None)
    assert load_model(saved).config.audio_config == wanted | {"attention_heads": 4}


def test_weights_of_the_other_class_are_refused(
    saved: Path, tmp_path: Path, make_tiny_model: Callable[..., VitaMctpForCausalLM]
) -> None:
    plain = tmp_path / "plain"
    make_tiny_model(0, 1).save_pretrained(plain)
    with pytest.raises(
        CheckpointError, match="holds a qwen2_mtp_sensevoice model, VitaMctpForCausalLM wants qwen2_mtp:"
    ):
        VitaMctpForCausalLM.from_pretrained(saved)
    with pytest.raises(CheckpointError, match="holds a qwen2_mtp model, VitaMctpPlusForCausalLM wants qwen2_mtp_sense"):
        VitaMctpPlusForCausalLM.from_pretrained(plain)
    edit_config(plain, model_type="qwen2_mtp_sensevoice")
    with pytest.raises(CheckpointError, match=r"lacks model\.audio_model\.model\.embed\.weight.* has an audio encoder"):
        load_model(plain)
    edit_config(saved, model_type="qwen2_mtp")
    with pytest.raises(CheckpointError, match=r"holds model\.audio_model\.model\..* and \d+ more"):
        load_model(saved)


@pytest.mark.parametrize("sizes_in_config", [True, False])
@pytest.mark.parametrize("tensor", ["encoder.encoders.0.norm1.weight", "ctc.ctc_lo.bias", "embed.weight"])
def test_a_missing_or_misshapen_encoder_tensor_is_named(saved: Path, tensor: str, sizes_in_config: bool) -> None:
    if not sizes_in_config:
        edit_config(saved, audio_config=None)
    tensors = load_file(saved / "model.safetensors")
    lost = tensors.pop(ENCODER_PREFIX + tensor)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks {ENCODER_PREFIX}{tensor}"):
        load_model(saved)
    wrong = torch.zeros(lost.shape[0] + 1, *lost.shape[1:])
    save_file(tensors | {ENCODER_PREFIX + tensor: wrong}, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{tensor} has shape .*, the config wants"):
        load_model(saved)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"audio_config: .*blocks; known: input_size, output_size"):
        VitaMctpPlusConfig(audio_config={"blocks": 3})
    with pytest.raises(ConfigError, match="audio_feature_dtype is 'int8'; wanted bfloat16 or float32"):
        VitaMctpPlusConfig(audio_feature_dtype="int8")
    with pytest.raises(ConfigError, match="5 attention heads do not divide 8 channels"):
        VitaMctpPlusConfig(audio_config={"output_size": 8, "attention_heads": 5})


def test_full_size_counts() -> None:
    """SenseVoiceSmall's encoder has 221,136,992 parameters in FunASR; the language model those of the 7B released."""
    config = VitaMctpPlusConfig(
        vocab_size=168072,
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_key_value_heads=4,
        num_hidden_layers=38,
        num_nextn_predict_layers=10,
    )
    with torch.device("meta"):
        model = VitaMctpPlusForCausalLM(config)
    encoder = model.model.audio_model["model"]
    assert isinstance(encoder, SenseVoice)
    assert sum(weight.numel() for weight in encoder.encoder.parameters()) == 221_136_992
    layer = 3584 * (3584 + 2 * 512) + 3584 + 2 * 512 + 3584**2 + 3 * 3584 * 18944 + 2 * 3584
    hearing = 16 * 560 + 221_136_992 + 512 * 25055 + 25055 + 2 * 512 + 512 * 3584 + 3584**2
    wanted = 2 * 168072 * 3584 + 38 * layer + 3584 + 10 * (2 * 3584**2 + 2 * 3584) + hearing
    assert sum(weight.numel() for weight in model.parameters()) == wanted
