"""Talkers against the authors': masks, labels, logits, losses and gradients of training, tokens of every loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from vocalnet_talkers import index_of, rows_spoken, said, talker_in

from vita_mctp.decoding import talker as talker_module
from vita_mctp.decoding.speaking import SpokenStream, speak_whole
from vita_mctp.decoding.talker import STREAM_PENALTY, WHOLE_PENALTY, Penalty, TalkerAnswer, TalkerOptions
from vita_mctp.models.registry import Speaking
from vita_mctp.models.vocalnet.batches import TalkerBatch
from vita_mctp.models.vocalnet.talkers import Talker

LOGITS, LOSSES, GRADIENTS, DECODED, AUTHORS = 2e-4, 1e-5, 1e-3, 5e-4, (3e-4, 2e-5)
END_OF_LLAMA = 128009


def check_forward(talker: Talker, batch: TalkerBatch, recorded: dict[str, Tensor], logits: float) -> None:
    """recorded: mask.*, labels.head*, logits.head* and, where known, hidden.head*; numbers where labels are."""
    for k, hidden in enumerate(talker.chain(batch)):
        labels = batch.labels(k)
        assert torch.equal(labels.flatten(1), recorded[f"labels.head{k}"]), k
        mask = recorded.get(f"mask.head{k}", recorded.get(f"mask.{k}"))
        assert mask is None or torch.equal(batch.mask(k), mask.bool()), k
        known = labels.flatten(1) != talker.sizes.pad
        found = talker.logits(k, hidden[:, batch.text_columns :]).flatten(1, 2)
        near = {"atol": logits, "rtol": 0.0}
        torch.testing.assert_close(found[known], recorded[f"logits.head{k}"][known], **near)
        if f"hidden.head{k}" in recorded:
            rows = known.nonzero(as_tuple=True)
            wanted = recorded[f"hidden.head{k}"][:, batch.text_columns :]
            torch.testing.assert_close(hidden[:, batch.text_columns :][rows], wanted[rows], **near)


def check_projector(talker: Talker, batch: TalkerBatch, recorded: dict[str, Tensor]) -> None:
    """Of each answer's own text rows, which the forward hands on behind BOS."""
    columns = torch.arange(batch.text.shape[1])
    causal = (columns <= columns[:, None])[None]
    own = columns < batch.text_lengths[:, None] - 1
    assert torch.equal(recorded["mask.projector"].bool()[own], causal.expand(len(own), -1, -1)[own])
    found, wanted = talker.project(batch.text, columns[None], causal), recorded["hidden.projector"]
    torch.testing.assert_close(found[own], wanted[own], atol=LOGITS, rtol=0.0)


