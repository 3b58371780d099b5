"""VITA-Audio-Plus: from a base, an encoder and recordings through its four recipes. F frames, D features."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from plus_parts import ENCODER, write_qwen, write_sensevoice
from safetensors.torch import load_file
from smoke_stages import curve
from torch import Tensor

from vita_mctp.checkpoints.conversion import ENCODER_FILE, convert_plus
from vita_mctp.checkpoints.loading import load_model
from vita_mctp.cli import main
from vita_mctp.codecs.features import SenseVoiceFrontEnd
from vita_mctp.data.manifest import decode
from vita_mctp.data.mixture import Mixture
from vita_mctp.data.row_stream import RowStream, open_pools
from vita_mctp.data.token_store import TokenStore
from vita_mctp.data.tokenize import CodecSource, TokenizeOptions, tokenize_manifest
from vita_mctp.errors import CheckpointError, ConfigError, DataError
from vita_mctp.models.vita import VitaMctpPlusForCausalLM
from vita_mctp.models.vita.plus import ENCODER_PREFIX
from vita_mctp.text.chat import ChatFormat
from vita_mctp.text.interleave import BOOST_RATIO
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.training.plan import plan
from vita_mctp.training.stage import files_of, train_stage
from vita_mctp.training.trainer import collate

STAGES = Path(__file__).parents[2] / "stages"
RECIPES = [f"{stage}_plus" for stage in ("stage1_alignment", "stage2_single_mctp", "stage3_mctp_chain", "stage4_sft")]
LINES, ROW = 12, 96
PROJECTOR = "model.audio_projection."


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base` (a small Qwen2.5), `sensevoice` (encoder and statistics) and `codec`."""
    folder = tmp_path_factory.mktemp("parts")
    write_qwen(folder / "base")
    write_sensevoice(folder / "sensevoice")
    (folder / "codec").mkdir()
    (folder / "codec" / "ramp.json").write_text('{"codebook_size": 50}')
    return folder


@pytest.fixture(scope="module")
def start(parts: Path) -> Path:
    """What stage 1 begins with."""
    assert (
        main(["convert", "plus", str(parts / "base"), str(parts / "start"), "--sensevoice", str(parts / "sensevoice")])
        == 0
    )
    return parts / "start"


