"""An int8 copy of the head spares most of it, and every greedy choice is the whole head's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.cycles import CycleRunner
from vita_mctp.decoding.runners.onnx import OnnxLevels
from vita_mctp.decoding.runners.screened import Screen, screened_choice, whole_scores
from vita_mctp.errors import AnswerError
from vita_mctp.onnx_graph import OnnxGraph
from vita_mctp.types import FloatArray, IntArray

HIDDEN = 40


def choices(head: FloatArray, rows: FloatArray, screen: Screen) -> tuple[IntArray, IntArray]:
    """Tokens of rows (R, H) by the screen, and by the whole head."""
    graph = OnnxGraph({"head": head})
    hidden = graph.input("hidden", TensorProto.FLOAT, [1, "R", HIDDEN])
    graph.input("head", TensorProto.FLOAT, list(head.shape))
    screened, _ = screened_choice(graph, screen, hidden, "head")
    whole = graph.node("ArgMax", [whole_scores(graph, hidden, "head")], axis=-1, keepdims=0)
    graph.give("screened", screened, [1, "R"], TensorProto.INT64)
    graph.give("whole", whole, [1, "R"], TensorProto.INT64)
    one, other = graph.compile().run(None, {"hidden": rows[None], "head": head})
    return one, other


def twins(head: FloatArray, random: np.random.Generator) -> None:
    head[random.permutation(len(head))] = head[random.permutation(len(head)) // 2]


def near_ties(head: FloatArray, random: np.random.Generator) -> None:
    head[:] = head[0] + random.normal(size=head.shape).astype(np.float32) * np.float32(1e-6)


def huge_rows(head: FloatArray, random: np.random.Generator) -> None:
    head[::50] *= np.float32(1e6)


def spikes(head: FloatArray, random: np.random.Generator) -> None:
    head[::3, 7] = 1e3


def empty_rows(head: FloatArray, random: np.random.Generator) -> None:
    head[1:] = 0


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 999),
    size=st.integers(4, 700),
    count=st.integers(1, 5),
    spoil=st.sampled_from([None, twins, near_ties, huge_rows, spikes, empty_rows]),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_the_choice_is_the_whole_heads(seed, size, count, spoil, scale):
    random = np.random.default_rng(seed)
    head = random.normal(size=(size, HIDDEN)).astype(np.float32)
    if spoil is not None:
        spoil(head, random)
    rows = (scale * random.normal(size=(count, HIDDEN))).astype(np.float32)
    one, other = choices(head, rows, Screen.of(head))
    assert one.tolist() == other.tolist()


def hidden_winner() -> tuple[FloatArray, FloatArray]:
    """A row that wins by what its int8 copy rounds to nothing, behind many whose copies look better."""
    head = np.zeros((600, HIDDEN), np.float32)
    head[:, 0] = np.linspace(0.1, 0.2, 600)
    head[599, :] = 0.5
    head[599, 1] = 200.0
    rows = np.ones((1, HIDDEN), np.float32)
    rows[0, 1] = 0
    return head, rows


def test_without_its_bounds_the_screen_loses_a_winner_that_int8_cannot_see():
    head, rows = hidden_winner()
    screen = Screen.of(head)
    one, other = choices(head, rows, screen)
    assert one.tolist() == other.tolist() == [[599]]
    blind, _ = choices(head, rows, replace(screen, residual=0.0, norm=0.0))
    assert blind.tolist() != [[599]]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_hidden_states_that_have_no_scale_get_the_whole_head(value):
    head = np.random.default_rng(0).normal(size=(300, HIDDEN)).astype(np.float32)
    one, other = choices(head, np.full((1, HIDDEN), value, np.float32), Screen.of(head))
    assert one.tolist() == other.tolist()


def test_a_clear_winner_needs_no_whole_head():
    """Most of the head is spared: a whole head that is wrong changes nothing."""
    head = np.random.default_rng(0).normal(size=(5000, HIDDEN)).astype(np.float32)
    row = head[[1234]]
    graph = OnnxGraph({})
    hidden = graph.input("hidden", TensorProto.FLOAT, [1, "R", HIDDEN])
    graph.input("head", TensorProto.FLOAT, list(head.shape))
    tokens, _ = screened_choice(graph, Screen.of(head), hidden, "head")
    graph.give("tokens", tokens, [1, "R"], TensorProto.INT64)
    candidates_alone = head.copy()
    candidates_alone[np.argsort(head @ row[0])[:-1000]] = 1e6
    assert graph.compile().run(None, {"hidden": row[None], "head": candidates_alone})[0].tolist() == [[1234]]


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_damaged_weights_are_seen_behind_a_screen(make_tiny_model, name):
    model = make_tiny_model(seed=5, num_blocks=2).float()
    weights = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
    weights[name].flat[3] = np.nan
    runner = CycleRunner(OnnxLevels(model.config.to_dict(), weights, screened=True))
    with pytest.raises(AnswerError):
        Engine(runner).generate([Request((7, 1, 30, 2), MODES["boost"], 5)])
