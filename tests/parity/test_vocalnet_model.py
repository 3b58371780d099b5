"""Whole VocalNet folders against the authors' loop: hearing, prompts, thinker, draws, wiring, LoRA, full-size names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.checkpoints.opening import open_model
from vita_mctp.codecs.features import WhisperFrontEnd, mel_length
from vita_mctp.decoding.sampling import SamplingParams, candidates, softmax
from vita_mctp.decoding.speaking import SpokenStream, speak_whole
from vita_mctp.decoding.talker import TalkerOptions
from vita_mctp.models.registry import family_of
from vita_mctp.models.vocalnet.modeling import VocalNetModel
from vita_mctp.models.vocalnet.prompts import LLAMA, QWEN, SPEECH, VocalNetChat
from vita_mctp.models.vocalnet.tokenizer import thinker_tokenizer
from vita_mctp.types import HeardAudio, Wave

FORMS = {"llama": LLAMA, "qwen": QWEN}
MEL, ROWS, CHANCES = 1e-4, 3e-4, 2e-5
ROUNDED = 5e-8
"""Chances below it are recorded as none."""
LARGEST_VOCABULARY = 152_064


@pytest.fixture
def released_folder(released_expected_file: Path, tmp_path: Path) -> Path:
    """A released folder, its vocabulary tables made of the rows that are not zero."""
    source, folder = released_expected_file.parent, tmp_path / "model"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("expected*", "vocab_rows*", "model.safetensors"))
    tensors, rows = load_file(source / "model.safetensors"), load_file(source / "vocab_rows.safetensors")
    sizes = json.loads((source / "config.json").read_text())
    for name, kept in rows.items():
        if name != "ids":
            table = torch.zeros(sizes["vocab_size"], sizes["hidden_size"], dtype=kept.dtype)
            table[rows["ids"]] = kept
            tensors["lm_head.weight" if name == "lm_head" else f"model.{name}.weight"] = table
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@torch.inference_mode()
def test_a_released_folder_hears_writes_and_speaks(released_expected_file: Path, released_folder: Path) -> None:
    expected = json.loads(released_expected_file.read_text())
    tensors = load_file(released_expected_file.with_suffix(".safetensors"))
    opened = open_model(released_folder)
    model, family = load_model(released_folder), opened.family
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]
    heard = WhisperFrontEnd().encode(Wave((tensors["audio_int16"] / 32768).float().numpy(), 16000))
    assert heard.positions == len(tensors["adaptor_rows"])
    near: dict[str, Any] = {"atol": ROWS, "rtol": 0.0}
    mel = torch.from_numpy(heard.frames)
    torch.testing.assert_close(mel, tensors["mel_rows"][: len(mel)], atol=MEL, rtol=0.0)
    torch.testing.assert_close(model.encode(heard), tensors["adaptor_rows"], **near)
    tokenizer = family.load_tokenizer(released_folder, "", model.talker.sizes.num_units)
    chat, speaking = VocalNetChat(tokenizer, family.form), family.speaking(model, tokenizer)
    ids = chat.prompt_ids([("human", "<speech>")])
    assert ids == expected["input_ids"]
    rows, written = think(model, ids, HeardAudio(heard, ids.index(SPEECH)), speaking.end_id)
    recorded = tensors["decoder_rows_nonstreaming"][0]
    torch.testing.assert_close(torch.stack([*rows, speaking.text_end]), recorded, **near)
    limit, sizes = expected["max_tokens_per_decoder_call"], model.talker.sizes
    for name, case in expected["non_streaming"].items():
        assert written == case["text_ids"] and tokenizer.decode(written).strip() == case["text"]
        units = speak_whole(speaking, TalkerOptions(int(name[1:]), max_tokens=limit), written, rows)
        sos, *drawn, eos = case["units"]
        assert (sos, eos) == (sizes.sos, sizes.eos)
        assert list(units) == [unit for unit in drawn if unit < sizes.num_units], name  # mended: only codes
    streaming = expected["streaming"]
    stream = SpokenStream(speaking, TalkerOptions(streaming["infer_mtp_token_num"], max_tokens=limit))
    parts = [part for id, row in zip(written, rows, strict=True) for part in stream.push(id, row)]
    found = [(part.text_ids and list(part.text_ids), [list(part.units)], part.is_last) for part in parts]
    assert found == [(each["text_ids"], each["units"], each["is_last"]) for each in streaming["yields"]]


def think(model: Any, ids: list[int], heard: HeardAudio, end_id: int) -> tuple[list[torch.Tensor], list[int]]:
    """Greedily, from nothing at each token: the hidden state that predicted each, and the tokens."""
    sequence = [*ids[: heard.start], *[0] * heard.features.positions, *ids[heard.start + 1 :]]
    rows: list[torch.Tensor] = []
    written: list[int] = []
    while not written or written[-1] != end_id:
        embeds = model.listen(model.embed(torch.tensor([[*sequence, *written]])), [[heard]])
        rows.append(model.backbone(embeds, torch.arange(embeds.shape[1])[None])[0, -1])
        written.append(int(model.logits(rows[-1]).argmax()))
    return rows, written


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("vocabulary", ["tiny", "real"])
def test_chats(prompts_file: Path, name: str, vocabulary: str) -> None:
    """real: with the released vocabularies, which are not in this repository (docs/families.md, "Proven how")."""
    folder = prompts_file.parent / f"tiny_tokenizer_{name}"
    if vocabulary == "real":
        folder = Path(os.environ.get("VITA_MCTP_TOKENIZERS", "")) / name
        if not (folder / "tokenizer.json").is_file():
            pytest.skip(f"VITA_MCTP_TOKENIZERS names no folder with {name}/tokenizer.json")
    form, recorded = FORMS[name], json.loads(prompts_file.read_text())
    tokenizer = thinker_tokenizer(folder, form, LARGEST_VOCABULARY, 6561, 1)
    chat = VocalNetChat(tokenizer, form)
    for case in (each for each in recorded["cases"] if each["family"] == name):
        turns = [(turn["from"], turn["value"]) for turn in case["conversations"]]
        wanted = case[vocabulary]
        assert chat.labelled(turns) == (wanted["train_ids"], wanted["train_labels"]), case["name"]
        if "infer_ids" in wanted:
            assert chat.prompt_ids(turns[:-1]) == wanted["infer_ids"], case["name"]
    for mark, ids in recorded["stop_ids"][name].items():
        assert tokenizer.encode(mark) == ids[:1] or vocabulary == "tiny", mark


def test_what_a_draw_is_made_from(sampling_file: Path) -> None:
    for case in json.loads(sampling_file.read_text())["cases"]:
        params = SamplingParams(case["temperature"], case["top_k"], case["top_p"] or 1.0, top_p_excludes=True)
        ids, scores = candidates(np.array(case["logits"], np.float64), params)
        found = np.zeros(len(case["logits"]))
        found[ids] = softmax(scores)
        wanted = np.array(case["kept_probs"])
        assert ((found > ROUNDED) == (wanted > 0)).all(), case
        np.testing.assert_allclose(found, wanted, atol=CHANCES)


def clip(samples: int) -> Wave:
    n = np.arange(samples, dtype=np.int64)
    ints = np.where((n // 4000) % 5 == 4, 0, (3 * n * n // 1000 + 37 * n) % 16384 - 8192)
    return Wave((ints / 32768).astype(np.float32), 16000)


def test_hearing(hearing_file: Path) -> None:
    recorded = json.loads(hearing_file.read_text())
    for row in recorded["length_table"]:
        assert mel_length(row["samples"]) == row["mel_length"]
        assert WhisperFrontEnd.positions(row["mel_length"] + 2) == row["adaptor_length"], row
    tensors, front_end = load_file(hearing_file.with_suffix(".safetensors")), WhisperFrontEnd()
    model = _hearing_model(recorded, load_file(hearing_file.with_name("hearing_weights.safetensors")))
    for name, case in recorded["clips"].items():
        heard = front_end.encode(clip(case["samples"]))
        assert heard.positions == case["adaptor_rows"]
        ids = tensors[f"{name}.mel_row_ids"]
        ids = ids[ids < min(3000, len(heard.frames))]
        mel = torch.from_numpy(heard.frames)[ids]
        torch.testing.assert_close(mel, tensors[f"{name}.mel_rows"][: len(ids)], atol=MEL, rtol=0.0)
        with torch.inference_mode():
            rows = model.encode(heard)
        torch.testing.assert_close(rows, tensors[f"{name}.adaptor_rows"], atol=2e-4, rtol=0.0)


def _hearing_model(recorded: dict[str, Any], weights: dict[str, torch.Tensor]) -> VocalNetModel:
    """The recorded encoder and adaptor in a thinker of one layer."""
    sizes = recorded["encoder"]
    encoder = {
        "d_model": sizes["d_model"],
        "encoder_layers": sizes["layers"],
        "encoder_attention_heads": sizes["heads"],
        "encoder_ffn_dim": sizes["ffn"],
    }
    family = family_of("omni_speech2s_llama")
    hidden = recorded["llm_hidden"]
    config = family.config_class(
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=8,
        pad_token_id=0,
        encoder_sizes=encoder,
        decoder_ffn_dim=hidden,
        decoder_num_heads=2,
        decoder_num_layers=1,
        encoder_num_layers=1,
        mtp_num=0,
        unit_vocab_size=4,
        speech_bos_token_id=4,
        speech_sos_token_id=5,
        speech_eos_token_id=6,
        speech_padding_token_id=7,
    )
    model = family.model_class(config).eval()
    own = model.state_dict()
    missing = model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    assert not missing.unexpected_keys and set(weights) < set(own)
    return model