@pytest.fixture(scope="module")
def data(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """manifest.jsonl and its store: recordings to transcribe, to hear and say again, and to read aloud."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(LINES):
        samples = np.random.default_rng(number).uniform(-0.9, 0.9, 4000 + 700 * number)
        soundfile.write(folder / f"{number}.wav", samples, 16000)
        asked, answer, audios = [
            ("Convert the speech to text.\n<|audio|>", f"number {number}", 1),
            ("<|audio|>", f"number {number}<|audio|>", 2),
            (f"Convert the text to speech.\nnumber {number}", "<|audio|>", 1),
        ][number % 3]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages, "audios": [f"{number}.wav"] * audios}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"seed": 3, "sets": [{"name": "store"}]}))
    tokenize(folder, parts, "store", "--features", str(parts / "sensevoice"))
    return folder


def tokenize(data: Path, parts: Path, name: str, *options: str) -> Path:
    codec = ["--codec", "ramp", "--codec-folder", str(parts / "codec"), "--lines-per-shard", "5"]
    assert main(["tokenize", str(data / "manifest.jsonl"), "--out", str(data / name), *codec, *options]) == 0
    return data / name


def test_a_base_gets_ears(parts: Path, start: Path, tmp_path: Path) -> None:
    model, released = load_model(start), torch.load(parts / "sensevoice" / ENCODER_FILE)
    assert isinstance(model, VitaMctpPlusForCausalLM) and model.config.num_nextn_predict_layers == 0
    assert model.config.audio_sizes == ENCODER
    tensors, base = load_file(start / "model.safetensors"), load_file(parts / "base" / "model.safetensors")
    assert all(torch.equal(tensors[ENCODER_PREFIX + name], value) for name, value in released.items())
    assert all(torch.equal(tensors[name], value) for name, value in base.items() if "layers" in name)
    projector = [value for name, value in tensors.items() if name.startswith(PROJECTOR + "mlp")]
    assert len(projector) == 2 and all(0.01 < float(value.std()) < 0.03 for value in projector)
    assert TextTokenizer.from_folder(start).vocabulary.input_kind is VocabularyKind.CONTINUOUS
    again = load_file(convert_plus(parts / "base", parts / "sensevoice", tmp_path / "again") / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


def test_an_encoder_that_is_not_whole_is_refused(parts: Path, tmp_path: Path) -> None:
    tensors = torch.load(parts / "sensevoice" / ENCODER_FILE)
    for wrong in ("encoder.tp_norm.weight", "embed.weight"):
        torch.save({name: value for name, value in tensors.items() if name != wrong}, tmp_path / ENCODER_FILE)
        with pytest.raises(CheckpointError, match=rf"{ENCODER_FILE} .*{wrong}.*download model\.pt of FunAudioLLM"):
            convert_plus(parts / "base", tmp_path, tmp_path / "out")
    (tmp_path / ENCODER_FILE).write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="damaged"):
        convert_plus(parts / "base", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_keeps_what_is_heard_rounded_as_the_models_round(parts: Path, data: Path) -> None:
    store, front_end = TokenStore(data / "store"), SenseVoiceFrontEnd.from_folder(parts / "sensevoice")
    for number in range(LINES):
        features = front_end.encode(decode((data / f"{number}.wav").read_bytes(), ""))
        wanted, taken = features.frames, features.positions
        assert taken == len(wanted) + 4
        heard = (taken,) if number % 3 == 0 else (taken, 0) if number % 3 == 1 else (0,)
        assert store[number].positions == heard
        if heard[0]:
            rounded = torch.from_numpy(wanted).bfloat16().float().numpy()
            assert np.array_equal(store.features(number, 0).frames, rounded)
    before = {path.name: path.read_bytes() for path in (data / "store").iterdir()}
    source = CodecSource("ramp", parts / "codec", features=parts / "sensevoice")
    again = tokenize_manifest(data / "manifest.jsonl", data / "store", source, TokenizeOptions(lines_per_shard=5))
    assert again.finished and again.encoded == 0
    assert {path.name: path.read_bytes() for path in (data / "store").iterdir()} == before


def train(recipe: str, data: Path, out: Path, *settings: str) -> Path:
    small = ("backbone=null", "deepspeed=null", "precision=fp32", "max_steps=2", "log_interval=1", f"data.root={data}")
    rows = (f"data.row_length={ROW}", f"data.tokens_per_step={ROW}", f"data.mixture={data / 'mixture.yaml'}")
    path = STAGES / f"{recipe}.yaml"
    final = train_stage(path, files_of(STAGES), out=out, settings=[*small, *rows, *settings])
    assert final is not None
    return final


def rows(mixture: Mixture, data: Path, tokenizer: TextTokenizer, row_length: int) -> RowStream:
    return RowStream(mixture, open_pools(mixture, data, ChatFormat(tokenizer), BOOST_RATIO), row_length=row_length)


def first_loss(start: Path, data: Path, *, deaf: bool) -> float:
    """Of the first row that training takes."""
    mixture, tokenizer = Mixture.from_file(data / "mixture.yaml"), TextTokenizer.from_folder(start)
    row = next(rows(mixture, data, tokenizer, ROW))
    batch = collate([row], tokenizer.vocabulary.pad)
    names = ("input_ids", "labels", "position_ids")
    heard = [[]] if deaf else batch["heard"]
    with torch.no_grad():
        return float(load_model(start)(**{name: batch[name] for name in names}, heard=heard).lm_loss)


def test_recordings_stand_where_their_placeholders_do(data: Path, start: Path) -> None:
    tokenizer, mixture = TextTokenizer.from_folder(start), Mixture.from_file(data / "mixture.yaml")
    stream = rows(mixture, data, tokenizer, 2 * ROW)
    batch = collate([next(stream) for _ in range(4)], tokenizer.vocabulary.pad)
    assert max(len(heard) for heard in batch["heard"]) > 1, "no row has several recordings"
    for ids, heard in zip(batch["input_ids"].tolist(), batch["heard"], strict=True):
        covered = [place for audio in heard for place in range(audio.start, audio.end)]
        assert covered == [place for place, id in enumerate(ids) if id == tokenizer.vocabulary.context_of_audio]


def changed(before: dict[str, Tensor], after: dict[str, Tensor], prefix: str) -> bool:
    return any(not torch.equal(value, after[name]) for name, value in before.items() if name.startswith(prefix))


def test_the_four_recipes_train_all_but_the_encoder(data: Path, start: Path, tmp_path: Path) -> None:
    weights = [load_file(start / "model.safetensors")]
    for recipe in RECIPES:
        settings = (f"start={start}", "optimizer.lr=1e-3") if recipe == RECIPES[0] else ()
        weights.append(load_file(train(recipe, data, tmp_path, *settings) / "model.safetensors"))
        assert len(curve(tmp_path / recipe)) == 2
    steps = list(pairwise(weights))
    assert [changed(*step, ENCODER_PREFIX) for step in steps] == [False] * 4
    assert [changed(*step, PROJECTOR) for step in steps] == [True, False, False, True]
    assert [changed(*step, "model.layers.0.") for step in steps] == [True, False, False, True]
    assert [changed(*step, "model.layers.2.") for step in steps] == [
        False,
        False,
        True,
        True,
    ]  # a block, from stage 2 on
    final = load_model(tmp_path / RECIPES[3] / "final")
    assert isinstance(final, VitaMctpPlusForCausalLM) and final.config.num_nextn_predict_layers == 10
    assert curve(tmp_path / RECIPES[0])[1] == pytest.approx(first_loss(start, data, deaf=False), abs=2e-6)
    assert abs(first_loss(start, data, deaf=True) - first_loss(start, data, deaf=False)) > 1e-4


def test_what_cannot_be_heard_is_said(parts: Path, data: Path, start: Path, tmp_path: Path) -> None:
    tokenize(data, parts, "deaf")
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(yaml.safe_dump({"seed": 3, "sets": [{"name": "deaf"}]}))
    with pytest.raises(DataError, match=r"shard-000000.safetensors:\d+: .* tokenize it with --features"):
        train(RECIPES[0], data, tmp_path, f"start={start}", f"data.mixture={mixture}")
    with pytest.raises(ConfigError, match="hears features; stage1_alignment is for a model that hears codes"):
        train("stage1_alignment", data, tmp_path, f"start={start}")
    with pytest.raises(CheckpointError, match="let `vita-mctp convert plus` write it"):
        train(RECIPES[0], data, tmp_path, "start=nowhere")
    given = {"codes": [1], "codec": "ramp"}
    messages = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "one"}]
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"messages": messages, "audios": [given]}))
    options = ["--codec", "ramp", "--codec-folder", str(parts / "codec"), "--features", str(parts / "sensevoice")]
    assert main(["tokenize", str(tmp_path / "manifest.jsonl"), "--out", str(tmp_path / "out"), *options]) != 0


def test_a_plan_counts_the_projector_and_not_the_encoder(tmp_path: Path) -> None:
    plain, plus = (plan(STAGES / f"stage1_alignment{kind}.yaml", tmp_path) for kind in ("", "_plus"))
    projector = 2 * 512 + 512 * 3584 + 3584**2
    assert "7,730,361,856 of 7,730,361,856" in plain
    assert f"everything but the audio encoder, {7_730_361_856 + projector:,} of" in plus
