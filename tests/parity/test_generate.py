"""Greedy generation equals the reference's recorded cases: tokens, producing blocks, work done, caches, logits.

A token may differ only where the reference's own margin between its two best logits was below 1e-3; what follows such a
place is not compared. Everything about the schedule must be equal throughout.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from naive import generate_naive
from safetensors.torch import load_file

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.types import BACKBONE

EXCUSING_MARGIN = 1e-3
LOGITS_TOLERANCE = {"atol": 3e-4, "rtol": 1e-4}


@cache
def model_at(folder: Path, attn: str = "sdpa"):
    return load_model(folder, attn=attn)


def request_of(case: dict, num_blocks: int) -> Request:
    eos = case["eos_token_id"]
    return Request(
        prompt_ids=tuple(case["prompt"]),
        mode=parse_mode(case["mode"], num_blocks),
        max_new_tokens=case["max_new_tokens"],
        sampling=SamplingParams(repetition_penalty=case["repetition_penalty"]),
        eos_ids=frozenset([] if eos is None else [eos]),
    )


def cases_of(folder: Path) -> list[dict]:
    return json.loads((folder / "generate.json").read_text())["cases"]


def first_difference(case: dict, ids: tuple[int, ...]) -> int | None:
    """Index of the first differing token, None if all are equal; fails if the reference was sure of that token."""
    wanted = case["new_tokens"]
    if list(ids) == wanted:
        return None
    place = next((i for i, (ours, theirs) in enumerate(zip(ids, wanted, strict=False)) if ours != theirs), None)
    assert place is not None, f"{len(ids)} tokens, the reference has {len(wanted)}"
    margin = case["margin"][place]
    assert margin < EXCUSING_MARGIN, f"token {place}: {ids[place]} for {wanted[place]}, margin {margin}"
    return place


@contextmanager
def recorded_work(model) -> Iterator[list[dict]]:
    """Every call of the backbone or a block while the context is open: who, how many tokens, from which position."""
    calls: list[dict] = []
    backbone, block = model.backbone, model.block

    def note(item, embeds, positions):
        calls.append({"block": item, "query_len": embeds.shape[1], "first_position": int(positions[0, 0])})

    def noted_backbone(embeds, positions, **kwargs):
        note("main", embeds, positions)
        return backbone(embeds, positions, **kwargs)

    def noted_block(k, embeds, previous, positions, **kwargs):
        note(k, embeds, positions)
        return block(k, embeds, previous, positions, **kwargs)

    model.backbone, model.block = noted_backbone, noted_block
    try:
        yield calls
    finally:
        del model.backbone, model.block


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_case(generate_case, attn):
    folder, case = generate_case
    model = model_at(folder, attn)
    engine = Engine(EagerRunner(model))
    state = engine.start(request_of(case, model.config.num_nextn_predict_layers))
    events = []
    with recorded_work(model) as calls:
        while state.reason is None:
            events += engine.advance([state])[0]
    excused = first_difference(case, tuple(event.id for event in events))
    same = len(events) if excused is None else excused + 1
    sources = ["main" if event.level == BACKBONE else event.level - 1 for event in events]
    assert sources[:same] == case["block"][:same]
    for key in ("block", "query_len", "first_position"):
        assert [call[key] for call in calls][:same] == case[key][:same], key
    if excused is None:
        assert cache_lengths(model, state) == case["cache_lengths_at_end"]


def cache_lengths(model, state) -> dict[str, int]:
    """By decoder layer, as the reference counts them: backbone layers first, then one per block."""
    backbone, *blocks = [kv.length for kv in state.memory.slot]
    lengths = [backbone] * model.config.num_backbone_layers + blocks
    return {str(layer): length for layer, length in enumerate(lengths)}


def test_all_cases_in_one_batch(generate_file):
    model, cases = model_at(generate_file.parent), cases_of(generate_file.parent)
    batch = [request_of(case, model.config.num_nextn_predict_layers) for case in cases]
    for case, result in zip(cases, Engine(EagerRunner(model)).generate(batch), strict=True):
        first_difference(case, result.ids)


def test_naive_twin(generate_case):
    folder, case = generate_case
    model = model_at(folder)
    result = generate_naive(model, request_of(case, model.config.num_nextn_predict_layers))
    first_difference(case, result.ids)


def test_logits_of_the_first_steps(lm_folder, monkeypatch):
    tensors = load_file(lm_folder / "forward_train.safetensors")
    model = model_at(lm_folder)
    logits_of, compared = model.logits, 0
    for case in cases_of(lm_folder):
        wanted = tensors.get(f"gen.{case.get('name')}.logits_first8")
        if wanted is None:
            continue
        seen: list[torch.Tensor] = []
        monkeypatch.setattr(model, "logits", lambda hidden, seen=seen: seen.append(logits_of(hidden)) or seen[-1])
        engine = Engine(EagerRunner(model))
        state = engine.start(request_of(case, model.config.num_nextn_predict_layers))
        ids: tuple[int, ...] = ()
        while len(ids) < len(wanted):
            ids += tuple(event.id for event in engine.advance([state])[0])
        ids = ids[: len(wanted)]
        place = first_difference({**case, "new_tokens": case["new_tokens"][: len(ids)]}, ids)
        same = len(wanted) if place is None else place + 1
        torch.testing.assert_close(torch.cat(seen)[:same], wanted[:same].float(), **LOGITS_TOLERANCE)
        compared += 1
    assert compared, f"{lm_folder} records no logits of generation"
