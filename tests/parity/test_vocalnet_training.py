"""What VocalNet is trained on against the authors': spliced chats, spoken rows, units, losses; adapters merged."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vocalnet_talkers import index_of, said, talker_in

from vita_mctp.checkpoints.conversion import merge_lora
from vita_mctp.data.units import read_units
from vita_mctp.decoding.speaking import speak_whole
from vita_mctp.decoding.talker import TalkerOptions
from vita_mctp.models.registry import Speaking, family_of
from vita_mctp.models.vocalnet.prompts import SPEECH, without_repeats
from vita_mctp.text.chat import IGNORED, SpokenAnswer
from vita_mctp.types import HeardAudio

EMBEDDINGS, HIDDEN, LOSSES, MERGED = 1e-5, 2e-4, 5e-5, 2e-3
IDS = {"llama": (128009, 128004), "qwen": (151643, 151643)}
"""Of each thinker the id of the row spoken last, and the padding."""


def thinker(folder: Path, file: str) -> tuple[Any, str]:
    """The recorded thinker, adaptor and talker as one model, and its kind; its encoder is not used."""
    tensors = load_file(folder / file)
    kind = "qwen" if "qwen" in file else "llama"
    sizes, case = index_of(folder)["config"], index_of(folder)["files"][file]["config"]
    vocabulary = int(tensors["llm.embed_row_ids"].max()) + 1
    config = {
        "vocab_size": vocabulary,
        "hidden_size": case["hidden"],
        "intermediate_size": case["ffn"],
        "num_hidden_layers": case["layers"],
        "num_attention_heads": case["heads"],
        "num_key_value_heads": case["kv_heads"],
        "rms_norm_eps": case["rms_norm_eps"],
        "rope_theta": case["rope_theta"],
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "encoder_sizes": {
            "d_model": sizes["speech_encoder_hidden_size"],
            "encoder_layers": 1,
            "encoder_attention_heads": 1,
            "encoder_ffn_dim": 4,
        },
        "decoder_ffn_dim": sizes["decoder_ffn_dim"],
        "decoder_num_heads": sizes["decoder_num_heads"],
        "decoder_num_layers": sizes["decoder_num_layers"],
        "encoder_num_layers": sizes["encoder_num_layers"],
        "mtp_num": sizes["mtp_num"],
        "unit_vocab_size": sizes["unit_vocab_size"],
        "speech_encoder_ds_rate": sizes["speech_encoder_ds_rate"],
    }
    config |= {f"speech_{name}_token_id": sizes[f"speech_{name}_token_id"] for name in ("bos", "sos", "eos", "padding")}
    family = family_of(f"omni_speech2s_{kind}")
    model = family.model_class(family.config_class(**config)).eval()
    weights = {f"model.{name.removeprefix('llm.')}": tensor for name, tensor in tensors.items() if "layers" in name}
    weights |= {"model.norm.weight": tensors["llm.norm.weight"]}
    ids = tensors["llm.embed_row_ids"]
    weights["model.embed_tokens.weight"] = torch.zeros(vocabulary, case["hidden"]).index_copy(
        0, ids, tensors["llm.embed_rows"].float()
    )
    adaptor = load_file(folder / "adaptor.safetensors")
    weights |= {f"model.{name}": tensor for name, tensor in adaptor.items() if name.startswith("speech_projector")}
    weights |= {f"speech_generator.{name}": tensor for name, tensor in talker_in(folder).state_dict().items()}
    found = model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith(("model.speech_encoder", "lm_head")) for name in found.missing_keys)
    return model, kind


def heard(model: Any, features: Tensor, lengths: Tensor) -> list[list[Tensor]]:
    """Adaptor rows of each recording, of so many mel frames."""
    counts = ((lengths + 1) // 2 // model.model.speech_projector.rate).tolist()
    rows = model.model.speech_projector(features)
    return [[each[:count]] for each, count in zip(rows, counts, strict=True)]


def spliced(model: Any, ids: Tensor, labels: Tensor, recordings: list[Tensor]) -> tuple[Tensor, Tensor, list[Any]]:
    """Ids and labels with the positions that recordings take, and the recordings, of which `encode` gives the rows."""
    model.encode = lambda features: features.rows
    heard = list[Any]()
    for rows in recordings:
        start = ids.tolist().index(SPEECH)
        taken = ids.new_zeros(len(rows))
        ids = torch.cat([ids[:start], taken, ids[start + 1 :]])
        labels = torch.cat([labels[:start], taken + IGNORED, labels[start + 1 :]])
        heard.append(HeardAudio(SimpleNamespace(rows=rows, positions=len(rows)), start))  # type: ignore[arg-type]
    return ids, labels, heard


def spoken(labels: Tensor, kind: str) -> tuple[int, int]:
    """Where the rows of a sample stand that are spoken, but for the last."""
    known = (labels != IGNORED).nonzero().flatten().tolist()
    return known[0], known[-1] + 1 - (1 if kind == "qwen" else 2)


@torch.no_grad()
def test_training(wiring_file: Path) -> None:
    folder, recorded = wiring_file.parent, load_file(wiring_file)
    model, kind = thinker(folder, wiring_file.name)
    text_end, pad = IDS[kind]
    given = zip(recorded["input_ids"], recorded["labels"], strict=True)
    chats = [(ids[ids != pad], own[ids != pad]) for ids, own in given]
    rows = heard(model, recorded["encoder_features"], recorded["speech_lengths"])
    samples = [spliced(model, *chat, each) for chat, each in zip(chats, rows, strict=True)]
    ids = pad_sequence([sample[0] for sample in samples], True, pad)
    labels = pad_sequence([sample[1] for sample in samples], True, IGNORED)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    own = recorded["merged_attention_mask"].bool()
    assert torch.equal(labels, recorded["merged_labels"])
    embeds = model.listen(model.embed(ids), [sample[2] for sample in samples])
    torch.testing.assert_close(embeds[own], recorded["inputs_embeds"][own], atol=EMBEDDINGS, rtol=0.0)
    hidden = model.backbone(embeds, positions)
    torch.testing.assert_close(hidden[own], recorded["decoder_input_hidden"][own], atol=HIDDEN, rtol=0.0)
    talker, case = model.talker, index_of(folder)["files"][wiring_file.name]
    units = [tuple(each.tolist()) for each in said(recorded["tgt_units"])]
    coins = case.get("coins", ["non_streaming", "streaming"])
    answers = [
        [SpokenAnswer(*spoken(each, kind), codes, text_end, streaming=coin == "streaming")]
        for each, codes, coin in zip(labels, units, coins, strict=True)
    ]
    batch = model.spoken_batch(hidden, ids, [(row, answer) for row, (answer,) in enumerate(answers)])
    for each, wanted in zip(batch.text, recorded.get("decoder_rows", []), strict=False):
        torch.testing.assert_close(each[: len(wanted)], wanted[: len(each)], atol=HIDDEN, rtol=0.0)
    if "lm_loss_value" in case:
        head = torch.zeros_like(model.lm_head.weight)
        head[recorded["llm.embed_row_ids"]] = recorded["llm.lm_head_rows"].float()
        whole = torch.zeros(case.get("vocabulary", 151_936) - len(head), head.shape[1])
        model.lm_head.weight = torch.nn.Parameter(torch.cat([head, whole]))
    output = model(ids, labels, positions, heard=[sample[2] for sample in samples], spoken=answers)
    assert talker.loss(torch.stack(output.mtp_losses)).item() == pytest.approx(case["loss_value"], abs=LOSSES)
    if "lm_loss_value" in case:
        assert output.lm_loss.item() == pytest.approx(case["lm_loss_value"], abs=LOSSES)


@torch.inference_mode()
def test_answering(wiring_infer_file: Path) -> None:
    folder, cases = wiring_infer_file.parent, json.loads(wiring_infer_file.read_text())
    tensors = load_file(wiring_infer_file.with_suffix(".safetensors"))
    for name, case in cases["cases"].items():
        model, kind = thinker(folder, "wiring_train_qwen.safetensors" if name == "qwen" else "wiring_train.safetensors")
        ids = torch.tensor([*case["input_ids"], *case["answer_ids"][:-1]])
        rows = heard(model, tensors[f"{name}.encoder_features"], torch.tensor([case["speech_length"]]))
        ids, _, recordings = spliced(model, ids, ids, rows[0])
        embeds = model.listen(model.embed(ids[None]), [recordings])
        states = list(model.backbone(embeds, torch.arange(len(ids))[None])[0, -len(case["answer_ids"]) :])
        text_end = model.embed(torch.tensor([[IDS[kind][0]]]))[0, 0]
        wanted = tensors[f"{name}.decoder_rows"][0]
        torch.testing.assert_close(torch.stack([*states, text_end]), wanted, atol=HIDDEN, rtol=0.0)
        options = TalkerOptions(case["infer_mtp_token_num"], max_tokens=cases["max_tokens_per_decoder_call"])
        speaking = Speaking(model.talker, case["answer_ids"][-1], text_end, str)
        units = speak_whole(speaking, options, case["answer_ids"], states)
        assert [model.talker.sizes.sos, *units, model.talker.sizes.eos] == case["units"], name
        assert SPEECH in case["input_ids"]


def test_units(units_file: Path, tmp_path: Path) -> None:
    folder, recorded = units_file.parent, json.loads(units_file.read_text())
    tensors, talker = load_file(units_file.with_suffix(".safetensors")), talker_in(folder)
    found = []
    for sample in recorded["samples"]:
        given = sample["unit_dict"]
        content = {name: np.array(given[name], given["dtype"]) for name in ("speech_token", "speech_token_len")}
        np.save(tmp_path / sample["units"], content, allow_pickle=True)
        units = read_units(tmp_path / sample["units"], talker.sizes.num_units)
        found.append(torch.tensor(without_repeats(units.tolist())))
        assert found[-1].tolist() == sample["units_after_dedupe"]
    for kind, case in recorded["families"].items():
        own = {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items() if name.startswith(kind)}
        chosen = case["decoder_batch_rows"]
        labels = own["labels"][chosen].masked_fill(own["attention_mask"][chosen] == 0, -100)
        spans = [slice(*spoken(each, kind)) for each in labels]
        given = zip(own["llm_hidden"], spans, strict=True)
        text = [torch.cat([states[span], own["txt_eos_emb"][0]]) for states, span in given]
        assert [len(rows) for rows in text] == case["rows_per_sample"]
        batch = talker.batch(text, [found[row] for row in chosen], [coin == "streaming" for coin in case["coins"]])
        for k in range(talker.sizes.mtp_levels + 1):
            assert torch.equal(batch.labels(k)[..., 0], own[f"labels.head{k}"])
            assert torch.equal(batch.mask(k), own[f"mask.head{k}"].bool())
        losses = talker.losses(batch)
        assert losses.tolist() == pytest.approx(case["losses"], abs=1e-5)


def test_adapters_are_merged(lora_file: Path) -> None:
    folder = lora_file.parent
    merged, wanted = merge_lora(folder / "base", folder / "adapter"), load_file(lora_file)
    keys = set(json.loads((folder / "expected.json").read_text())["merged_keys"])
    tied = {"lm_head.weight"} - merged.keys()
    assert {key for key in keys - merged.keys() if ".speech_encoder." not in key} == tied
    for name in wanted.keys() - tied:
        torch.testing.assert_close(merged[name], wanted[name], atol=MERGED, rtol=0.0)


def test_pickled_weights_beside_adapters_are_read(lora_file: Path, tmp_path: Path) -> None:
    source = lora_file.parent / "adapter"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    torch.save(load_file(source / "non_lora_trainables.safetensors"), tmp_path / "non_lora_trainables.bin")
    merged, wanted = merge_lora(lora_file.parent / "base", tmp_path), merge_lora(lora_file.parent / "base", source)
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted) and merged.keys() == wanted.keys()