def test_training_forward_losses_and_gradients(talker_train_file: Path) -> None:
    folder, recorded = talker_train_file.parent, load_file(talker_train_file)
    case, talker = index_of(folder)["files"][talker_train_file.name], talker_in(folder)
    hidden, text_end = recorded["llm_hidden"].requires_grad_(), recorded.get("txt_eos_emb")
    if text_end is not None:
        text_end.requires_grad_()
    text = rows_spoken(hidden, recorded["llm_labels"], text_end, END_OF_LLAMA)
    streaming = [coin == "streaming" for coin in case["coin_toss"]]
    batch = talker.batch(text, said(recorded["speech_tokens"]), streaming)
    assert batch.text_lengths.tolist() == case["text_len_with_bos"]
    check_projector(talker, batch, recorded)
    check_forward(talker, batch, recorded, LOGITS)
    losses = talker.losses(batch)
    assert losses.tolist() == pytest.approx(case["losses"], abs=LOSSES)
    total = talker.loss(losses)
    assert total.item() == pytest.approx(case["total"], abs=len(losses) * LOSSES)
    total.backward()
    norms = {name: parameter.grad.norm().item() for name, parameter in talker.named_parameters()}
    assert norms == pytest.approx(case["grad_norm_params"], rel=GRADIENTS)
    for name, tensor in (("llm_hidden", hidden), ("txt_eos_emb", text_end)):
        if tensor is not None and f"grad.{name}" in recorded:
            wanted = recorded[f"grad.{name}"]
            near = GRADIENTS * wanted.abs().max().item()
            torch.testing.assert_close(tensor.grad, wanted, atol=near, rtol=GRADIENTS)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of every draw, penalised, in order."""
    logits: list[Tensor] = []
    choose = talker_module.choose
    monkeypatch.setattr(talker_module, "choose", lambda row: logits.extend(row) or choose(row))
    return logits


def test_whole_answers(talker_whole_file: Path, drawn: list[Tensor]) -> None:
    folder, cases = talker_whole_file.parent, json.loads(talker_whole_file.read_text())["cases"]
    recorded, talker = load_file(talker_whole_file.with_suffix(".safetensors")), talker_in(folder)
    for name, case in cases.items():
        drawn.clear()
        asked = case["kwargs"]
        plain = case["call"] == "predict" or asked.get("penalty_window_size") == 0
        penalty = None if plain else WHOLE_PENALTY
        options = TalkerOptions(case["infer_mtp_token_num"], max_tokens=asked["max_tokens"], penalty=penalty)
        made = TalkerAnswer(talker, options, streaming=False).whole(recorded[f"{name}.llm_hidden"][0])
        assert [talker.sizes.sos, *made] == case["tokens"], name
        torch.testing.assert_close(torch.stack(drawn), recorded[f"{name}.logits"], atol=DECODED, rtol=0)


def test_streamed_answers(talker_stream_file: Path, drawn: list[Tensor]) -> None:
    folder, cases = talker_stream_file.parent, json.loads(talker_stream_file.read_text())["cases"]
    recorded, talker = load_file(talker_stream_file.with_suffix(".safetensors")), talker_in(folder)
    for name, case in cases.items():
        drawn.clear()
        options = TalkerOptions(case["infer_mtp_token_num"], max_tokens=case["max_tokens"], penalty=STREAM_PENALTY)
        answer = TalkerAnswer(talker, options, streaming=True)
        made = []
        for number, last in enumerate(case["last_flags"]):
            text = recorded.get(f"{name}.text{number}")
            made.append(answer.push(None if text is None else text[0], last=last))
        assert made == case["tokens_per_call"], name
        torch.testing.assert_close(torch.stack(drawn), recorded[f"{name}.logits"], atol=DECODED, rtol=0)


def test_the_streaming_loop(spoken_stream_file: Path) -> None:
    folder, recorded = spoken_stream_file.parent, load_file(spoken_stream_file.with_suffix(".safetensors"))
    loop = json.loads(spoken_stream_file.read_text())
    end, full_stop = loop["eot_id"], loop["punct_token_id"]

    def decode(ids: Any) -> str:
        return "".join("" if id == end else "." if id == full_stop else "a" for id in ids)

    for name, case in loop["cases"].items():
        chunks = {"text_chunk": case.get("C_t", loop["C_t"]), "speech_chunk": case.get("C_s", loop["C_s"])}
        talker = talker_in(folder, **chunks)
        nothing = torch.zeros(1, len(case["llm_token_ids"]), talker.sizes.hidden_size)
        rows = recorded.get(f"{name}.llm_hidden", nothing)[0]
        text_end = recorded.get(f"{name}.txt_eos_emb", nothing[0, 0])
        rules = Speaking(talker, end, text_end, decode, reset_interval=case["reset_interval"])
        options = TalkerOptions(case["infer_mtp_token_num"], max_tokens=loop["max_tokens_per_decoder_call"])
        stream, parts = SpokenStream(rules, options), []
        for number, (id, row) in enumerate(zip(case["llm_token_ids"], rows, strict=False)):
            too_long = number > case.get("max_len", 512)
            parts += stream.end() if too_long else stream.push(id, row)
            if too_long or id == end:
                break
        found = [(part.text_ids and list(part.text_ids), list(part.units), part.is_last) for part in parts]
        assert found == [(each["text_ids"], each["units"][0], each["is_last"]) for each in case["yields"]], name
        assert all(code < talker.sizes.num_units for part in parts for code in part.codes)


def test_segments_of_whole_answers(spoken_whole_file: Path) -> None:
    folder, recorded = spoken_whole_file.parent, load_file(spoken_whole_file.with_suffix(".safetensors"))
    loop, talker = json.loads(spoken_whole_file.read_text()), talker_in(folder)
    for name, case in loop["cases"].items():
        ids = case["llm_token_ids"]
        rules = Speaking(talker, ids[-1], recorded[f"{name}.txt_eos_emb"], str)
        options = TalkerOptions(case["infer_mtp_token_num"], max_tokens=loop["max_tokens_per_decoder_call"])
        units = speak_whole(rules, options, ids, list(recorded[f"{name}.llm_hidden"][0]))
        sos, *drawn, eos = case["units"]
        assert (sos, eos) == (talker.sizes.sos, talker.sizes.eos)
        assert list(units) == [unit for unit in drawn if unit < talker.sizes.num_units], name  # mended: only codes


def test_the_predictors_of_table_3(predictors_file: Path) -> None:
    folder, tensors = predictors_file.parent, load_file(predictors_file.with_suffix(".safetensors"))
    names = {"group_linear": "group_linear", "group_trans": "group_transformer"}
    for name, case in json.loads(predictors_file.read_text())["cases"].items():
        recorded = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        group = case.get("group_size", 1)
        changes: dict[str, Any] = {"predictor": names.get(name.rsplit("_g", 1)[0], name), "group_size": group}
        if group > 1:
            changes |= {"mtp_levels": 0, "speech_chunk": case["speech_token_num_groups"]}
        own = {key: value for key, value in recorded.items() if key.split(".")[0] in ("group_model", "output_proj")}
        own |= {key: value for key, value in recorded.items() if key.startswith("mtp_")}
        talker = talker_in(folder, own, **changes)
        end_id = None if name.startswith("group_linear") else END_OF_LLAMA
        text = rows_spoken(recorded["llm_hidden"], recorded["llm_labels"], recorded["txt_eos_emb"], end_id)
        assert [len(rows) for rows in text] == case["rows_to_projector"]
        streaming = [coin == "streaming" for coin in case["coins"]]
        batch = talker.batch(text, said(recorded["speech_tokens"]), streaming)
        check_forward(talker, batch, recorded, AUTHORS[0])
        losses = talker.losses(batch)
        assert losses.tolist() == pytest.approx(case["losses"], abs=AUTHORS[1]), name
        assert talker.loss(losses).item() == pytest.approx(case["total"], abs=len(losses) * AUTHORS[1])
        for decode, asked in case["decode"].items():
            given = asked["args"]
            penalty = Penalty(given["penalty_window_size"], given["penalty"]) if "penalty" in given else None
            options = TalkerOptions(given.get("infer_mtp_token_num", 0), "reference", given["max_tokens"], penalty)
            answer = TalkerAnswer(talker, options, streaming=False)
            answer.whole(recorded[f"decode_{decode}.llm_hidden"][0])
            assert answer.history == asked["tokens"], (name, decode)


@torch.inference_mode()
def test_the_predictors_definitions(variants_file: Path) -> None:
    """On a given backbone output; the numbers are of the definition, not of the authors' program."""
    folder, recorded = variants_file.parent, load_file(variants_file.with_suffix(".safetensors"))
    values = json.loads(variants_file.read_text())
    cases, columns = values["cases"], values["text_columns"]
    speech = [row[:length] for row, length in zip(recorded["speech_tokens"], values["speech_lens"], strict=True)]
    shared = {name.removeprefix("shared_"): tensor for name, tensor in recorded.items() if name.startswith("shared_")}
    shared["embedding.weight"] = recorded["embedding.weight"]

    def talker_of(predictor: str, name: str, **changes: Any) -> Talker:
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in recorded.items() if key.startswith(prefix)}
        own = {key: tensor for key, tensor in own.items() if not key.startswith("logits")}
        return talker_in(folder, shared | own, predictor=predictor, loss_decay=values["loss_decay"], **changes)

    def batch_of(talker: Talker) -> TalkerBatch:
        lengths = cases["MTP-DeepSeek"]["text_lens_with_bos"]
        return talker.batch(
            [torch.zeros(n - 1, talker.sizes.hidden_size) for n in lengths], speech, [False] * len(speech)
        )

    def check(talker: Talker, states: list[Tensor], name: str, key: str, losses: list[float]) -> None:
        batch = batch_of(talker)
        for k, (hidden, wanted) in enumerate(zip(states, losses, strict=True)):
            labels = batch.labels(k).flatten(1)
            known = labels != talker.sizes.pad
            found = talker.logits(k, hidden).flatten(1, 2)
            if key.format(k) in recorded:
                torch.testing.assert_close(found[known], recorded[key.format(k)][known], atol=LOGITS, rtol=0.0)
            loss = torch.nn.functional.cross_entropy(found[known], labels[known]).item()
            assert loss == pytest.approx(wanted, abs=LOSSES), (name, k)

    hidden = recorded["backbone_hidden"]
    case = cases["MTP-Parallel-Linear"]
    talker = talker_of("parallel_linear", "parallel_linear", mtp_levels=case["heads"])
    spoken = [hidden[:, columns:]] * (case["heads"] + 1)
    check(talker, spoken, "parallel_linear", "parallel_linear.logits.head{}", case["losses"])
    case = cases["MTP-DeepSeek"]
    talker = talker_of("deepseek", "deepseek", mtp_levels=case["modules"])
    batch, states = batch_of(talker), [hidden]
    for k in range(1, case["modules"] + 1):
        further = torch.full_like(batch.inputs, talker.sizes.pad)
        further[:, :-k] = batch.inputs[:, k:]
        rows = torch.cat([recorded["text_input"], talker.embed(further)], dim=1)
        positions = torch.arange(rows.shape[1])[None]
        states.append(talker.level(k, talker.enter(k, states[-1]), rows, positions, batch.mask(k)))
    check(talker, [each[:, columns:] for each in states], "deepseek", "deepseek.logits.head{}", case["losses"])
    for predictor, name, title in (
        ("group_linear", "group_linear", "Group-Linear"),
        ("group_transformer", "group_trans", "Group-Trans"),
    ):
        case = cases[title]
        talker = talker_of(predictor, name, mtp_levels=0, group_size=case["group_size"])
        batch = batch_of(talker)
        torch.testing.assert_close(talker.embed(batch.inputs), recorded["group.input_embeddings"], atol=1e-5, rtol=0.0)
        assert torch.equal(batch.targets.flatten(1), recorded["group.targets"])
        check(talker, [recorded["group.backbone_hidden"]], name, f"{name}.logits", [case["loss"]])
