"""VocalNet and VocalNet-M2 through their recipes, from a language model, a Whisper and data as the authors keep it."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from plus_parts import write_qwen
from ramp import RampTokenizer
from safetensors.torch import load_file
from smoke_stages import curve
from torch import Tensor
from transformers import WhisperConfig, WhisperModel

from vita_mctp.audio import read_wave
from vita_mctp.cli import main
from vita_mctp.data.mixture import Mixture
from vita_mctp.data.row_stream import RowStream, open_pools
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import family_of
from vita_mctp.models.vocalnet.prompts import without_repeats
from vita_mctp.text.chat import RELEASED_STYLE
from vita_mctp.text.interleave import BOOST_RATIO
from vita_mctp.training.plan import plan
from vita_mctp.training.stage import files_of, train_stage

STAGES = Path(__file__).parents[2] / "stages"
UNITS, BOOKS = 40, 2
VOCALNET = {
    "decoder_ffn_dim": 24,
    "decoder_num_heads": 4,
    "decoder_num_layers": 1,
    "encoder_num_layers": 1,
    "mtp_num": 2,
}
VOCALNET |= {"unit_vocab_size": UNITS}
VOCALNET |= {f"speech_{name}_token_id": UNITS + n for n, name in enumerate(("bos", "sos", "eos", "padding"))}
M2 = {"hidden_size": 16, "ffn_size": 24, "num_heads": 4, "num_layers": 1, "fusion_size": 16, "mtp_levels": 1}
SIZES = {"vocalnet": VOCALNET, "vocalnet-m2": {"talker": {**M2, "num_codebooks": BOOKS, "codebook_size": UNITS}}}
ADAPTOR, TALKER, ENCODER, THINKER = (
    "model.speech_projector.",
    "speech_generator.",
    "model.speech_encoder.",
    "model.layers.",
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base`, `whisper`, and one start for each kind of talker, made by the command."""
    folder = tmp_path_factory.mktemp("parts")
    write_qwen(folder / "base")
    torch.manual_seed(1)
    encoder = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 60}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperModel(WhisperConfig(**encoder, **decoder, **ids, num_mel_bins=128)).save_pretrained(folder / "whisper")
    speech = {"tokenizer_kind": "sensevoice_glm4voice", "audio_tokenizer": {"name": "whisper"}, "max_new_tokens": 8}
    speech |= {"audio_decoder": {"name": "ramp", "folder": "codec"}}
    for kind, sizes in SIZES.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(sizes))
        options = ["--whisper", str(folder / "whisper"), "--talker", kind, "--sizes", str(folder / f"{kind}.yaml")]
        assert main(["convert", "thinker", str(folder / "base"), str(folder / kind), *options]) == 0
        (folder / kind / "speech.json").write_text(json.dumps(speech))
        (folder / kind / "codec").mkdir()
        (folder / kind / "codec" / "ramp.json").write_text(json.dumps({"codebook_size": UNITS}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below `units` and `frames` the same four questions, with answers' codes of one and of two codebooks."""
    folder = tmp_path_factory.mktemp("data")
    for name, shape in (("units", (1, 9)), ("frames", (9, BOOKS))):
        (folder / name).mkdir()
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"seed": 3, "sets": [{"name": name}]}))
        entries = []
        for number in range(4):
            random = np.random.default_rng(number)
            soundfile.write(folder / name / f"{number}.wav", random.uniform(-0.5, 0.5, 6000 + 900 * number), 16000)
            codes = random.integers(0, UNITS, shape)
            said: Any = {"speech_token": codes, "speech_token_len": np.array([9])} if name == "units" else codes
            np.save(folder / name / f"{number}.npy", said, allow_pickle=True)
            turns = [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "one two"}]
            files = {"speech": f"{number}.wav", "units": f"{number}.npy"}
            entries.append({"id": str(number), **files, "conversations": turns})
        (folder / name / "list.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def train(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path | None]:
    """(recipe, *settings) of eight steps, a row each -> the finished folder."""
    monkeypatch.setitem(RowStream.__init__.__kwdefaults__, "chunk", 16)

    def run(recipe: str, *settings: str, out: str = "runs", **more: Any) -> Path | None:
        name = "frames" if "m2" in recipe else "units"
        small = ["backbone=null", "deepspeed=null", "precision=fp32", "max_steps=8", "log_interval=1"]
        small += ["data.row_length=768", "data.tokens_per_step=768", "optimizer.lr=0.02", f"data.root={data}"]
        path = STAGES / f"{recipe}.yaml"
        small.append(f"data.mixture={data / name}.yaml")
        return train_stage(path, files_of(path.parent), out=tmp_path / out, settings=[*small, *settings], **more)

    return run


def changed(before: Path, after: Path) -> set[str]:
    """Which of the parts differ."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {
        part
        for part in (ADAPTOR, TALKER, ENCODER, THINKER, "model.embed", "model.norm", "lm_head")
        if any(not torch.equal(value, new[name]) for name, value in old.items() if name.startswith(part))
    }


def test_both_stages_of_vocalnet_go_on_after_a_kill_and_answer(
    parts: Path, data: Path, train: Callable[..., Path | None], tmp_path: Path
) -> None:
    start = parts / "vocalnet"
    first = train("vocalnet/qwen7b_stage1", f"start={start}")
    assert first is not None and changed(start, first) == {ADAPTOR, THINKER}
    losses = curve(tmp_path / "runs" / "vocalnet_qwen7b_stage1")
    assert losses[8] < losses[1]

    def kill(model: Any, step: int) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "killed"

    assert train("vocalnet/qwen7b_stage1", f"start={start}", "eval_interval=3", out="again", evaluate=kill) is None
    resumed = train("vocalnet/qwen7b_stage1", f"start={start}", "eval_interval=3", out="again")
    assert resumed is not None and changed(first, resumed) == set()

    second = train("vocalnet/qwen7b_stage2", "precision=bf16")
    assert second is not None and changed(first, second) == {TALKER}
    losses = curve(tmp_path / "runs" / "vocalnet_qwen7b_stage2")
    assert all(map(math.isfinite, losses.values())) and losses[8] < losses[1] - 0.5
    stopped = train(
        "vocalnet/qwen7b_stage2", "precision=bf16", f"parent={first}", "eval_interval=4", out="b", evaluate=kill
    )
    assert stopped is None
    resumed = train("vocalnet/qwen7b_stage2", "precision=bf16", f"parent={first}", "eval_interval=4", out="b")
    assert resumed is not None and changed(second, resumed) == set()

    question = data / "units" / "0.wav"
    model = str(tmp_path / "runs" / "vocalnet_qwen7b_stage2")
    assert main(["ask", str(question), "-o", str(tmp_path / "answer.wav"), "--model", model, "--mode", "3x"]) == 0


def test_the_three_stages_of_m2(parts: Path, data: Path, train: Callable[..., Path | None], tmp_path: Path) -> None:
    codes = {"codes": [1, 2] * 9, "codec": "xy_tokenizer"}
    messages = [{"role": "user", "content": "Convert the text to speech.\none two"}]
    messages.append({"role": "assistant", "content": "<|audio|>"})
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"messages": messages, "audios": [codes]}))
    tokenize_given(tmp_path / "manifest.jsonl", tmp_path / "aloud")
    (tmp_path / "aloud.yaml").write_text(yaml.safe_dump({"sets": [{"name": "aloud"}]}))
    kind, aloud = "family=vocalnet_m2_qwen2", (f"data.root={tmp_path}", f"data.mixture={tmp_path / 'aloud.yaml'}")
    first = train(
        "vocalnet_m2/stage1",
        kind,
        f"start={parts / 'vocalnet-m2'}",
        *aloud,
        "data.row_length=64",
        "data.tokens_per_step=64",
    )
    second, third = (train(f"vocalnet_m2/stage{n}", kind) for n in (2, 3))
    assert first is not None and second is not None and third is not None
    assert changed(parts / "vocalnet-m2", first) == {TALKER}
    assert changed(first, second) == {ADAPTOR, THINKER}
    assert changed(second, third) == {ADAPTOR, THINKER, TALKER}
    for stage in (1, 2, 3):
        losses = curve(tmp_path / "runs" / f"vocalnet_m2_stage{stage}")
        assert losses[8] < losses[1]


def tokenize_given(manifest: Path, store: Path) -> None:
    """A token store of codes that the manifest gives; no codec is needed for these."""
    from vita_mctp.data.manifest import parse_line
    from vita_mctp.data.token_store import (
        CodecIdentity,
        TokenizedAudio,
        TokenizedLine,
        index_bytes,
        read_header,
        shard_bytes,
        shard_file,
    )

    line = manifest.read_bytes()
    (given,) = parse_line(line, manifest, 1).audios
    codec = CodecIdentity(name="xy_tokenizer", digest="x", codebook_size=UNITS, frame_rate="25")
    audio = TokenizedAudio(bytes(32), given.codes, 1.0)  # type: ignore[union-attr]
    store.mkdir()
    (store / shard_file(0)).write_bytes(shard_bytes([TokenizedLine(1, line, (audio,))] * 4, codec, "s", []))
    (store / "index.json").write_bytes(index_bytes([read_header(store / shard_file(0))]))


def test_a_token_store_gives_what_a_list_gives(parts: Path, data: Path, tmp_path: Path) -> None:
    wave = str(data / "units" / "0.wav")
    messages = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "one two<|audio|>"}]
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"messages": messages, "audios": [wave, wave]}))
    options = ["--codec", "ramp", "--codec-folder", str(parts / "vocalnet" / "codec"), "--features", "whisper"]
    assert main(["tokenize", str(tmp_path / "manifest.jsonl"), "--out", str(tmp_path / "units"), *options]) == 0
    family = family_of("omni_speech2s_qwen")
    chat = family.chat(family.load_tokenizer(parts / "vocalnet"), RELEASED_STYLE)
    mixture = Mixture.from_file(data / "units.yaml")
    stored, listed = (open_pools(mixture, root, chat, BOOST_RATIO)["units"].make(0, 0) for root in (tmp_path, data))
    assert (stored.ids, stored.labels, stored.features) == (listed.ids, listed.labels, listed.features)
    (span,) = stored.features
    assert span.load is not None and listed.features[0].load is not None
    frames = listed.features[0].load().frames
    assert np.allclose(span.load().frames, frames, atol=1e-2) and span.load().positions == span.length
    raw = RampTokenizer.from_folder(parts / "vocalnet" / "codec").encode(read_wave(wave)).ids
    assert stored.spoken is not None and stored.spoken.codes == without_repeats(raw.tolist())
    assert stored.spoken.streaming == (listed.spoken and listed.spoken.streaming)
    said = [stored.ids[place] for place in range(stored.spoken.start, stored.spoken.stop)]
    assert family.load_tokenizer(parts / "vocalnet").decode(said) == "one two"


def test_a_start_is_the_thinker_the_encoder_and_parts_of_the_seed(parts: Path, tmp_path: Path) -> None:
    start, base = (load_file(parts / name / "model.safetensors") for name in ("vocalnet", "base"))
    whisper = load_file(parts / "whisper" / "model.safetensors")
    assert all(torch.equal(start[name], value) for name, value in base.items())
    encoder = {name: value for name, value in whisper.items() if name.startswith("encoder.")}
    assert encoder and all(torch.equal(start[f"model.speech_{name}"], value) for name, value in encoder.items())
    drawn: list[Tensor] = [value for name, value in start.items() if name.endswith("proj.weight") and TALKER in name]
    assert len(drawn) > 20 and all(0.01 < float(value.std()) < 0.03 for value in drawn)
    options = ["--whisper", str(parts / "base"), "--sizes", str(parts / "vocalnet.yaml")]
    assert main(["convert", "thinker", str(parts / "base"), str(tmp_path / "new"), *options]) == 2
    (tmp_path / "sizes.yaml").write_text("mtp_nun: 3")
    options = ["--whisper", str(parts / "whisper"), "--sizes", str(tmp_path / "sizes.yaml")]
    assert main(["convert", "thinker", str(parts / "base"), str(tmp_path / "new"), *options]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["vocalnet", "vocalnet_m2"])
def test_every_recipe_has_a_plan(kind: str, tmp_path: Path) -> None:
    plans = {path.stem: plan(path, tmp_path) for path in sorted((STAGES / kind).glob("*.yaml"))}
    if kind == "vocalnet":
        assert "832,410,078 of 2,722,499,038" in plans["1b_stage2"]
        assert "3,141,175,774 of 11,829,907,934" in plans["8b_stage2"]
        assert "2,425,572,318 of 10,698,610,654" in plans["qwen7b_stage2"]
    assert len(plans) == {"vocalnet": 6, "vocalnet_m2": 3}[kind]
    assert all("the audio encoder" in text and "trained: " in text for text in plans.values())


def test_what_does_not_fit_is_said(parts: Path, train: Callable[..., Path | None]) -> None:
    with pytest.raises(ConfigError, match=r"trains: got 'ears'; wanted of adaptor, talker"):
        train("vocalnet/qwen7b_stage1", f"start={parts / 'vocalnet'}", "trains=[ears]")
    with pytest.raises(ConfigError, match="nothing is trained"):
        train("vocalnet/qwen7b_stage2", "trains=[]")
    with pytest.raises(ConfigError, match="holds a omni_speech2s_qwen model"):
        train("vocalnet/1b_stage1", f"start={parts / 'vocalnet'}")
    with pytest.raises(CheckpointError, match="`vita-mctp convert thinker` write it"):
        train("vocalnet/1b_stage1", "start=nowhere")
