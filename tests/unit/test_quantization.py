"""int8 and int4 weights: what shrinks, what stays, how near the answers remain, and what is said without torchao."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vita_mctp.checkpoints.loading import load_model, memory_needed
from vita_mctp.checkpoints.options import parse_quantization
from vita_mctp.checkpoints.weights import tensor_shapes
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.models.vita import VITA, VitaMctpConfig, VitaMctpForCausalLM
from vita_mctp.types import TokenKind

IDS = torch.tensor([[5, 40, 3, 3, 17, 29, 8, 90, 77, 61]])


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = VitaMctpConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=4,
        num_nextn_predict_layers=2,
        initializer_range=0.1,
        tie_word_embeddings=request.param,
    )
    torch.manual_seed(0)
    VitaMctpForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def hidden_states(model: VitaMctpForCausalLM) -> list[Tensor]:
    with torch.no_grad():
        return [hidden.float() for _, hidden in model.chain(IDS)]


def stored_bytes(weight: Tensor) -> int:
    parts = weight.__tensor_flatten__()[0] if hasattr(weight, "qdata") else []
    return sum(getattr(weight, part).nbytes for part in parts) if parts else weight.nbytes


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.03), ("int4", 0.35)])
def test_layers_shrink_as_counted_and_answers_stay_near(saved: Path, kind: str, near: float) -> None:
    pytest.importorskip("torchao")
    full, small = (
        load_model(saved, dtype=torch.bfloat16, quantize=quantize) for quantize in (None, parse_quantization(kind))
    )
    for exact, rounded in zip(hidden_states(full), hidden_states(small), strict=True):
        error = ((exact - rounded).norm() / exact.norm()).item()
        assert 0 < error < near
    linear = {name: layer for name, layer in small.named_modules() if isinstance(layer, nn.Linear)}
    assert {name for name, layer in linear.items() if not hasattr(layer.weight, "qdata")} == {"lm_head"}
    assert (small.lm_head.weight is small.model.embed_tokens.weight) == small.config.tie_word_embeddings
    assert {norm.dtype for name, norm in small.named_parameters() if "norm" in name} == {torch.bfloat16}
    counted = memory_needed(tensor_shapes(saved), torch.bfloat16, parse_quantization(kind), VITA.shrinks)
    held = sum(stored_bytes(weight) for weight in small.parameters())
    assert held == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_model_writes_with_its_blocks(saved: Path, kind: str) -> None:
    pytest.importorskip("torchao")
    model = load_model(saved, dtype=torch.bfloat16, quantize=parse_quantization(kind))
    engine = Engine(EagerRunner(model), classify=lambda token: TokenKind.TEXT)
    request = Request(tuple(IDS[0].tolist()), parse_mode("1,2", 2), 12, SamplingParams(), frozenset())
    [result] = engine.generate([request])
    events = result.events
    assert len(events) == 12 and {event.level for event in events} == {0, 1, 2}


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'int2'; known: int8, int4"):
        parse_quantization("int2")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"vita-mctp\[quant\]"):
        parse_quantization("int8")
