"""Which runner a model gets."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from vita_mctp.decoding import runners
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners import onnx, runner_for
from vita_mctp.decoding.runners.cycles import CycleRunner
from vita_mctp.decoding.runners.eager import EagerLevels
from vita_mctp.decoding.runners.onnx import OnnxLevels
from vita_mctp.decoding.runners.packed import PackedLevels

REQUEST = Request((7, 1, 30, 2), MODES["boost"], 30)


def levels_of(model: torch.nn.Module) -> type:
    runner = runner_for(model)
    assert isinstance(runner, CycleRunner)
    return type(runner.levels)


def test_float32_on_a_cpu_gets_onnx_runtime_and_the_same_answer(
    make_tiny_model: Callable[..., torch.nn.Module],
) -> None:
    model = make_tiny_model(seed=5, num_blocks=10).float()
    assert levels_of(model) is OnnxLevels
    eager = CycleRunner(EagerLevels(model))
    assert Engine(runner_for(model)).generate([REQUEST]) == Engine(eager).generate([REQUEST])


@pytest.mark.parametrize("has_products", [True, False])
def test_bfloat16_gets_packed_products_where_the_processor_has_them(
    make_tiny_model: Callable[..., torch.nn.Module], monkeypatch: pytest.MonkeyPatch, has_products: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_products)
    model = make_tiny_model(seed=5, num_blocks=2)
    assert levels_of(model.to(torch.bfloat16)) is (PackedLevels if has_products else EagerLevels)


def test_other_types_keep_their_own_forward(make_tiny_model: Callable[..., torch.nn.Module]) -> None:
    assert levels_of(make_tiny_model(seed=5, num_blocks=2)) is EagerLevels


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("model_type", "another")])
def test_what_the_graphs_lack_keeps_its_own_forward(
    make_tiny_model: Callable[..., torch.nn.Module], monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    model = make_tiny_model(seed=5, num_blocks=2).float()
    stated = model.config.to_dict() | {key: value}
    monkeypatch.setattr(model.config, "to_dict", lambda: stated)
    assert levels_of(model) is EagerLevels


def test_a_model_too_large_to_be_held_twice_keeps_its_own_forward(
    make_tiny_model: Callable[..., torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "_ONNX_BYTES", 1000)
    assert levels_of(make_tiny_model(seed=5, num_blocks=2).float()) is EagerLevels


def test_caches_go_to_the_next_request_and_few_are_kept(
    make_tiny_model: Callable[..., torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "_MOST_SPARE", 2)
    engine = Engine(runner_for(make_tiny_model(seed=5, num_blocks=2).float()))
    states = [engine.start(REQUEST) for _ in range(3)]
    caches = [weakref.ref(state.memory.slot.caches) for state in states]
    while states[0].reason is None:
        engine.advance(states)
    used = [state.ids for state in states]
    states.clear()
    kept = [reference() for reference in caches if reference() is not None]
    assert len(kept) == 2
    again = engine.start(REQUEST)
    assert again.memory.slot.caches in kept
    while again.reason is None:
        engine.advance([again])
    assert again.ids == used[0]


def test_batches_of_many_sizes_keep_no_memory_of_each(make_tiny_model: Callable[..., torch.nn.Module]) -> None:
    runner = runner_for(make_tiny_model(seed=5, num_blocks=2).float())
    batch = [Request(tuple(range(1, 2 + i)), MODES["verified"], 9 + i) for i in range(5)]
    Engine(runner).generate(batch)
    kept = {size: len(call._keep) for (_, _, size, *_), call in runner.levels._calls.items()}
    assert max(kept) > 1 and not any(number for size, number in kept.items() if size > 1)
