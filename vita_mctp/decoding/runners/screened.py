"""The head's greedy choice at a quarter of its bytes: an int8 copy says which rows can win, float32 which does.

Row i of the head is w_i = scale_i (q_i + r_i) with integers q_i; the hidden state is h = step a + d with integers a. So
the logit w_i h lies within scale_i (|r_i| |h| + |q_i| |d|) of scale_i step q_i a, by Cauchy and Schwarz. The rows whose
upper bounds are largest are computed again in float32. The best of them is the whole head's choice if it beats, by more
than float32 can round, all others of them and the upper bound of the rest. Where it does not, ties included, the whole
head is computed.

Sums of int8 products are exact: a has seven bits, so that pairs fit the 16 bits in which some processors add them.

Legend: R rows of hidden states, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from vita_mctp.onnx_graph import MICROSOFT, OnnxGraph
from vita_mctp.types import FloatArray

_CANDIDATES = 128
_STEPS = 63  # of a hidden state's largest value
_ZERO = 64  # an unsigned byte that stands for 0
_CHUNK = 4096  # head rows that are measured at once


@dataclass(frozen=True, eq=False)
class Screen:
    """An int8 copy of a head (V, H). residual, norm: the largest |r_i| and |q_i|."""

    integers: npt.NDArray[np.int8]  # (H, V)
    scales: FloatArray  # (V,)
    residual: float
    norm: float

    @classmethod
    def of(cls, head: FloatArray) -> Screen:
        scales = np.abs(head).max(1) / np.float32(127)
        scales[scales == 0] = 1
        integers = np.empty(head.shape, np.int8)
        residual = norm = 0.0
        for start in range(0, len(head), _CHUNK):
            rows = slice(start, start + _CHUNK)
            exact = head[rows] / scales[rows, None].astype(np.float64)
            integers[rows] = rounded = np.rint(exact)
            residual = max(residual, np.linalg.norm(exact - rounded, axis=1).max())
            norm = max(norm, np.linalg.norm(rounded, axis=1).max())
        return cls(np.ascontiguousarray(integers.T), scales, float(residual), float(norm))


def screened_choice(graph: OnnxGraph, screen: Screen, hidden: str, head: str) -> tuple[str, str]:
    """Greedy tokens (1, R) of hidden (1, R, H), those of head (V, H), and scores (1, R, V) about the logits."""

    def number(name: str, *values: float) -> str:
        return graph.constant(f"screen.{name}", np.array(values, np.float32))

    scales = graph.constant("screen.scales", screen.scales)
    zero, unit = (
        graph.constant("screen.zero", np.array(_ZERO, np.uint8)),
        graph.constant("screen.unit", np.array(1, np.float32)),
    )
    last = graph.constant("screen.last", np.array([-1]))

    # scores, and upper bounds of what any float32 product could make of the logits
    largest = graph.node("ReduceMax", [graph.node("Abs", [hidden]), last])
    step = graph.node("Mul", [largest, number("step", 1 / _STEPS)])
    bytes_ = graph.node("QuantizeLinear", [graph.node("Div", [hidden, step]), unit, zero])
    integers = graph.constant("screen.integers", screen.integers)
    products = graph.node("Cast", [graph.node("MatMulInteger", [bytes_, integers, zero])], to=TensorProto.FLOAT)
    scores = graph.node("Mul", [graph.node("Mul", [products, step]), scales])
    seen = graph.node("Mul", [graph.node("DequantizeLinear", [bytes_, unit, zero]), step])
    length = graph.node("ReduceL2", [hidden, last])
    lost = graph.node("ReduceL2", [graph.node("Sub", [hidden, seen]), last])
    size = len(screen.integers)
    rounding = (size + 32) * 2.0**-23 * (screen.norm + screen.residual)  # twice the worst of a sum of `size` products
    by_length = graph.node("Mul", [length, number("by_length", screen.residual + rounding)])
    by_lost = graph.node("Mul", [lost, number("by_lost", screen.norm * 1.001)])
    bound = graph.node("Add", [by_length, by_lost])
    upper = graph.node("Add", [scores, graph.node("Mul", [bound, scales])])

    # the candidates in float32
    count = min(_CANDIDATES, len(screen.scales) // 2)
    uppers, ids = graph.node("TopK", [upper, graph.constant("screen.count", np.array([count]))], 2)
    rows = graph.node("Gather", [head, ids])
    exact = graph.node("MatMul", [rows, graph.node("Unsqueeze", [hidden, last])])
    exact = graph.node("Squeeze", [exact, last])
    error = graph.node("Mul", [length, number("rounding", rounding)])
    error = graph.node("Mul", [error, graph.node("Gather", [scales, ids])])
    best = graph.node("ReduceMax", [graph.node("Sub", [exact, error]), last])

    # rivals of each row's best: itself, and any value that does not lie below; a NaN does not
    rest = graph.node("Gather", [uppers, last], axis=-1)
    values = graph.node("Concat", [graph.node("Add", [exact, error]), rest], axis=-1)
    rivals = graph.node("Not", [graph.node("Less", [values, best])])
    rivals = graph.node("ReduceSum", [graph.node("Cast", [rivals], to=TensorProto.FLOAT), last])
    sure = graph.node("Less", [graph.node("ReduceMax", [rivals], keepdims=0), number("one_rival", 1.5)])

    chosen = graph.node("ArgMax", [exact], axis=-1)
    chosen = graph.node("Squeeze", [graph.node("GatherElements", [ids, chosen], axis=-1), last])
    tokens = graph.choose(
        graph.node("Squeeze", [sure]),
        lambda: graph.node("Identity", [chosen]),
        lambda: graph.node("ArgMax", [whole_scores(graph, hidden, head)], axis=-1, keepdims=0),
        TensorProto.INT64,
    )
    return tokens, scores


def whole_scores(graph: OnnxGraph, hidden: str, head: str, name: str = "") -> str:
    """Logits (1, R, V) of hidden (1, R, H) by all rows of head (V, H)."""
    scores: str = graph.node("FusedMatMul", [hidden, head], [name] if name else 1, MICROSOFT, transB=1)
    return scores
