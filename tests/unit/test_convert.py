"""Conversion: a Qwen2.5 base in stage-1 form, and nothing half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from vita_mctp import SpeechLM
from vita_mctp.checkpoints.conversion import convert_qwen
from vita_mctp.checkpoints.loading import load_model
from vita_mctp.checkpoints.weights import safetensors_files
from vita_mctp.cli import main
from vita_mctp.errors import CheckpointError, OutputError
from vita_mctp.text.tokenizer import TextTokenizer, train_tokenizer
from vita_mctp.text.vocabulary import RELEASED_CODES, VocabularyKind

WORDS = "one two three four what is the day after monday"


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2.5: byte-level BPE with its three special tokens, more embeddings than ids, two layers."""
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer([WORDS], 600, folder, 8)
    values = json.loads((folder / "tokenizer.json").read_text())
    values["added_tokens"] = values["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(values))
    num_ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    config = Qwen2Config(
        vocab_size=num_ids + 5,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=request.param,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in safetensors_files(folder) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("kind", list(VocabularyKind))
def test_a_base_gets_the_additions_and_rows_for_them(base: Path, tmp_path: Path, kind: VocabularyKind) -> None:
    folder = convert_qwen(base, tmp_path / "stage1", kind=kind)
    vocabulary = TextTokenizer.from_folder(folder).vocabulary
    assert vocabulary.num_audio == RELEASED_CODES and vocabulary.input_kind is kind
    plain, old = AutoModelForCausalLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(base)
    assert isinstance(plain, Qwen2ForCausalLM) and plain.dtype == torch.bfloat16
    rows, known = plain.model.embed_tokens.weight.float(), old.model.embed_tokens.weight.float()
    assert len(rows) == vocabulary.padded_size and len(rows) % 8 == 0
    assert torch.equal(rows[: len(known)], known)
    new = rows[len(known) :]
    assert torch.allclose(new.mean(0), known.mean(0), atol=0.02)
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == old.config.tie_word_embeddings
    assert torch.equal(plain.lm_head.weight[: len(known)], old.lm_head.weight)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<|audio_0|>") == vocabulary.audio_0
    assert load_model(folder).config.num_nextn_predict_layers == 0


def test_blocks_are_appended_in_the_released_layout_and_a_seed_repeats_it(base: Path, tmp_path: Path) -> None:
    one, two, other = (
        convert_qwen(base, tmp_path / name, num_mctp_blocks=3, seed=seed)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    model = load_model(one, dtype=None)
    assert (model.config.num_hidden_layers, model.config.num_nextn_predict_layers) == (5, 3)
    assert model.config.speech_token_offset == TextTokenizer.from_folder(one).vocabulary.audio_0
    assert all(torch.equal(tensor, tensors(two)[name]) for name, tensor in tensors(one).items())
    drawn = ("model.embed_tokens.weight", "mtp_projs.0.weight")
    assert not any(torch.equal(tensors(one)[name], tensors(other)[name]) for name in drawn)


def test_a_base_with_another_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    Qwen2ForCausalLM.from_pretrained(base).save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(f"<{n}>") for n in range(9)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="a base with its own tokenizer"):
        convert_qwen(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_half_written_is_left(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TextTokenizer, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        convert_qwen(base, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="there already"):
        convert_qwen(base, base)


def test_a_target_that_cannot_be_is_found_before_the_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("vita_mctp.checkpoints.conversion.load_model", lambda *_, **__: pytest.fail("loaded"))
    for target in ("file", "file/below"):
        with pytest.raises(OutputError, match="file"):
            convert_qwen(base, tmp_path / target)
    for command in (["convert", "voice", "q.wav", "nowhere", "file/voice"], ["evaluate", "nano", "--out", "."]):
        monkeypatch.chdir(tmp_path)
        assert main(command) == 2


def test_the_command_converts_and_complains_in_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "qwen", str(base), str(tmp_path / "a"), "--mctp-blocks", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a'}\n"
    assert load_model(tmp_path / "a").config.num_nextn_predict_layers == 1
    assert main(["convert", "qwen", str(base), str(tmp_path / "a")]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("vita-mctp: error: ") and complaint.count("\n") == 1


@pytest.fixture
def adapters(tiny_vocalnet_folder: Path, tmp_path: Path) -> Path:
    """Of one projection of a tiny VocalNet, with its adaptor trained beside."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    torch.manual_seed(0)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora"
    lora = {f"{name}_A.weight": torch.randn(2, 32), f"{name}_B.weight": torch.randn(32, 2)}
    save_file(lora, folder / "adapter_model.safetensors")
    adaptor = {"base_model.model.model.speech_projector.linear2.bias": torch.full((32,), 0.5)}
    save_file(adaptor, folder / "non_lora_trainables.safetensors")
    return folder


def test_adapters_are_merged_into_a_model_that_opens(
    tiny_vocalnet_folder: Path, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["convert", "lora", str(tiny_vocalnet_folder), str(adapters), str(out)]) == 0
    model, before = SpeechLM.from_pretrained(out), load_model(tiny_vocalnet_folder)
    after = dict(model.language_model.model.named_parameters())
    changed = {name for name, weight in before.named_parameters() if not torch.equal(weight.half(), after[name].half())}
    assert changed == {"model.layers.1.self_attn.q_proj.weight", "model.speech_projector.linear2.bias"}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"
    with pytest.raises(CheckpointError, match=rf"holds adapters.*convert lora BASE {adapters} OUT"):
        SpeechLM.from_pretrained(adapters)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"lora_A": torch.zeros(2, 16)}, "does not fit"),
        ({"lora_B": torch.zeros(32, 3)}, "does not fit"),
        ({"lora_A": None}, "fits no weight"),
    ],
)
def test_adapters_of_another_model_are_one_line(
    tiny_vocalnet_folder: Path,
    adapters: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, torch.Tensor | None],
    fact: str,
) -> None:
    file = adapters / "adapter_model.safetensors"
    tensors = load_file(file)
    for part, tensor in change.items():
        (name,) = (name for name in tensors if part in name)
        tensors.pop(name)
        tensors |= {} if tensor is None else {name: tensor}
    save_file(tensors, file)
    command = ["convert", "lora", str(tiny_vocalnet_folder), str(adapters), str(tmp_path / "out")]
    assert main(command) == 2
    assert fact in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-20])
    assert main(command) == 2
    assert "cut short" in capsys.readouterr().err and not (tmp_path / "out").exists()
