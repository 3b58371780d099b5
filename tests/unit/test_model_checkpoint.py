"""Checkpoint folders: what is written is what is read, growing the chain, and every damage named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.errors import CheckpointError, ConfigError, VitaError
from vita_mctp.models.vita import VitaMctpConfig, VitaMctpForCausalLM, is_mctp_parameter

MakeModel = Callable[..., VitaMctpForCausalLM]
IDS = torch.tensor([[5, 40, 3, 3, 17, 29, 8]])


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def saved(request: pytest.FixtureRequest, make_tiny_model: MakeModel, tmp_path: Path) -> Path:
    model = make_tiny_model(1, 2, tied=request.param).float()
    model.generation_config.mtp_inference_mode = [1, 2]
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A Qwen2 checkpoint without blocks, as transformers writes it."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def hidden_states(model: VitaMctpForCausalLM) -> list[Tensor]:
    with torch.no_grad():
        return [hidden for _, hidden in model.chain(IDS)]


def test_a_round_trip_keeps_every_bit_and_the_released_names(saved: Path, tmp_path: Path) -> None:
    model = load_model(saved)
    again = tmp_path / "again"
    model.save_pretrained(again)
    first, second = load_file(saved / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    blocks = {name for name in first if is_mctp_parameter(model.config, name)}
    layers = {name.split(".")[2] for name in blocks if name.startswith("model.layers.")}
    assert layers == {str(model.config.num_backbone_layers), str(model.config.num_backbone_layers + 1)}
    assert {name for name in blocks if not name.startswith("model.")} == {
        f"mtp_{part}.{k}.weight" for part in ("projs", "embed_norms", "hidden_norms") for k in (0, 1)
    }
    assert ("lm_head.weight" in first) != model.config.tie_word_embeddings
    assert model.generation_config.mtp_inference_mode == [1, 2]
    assert load_model(again).generation_config.mtp_inference_mode == [1, 2]


def test_transformers_own_loaders_give_the_same_model(saved: Path) -> None:
    ours = load_model(saved)
    assert isinstance(AutoConfig.from_pretrained(saved), VitaMctpConfig)
    for theirs in (AutoModelForCausalLM.from_pretrained(saved), VitaMctpForCausalLM.from_pretrained(saved)):
        assert isinstance(theirs, VitaMctpForCausalLM)
        for left, right in zip(hidden_states(theirs), hidden_states(ours), strict=True):
            assert torch.equal(left, right)


def test_shards_and_half_precision_load_as_asked(saved: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    load_model(saved, dtype=torch.float16).save_pretrained(half, max_shard_size="8KB")
    assert len(list(half.glob("model-*.safetensors"))) > 1
    model, original = load_model(half), load_model(saved)
    for (name, weight), wanted in zip(model.named_parameters(), original.parameters(), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted.half().float()), name


def test_a_plain_qwen2_is_a_model_without_blocks(plain: Path) -> None:
    model = load_model(plain)
    assert model.config.num_nextn_predict_layers == 0
    with torch.no_grad():
        expected = Qwen2ForCausalLM.from_pretrained(plain)(IDS).logits
        torch.testing.assert_close(model(IDS).logits, expected)
        assert len(hidden_states(model)) == 1


def test_expanding_a_plain_qwen2(plain: Path) -> None:
    model = load_model(plain, num_mctp_blocks=3, seed=7)
    assert (model.config.num_hidden_layers, model.config.num_nextn_predict_layers) == (5, 3)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(5))
    last = model.model.layers[1].state_dict()
    for layer in model.model.layers[2:]:
        assert all(torch.equal(value, last[name]) for name, value in layer.state_dict().items())
    first = model.mtp_projs[0].weight
    assert first.std().item() == pytest.approx(0.3, rel=0.15)
    assert all(torch.equal(projection.weight, first) for projection in model.mtp_projs)
    assert all(bool((norm.weight == 1).all()) for norm in [*model.mtp_embed_norms, *model.mtp_hidden_norms])
    assert torch.equal(first, load_model(plain, num_mctp_blocks=1, seed=7).mtp_projs[0].weight)
    assert not torch.equal(first, load_model(plain, num_mctp_blocks=1, seed=8).mtp_projs[0].weight)


def test_new_blocks_are_copies_and_not_views(saved: Path, tmp_path: Path) -> None:
    model = load_model(saved)
    model.expand(4)
    with torch.no_grad():
        for parameter in model.mtp_projs[3].parameters():
            parameter.add_(1)
        model.model.layers[-1].mlp.up_proj.weight.add_(1)
    stored = load_model(saved)
    for left, right in zip(hidden_states(model)[:3], hidden_states(stored), strict=True):
        assert torch.equal(left, right)
    model.save_pretrained(tmp_path / "expanded")
    for left, right in zip(hidden_states(load_model(tmp_path / "expanded")), hidden_states(model), strict=True):
        assert torch.equal(left, right)
    with pytest.raises(ConfigError, match="4 MCTP blocks"):
        model.expand(3)


def test_growing_the_vocabulary_keeps_the_old_words_and_the_tie(saved: Path) -> None:
    model = load_model(saved)
    before = model(IDS).logits
    model.resize_token_embeddings(51, pad_to_multiple_of=8)
    assert model.config.vocab_size == 56
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == model.config.tie_word_embeddings
    torch.testing.assert_close(model(IDS).logits[..., :48], before)


@pytest.mark.parametrize("name", ["model.norm.weight", "mtp_projs.1.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_a_missing_surplus_or_misshapen_tensor_is_named(saved: Path, name: str) -> None:
    whole = load_file(saved / "model.safetensors")
    changes: list[Callable[[dict[str, Tensor]], object]] = [
        lambda tensors: tensors.pop(name),
        lambda tensors: tensors.update({name: torch.zeros(3)}),
        lambda tensors: tensors.update({f"{name}.more": torch.zeros(3)}),
    ]
    for change in changes:
        save_file(whole, saved / "model.safetensors", metadata={"format": "pt"})
        edit(saved, change)
        for load in (load_model, VitaMctpForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
            with pytest.raises(CheckpointError, match=name):
                load(saved)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"vocab_size": 56}, "model.embed_tokens.weight"),
        ({"num_nextn_predict_layers": 1}, "mtp_.*holds|holds mtp_"),
        ({"intermediate_size": 32}, "mlp"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
    ],
)
def test_a_config_that_contradicts_its_weights_is_refused(
    make_tiny_model: MakeModel, tmp_path: Path, values: dict[str, object], match: str
) -> None:
    make_tiny_model(1, 2, tied=True).save_pretrained(tmp_path)
    edit_config(tmp_path, **values)
    with pytest.raises(CheckpointError, match=match):
        load_model(tmp_path)


def test_a_tied_config_with_another_head_is_refused(make_tiny_model: MakeModel, tmp_path: Path) -> None:
    make_tiny_model(1, 2, tied=False).save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_model(tmp_path)


def test_damaged_generation_settings_are_named(saved: Path) -> None:
    (saved / "generation_config.json").write_text('{"do_sample": tr')
    with pytest.raises(CheckpointError, match=r"generation_config\.json is damaged"):
        load_model(saved)
    (saved / "generation_config.json").unlink()
    assert load_model(saved).generation_config.do_sample is not True


@pytest.mark.parametrize("kept", [0, 5, 8, 100, 6000, -1])
def test_a_file_cut_short_is_named(saved: Path, kept: int) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match="cut short") as error:
        load_model(saved)
    assert str(file) in str(error.value)
    with pytest.raises(CheckpointError, match=re.escape(str(saved))):
        VitaMctpForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"model_type": "qwen2_mtp", "hidden_size": "many"}'])
def test_a_damaged_config_or_index_is_named(saved: Path, text: str) -> None:
    whole = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(str(saved / "config.json"))):
        load_model(saved)
    (saved / "config.json").write_text(whole)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        load_model(saved)


@pytest.mark.parametrize("placed", ["null", "[]", "{}", '{"a": 1}', '{"a": null}', "[" * 9999])
def test_a_damaged_index_is_named(saved: Path, placed: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(f'{{"weight_map": {placed}}}')
    with suppress(CheckpointError):  # it also lacks other files
        find_model(saved)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_model(saved)


def test_a_lost_or_foreign_shard_is_named(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    load_model(saved).save_pretrained(folder, max_shard_size="16KB")
    shard = min(folder.glob("model-*.safetensors"))
    tensors = load_file(shard)
    lost = min(tensors)
    save_file({name: value for name, value in tensors.items() if name != lost}, shard)
    with pytest.raises(CheckpointError, match=lost):
        load_model(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        load_model(folder)


def test_pickled_weights_are_never_opened(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is pickled"):
        load_model(saved)


def test_what_is_no_checkpoint_of_ours_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="attention kernel 'fast'"):
        load_model(saved, attn="fast")
    with pytest.raises(ConfigError, match="2 MCTP blocks"):
        load_model(saved, num_mctp_blocks=1)
    edit_config(saved, model_type="llama")
    with pytest.raises(ConfigError, match="llama"):
        load_model(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", 15),
        ("hidden_size", 2**40),
        ("hidden_size", 16.5),
        ("hidden_size", True),
        ("num_attention_heads", 0),
        ("num_attention_heads", 3),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", "two"),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**9),
        ("num_nextn_predict_layers", 5),
        ("num_nextn_predict_layers", "many"),
        ("vocab_size", 0),
        ("vocab_size", [48]),
        ("intermediate_size", 10**12),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1.0),
        ("rope_parameters", 3),
        ("rope_parameters", {"rope_type": "spiral"}),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["sliding_attention"] * 4),
        ("hidden_act", "silence"),
        ("pad_token_id", 48),
        ("tie_word_embeddings", "yes"),
        ("mtp_loss_weight", float("inf")),
        ("dtype", "float7"),
        ("use_sliding_window", True),
    ],
)
def test_a_config_value_that_is_wrong_is_one_line(saved: Path, key: str, value: object) -> None:
    edit_config(saved, **{key: value})
    with pytest.raises(CheckpointError, match=key) as error:
        load_model(saved)
    assert str(saved / "config.json") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("values", [{"num_nextn_predict_layers": 32}, {"num_nextn_predict_layers": -1}])
def test_impossible_configurations_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(VitaError, match="num_nextn_predict_layers"):
        VitaMctpConfig(num_hidden_layers=32, **values)


def test_sliding_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="sliding"):
        VitaMctpConfig(use_sliding_window=True)


def test_the_config_is_written_for_readers_of_the_released_form_too(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    VitaMctpConfig(num_nextn_predict_layers=10, rope_parameters=rope).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["num_nextn_predict_layers"], values["rope_theta"]) == ("qwen2_mtp", 10, 1e6)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.rope_parameters["rope_theta"] == 1e6 and config.num_backbone_layers == 22


@pytest.mark.parametrize(
    ("name", "is_mctp"),
    [
        ("model.layers.21.mlp.up_proj.weight", False),
        ("model.layers.22.mlp.up_proj.weight", True),
        ("module.model.layers.2.mlp.up_proj.weight", False),
        ("module.mtp_projs.0.weight", True),
        ("model.norm.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_what_belongs_to_the_blocks(name: str, is_mctp: bool) -> None:
    assert is_mctp_parameter(VitaMctpConfig(num_nextn_predict_layers=10), name) == is_mctp
