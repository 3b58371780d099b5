"""A model's levels as ONNX graphs: the backbone with its head, and runs of chained MCTP blocks.

Blocks whose drafts decide nothing are rough: their products are int8's, of half the time.

A chain is one graph: look-up of its drafts, blocks, heads and the greedy choice, without a return to Python.
Caches are inputs and outputs bound to the same memory, so that nothing of them is copied. Several requests share a
graph: their rows lie behind one another, only attention is each one's own (GroupQueryAttention reads one filled cache).

Legend: B slots (requests), N rows of all slots, R rows whose next token is chosen, H hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto

from vita_mctp.decoding.runners.screened import Screen, screened_choice, whole_scores
from vita_mctp.onnx_graph import MICROSOFT, OnnxGraph
from vita_mctp.types import FloatArray

HEAD = "head"
"""The input that a screened head's rows are taken from."""

_HEAD_SIZE_STEP = 16  # GroupQueryAttention's rotary embedding wants a multiple of it
_OVERSHOOT = 64  # positions that a cycle may run beyond an answer's end
_LEVELS = 63  # of a rough weight: products of two with 8 bits fit the 16 in which some processors add them

RoughWeights = dict[str, tuple[npt.NDArray[np.int8], FloatArray]]
"""Integers (in, out) and scales (out,) of each weight; graphs fill it as they need them."""


@dataclass(frozen=True)
class LevelShape:
    """Sizes that the graphs are made for; `blocks` MCTP blocks lie behind `backbone_layers` decoder layers."""

    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    backbone_layers: int
    blocks: int
    vocab_size: int
    tied: bool
    rope_theta: float
    rms_eps: float
    max_positions: int

    @property
    def padded_head_size(self) -> int:
        return -(-self.head_size // _HEAD_SIZE_STEP) * _HEAD_SIZE_STEP

    @property
    def head_name(self) -> str:
        return "model.embed_tokens.weight" if self.tied else "lm_head.weight"

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights; a head that is tied to the embeddings has none of its own."""
        hidden, inner, keys = self.hidden_size, self.intermediate_size, self.kv_heads * self.head_size
        rows = {"q": self.heads * self.head_size, "k": keys, "v": keys}
        layer: dict[str, tuple[int, ...]] = {"self_attn.o_proj.weight": (hidden, rows["q"])}
        layer |= {f"self_attn.{part}_proj.weight": (rows[part], hidden) for part in rows}
        layer |= {f"self_attn.{part}_proj.bias": (rows[part],) for part in rows}
        layer |= {f"mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        layer |= {"mlp.down_proj.weight": (hidden, inner)}
        layer |= {f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        table = (self.vocab_size, hidden)
        weights = {"model.embed_tokens.weight": table, "model.norm.weight": (hidden,)}
        weights |= {} if self.tied else {"lm_head.weight": table}
        layers = range(self.backbone_layers + self.blocks)
        weights |= {f"model.layers.{i}.{name}": dims for i in layers for name, dims in layer.items()}
        for block in range(self.blocks):
            weights |= {f"mtp_{part}_norms.{block}.weight": (hidden,) for part in ("embed", "hidden")}
            weights[f"mtp_projs.{block}.weight"] = (hidden, 2 * hidden)
        return weights


class _Builder(OnnxGraph):
    """Layers of the model, by the names of their weights, for so many slots. rough: where products may be int8's."""

    def __init__(
        self,
        shape: LevelShape,
        weights: Mapping[str, FloatArray],
        slots: int,
        screen: Screen | None,
        rough: RoughWeights | None = None,
    ) -> None:
        super().__init__(weights)
        self.shape, self.slots, self.screen, self.rough = shape, slots, screen, rough

    def linear(self, x: str, name: str, weight: FloatArray, bias: FloatArray | None = None) -> str:
        if self.rough is None:
            return super().linear(x, name, weight, bias)
        if name not in self.rough:
            self.rough[name] = _quantized(weight)
        integers = self.constant(f"{name}.int8", self.rough[name][0])
        scales = self.constant(f"{name}.scales", self.rough[name][1])
        biases = [] if bias is None else ["", self.constant(f"{name}.bias", bias)]
        y: str = self.node("DynamicQuantizeMatMul", [x, integers, scales, *biases], domain=MICROSOFT)
        return y

    def rms_norm(self, x: str, name: str) -> str:
        eps = self.shape.rms_eps
        return self.node("SimplifiedLayerNormalization", [x, self.weight(name)], axis=-1, epsilon=eps, stash_type=1)

    def add_norm(self, x: str, y: str, name: str) -> tuple[str, str]:
        """RMS norm of x + y, and x + y; over many rows two nodes take half the time of ONNX Runtime's one for both."""
        total = self.node("Add", [x, y])
        return self.rms_norm(total, name), total

    def split_slots(self, x: str, axis: int) -> list[str]:
        return [x] if self.slots == 1 else self.node("Split", [x, "rows_of_slot"], self.slots, axis=axis)

    def shared_inputs(self) -> None:
        """Inputs that tell where the slots' rows lie, the rotary tables, and a head that is hardly ever read whole."""
        shape = self.shape
        if self.screen is not None:  # no constant, which the session would pack and so hold twice
            self.input(HEAD, TensorProto.FLOAT, [shape.vocab_size, shape.hidden_size])
        self.input("ends", TensorProto.INT32, [self.slots])  # keys of each slot after this run
        lasts = self.node("Sub", ["ends", self.constant("one", np.ones(1, np.int32))])
        if self.slots > 1:
            self.input("rows_of_slot", TensorProto.INT64, [self.slots])
            self.lasts = self.node("Split", [lasts], self.slots, num_outputs=self.slots)
            ends = self.node("Split", ["ends"], self.slots, num_outputs=self.slots)
        else:
            self.lasts, ends = [lasts], ["ends"]
        self.totals = [self.node("Squeeze", [end]) for end in ends]
        half, positions = shape.head_size // 2, shape.max_positions + _OVERSHOOT
        frequencies = shape.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
        angles = (np.arange(positions)[:, None] * frequencies).astype(np.float32)
        cos = np.ones((positions, shape.padded_head_size // 2), np.float32)
        sin = np.zeros_like(cos)
        cos[:, :half], sin[:, :half] = np.cos(angles), np.sin(angles)
        self.constant("cos", cos)
        self.constant("sin", sin)

    def attention(self, layer: int, x: str, chosen: str) -> str:
        """chosen: rows that are wanted, or all; each is read."""
        shape, prefix = self.shape, f"model.layers.{layer}.self_attn."
        parts = [("q", shape.heads, True), ("k", shape.kv_heads, True), ("v", shape.kv_heads, False)]
        read = self.weights
        weight = np.concatenate([self._pad(read[f"{prefix}{p}_proj.weight"], n, rotary) for p, n, rotary in parts])
        bias = np.concatenate([self._pad(read[f"{prefix}{p}_proj.bias"], n, rotary) for p, n, rotary in parts])
        qkv = self.split_slots(self.linear(x, f"{prefix}qkv", weight, bias), axis=1)
        attended = []
        for slot in range(self.slots):
            dims: list[int | str] = [1, shape.kv_heads, f"capacity_{slot}", shape.padded_head_size]
            past = [self.input(cache_name("past", t, layer, slot), TensorProto.FLOAT, dims) for t in "kv"]
            new = [cache_name("new", t, layer, slot) for t in "kv"]
            for name in new:
                self.output(name, TensorProto.FLOAT, dims)
            out, *_ = self.node(
                "GroupQueryAttention",
                [qkv[slot], "", "", *past, self.lasts[slot], self.totals[slot], "cos", "sin"],
                [f"attended_{layer}_{slot}", *new],
                MICROSOFT,
                num_heads=shape.heads,
                kv_num_heads=shape.kv_heads,
                do_rotary=1,
                scale=float(shape.head_size**-0.5),
            )
            attended.append(out)
        rows = attended[0] if self.slots == 1 else self.node("Concat", attended, axis=1)
        if chosen:
            rows = self.node("Gather", [rows, chosen], axis=1)
        out_weight = self._pad(np.ascontiguousarray(read[f"{prefix}o_proj.weight"].T), shape.heads, rotary=False).T
        return self.linear(rows, f"{prefix}out", out_weight)

    def _pad(self, x: FloatArray, heads: int, rotary: bool) -> FloatArray:
        """Rows (heads * head_size, ...) with zeros behind each head, or behind each rotary half of a head."""
        pieces, size = (2, self.shape.padded_head_size // 2) if rotary else (1, self.shape.padded_head_size)
        x = x.reshape(heads, pieces, -1, *x.shape[1:])
        padded = np.zeros((heads, pieces, size, *x.shape[3:]), np.float32)
        padded[:, :, : x.shape[2]] = x
        return padded.reshape(-1, *x.shape[3:])

    def mlp(self, layer: int, x: str) -> str:
        prefix = f"model.layers.{layer}.mlp."
        gate, up = (
            self.linear(x, f"{prefix}{part}", self.weights[f"{prefix}{part}_proj.weight"]) for part in ("gate", "up")
        )
        active = self.node("Mul", [self.node("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0), up])
        return self.linear(active, f"{prefix}down", self.weights[f"{prefix}down_proj.weight"])

    def layers(self, first: int, last: int, x: str, rows: str = "") -> str:
        """Decoder layers first..last-1 and the final norm. rows: of x (1, N, H), those that are wanted of the last."""
        normed = self.rms_norm(x, f"model.layers.{first}.input_layernorm.weight")
        for layer in range(first, last):
            prefix = f"model.layers.{layer}."
            attended = self.attention(layer, normed, rows if layer == last - 1 else "")
            if rows and layer == last - 1:
                x = self.node("Gather", [x, rows], axis=1)
            normed, x = self.add_norm(x, attended, f"{prefix}post_attention_layernorm.weight")
            behind = "model.norm.weight" if layer == last - 1 else f"model.layers.{layer + 1}.input_layernorm.weight"
            normed, x = self.add_norm(x, self.mlp(layer, normed), behind)
        return normed

    def head(self, hidden: str, rows: str, logits: str = "") -> tuple[str, str]:
        """Greedy tokens (1, R) of some rows, or all, of hidden (1, N, H), and scores (1, R, V).

        They are the logits, an output of that name if it is given; behind a screen they are near them, and no output.
        """
        chosen = self.node("Gather", [hidden, rows], axis=1) if rows else hidden
        if self.screen is not None:
            return screened_choice(self, self.screen, chosen, HEAD)
        name, dims = self.shape.head_name, (1, "R", self.shape.vocab_size)
        if self.rough is not None:
            scores = self.linear(chosen, name, self.weights[name])
            if logits:
                self.give(logits, scores, dims)
        else:
            scores = whole_scores(self, chosen, self.weight(name), logits)
            if logits:
                self.output(logits, TensorProto.FLOAT, dims)
        return self.node("ArgMax", [scores], axis=-1, keepdims=0), scores


def _quantized(weight: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """weight (out, in), a scale for each row."""
    scales = np.abs(weight).max(1) / np.float32(_LEVELS)
    scales[~(scales > 0)] = 1
    with np.errstate(invalid="ignore"):  # damaged blocks draft what they like
        return np.ascontiguousarray(np.rint(weight / scales[:, None]).astype(np.int8).T), scales


def cache_name(direction: str, part: str, layer: int, slot: int) -> str:
    """The name of a cache's input ("past") or output ("new"); part is k or v."""
    return f"{direction}_{part}_{layer}_{slot}"


def compile_backbone(
    shape: LevelShape, weights: Mapping[str, FloatArray], slots: int, screen: Screen | None
) -> onnxruntime.InferenceSession:
    """embeds (1, N, H), rows (R,) -> hidden (1, N, H), tokens (1, R) and, without a screen, logits (1, R, V)."""
    graph = _Builder(shape, weights, slots, screen)
    embeds = graph.input("embeds", TensorProto.FLOAT, [1, "N", shape.hidden_size])
    graph.input("rows", TensorProto.INT64, ["R"])
    graph.shared_inputs()
    hidden = graph.layers(0, shape.backbone_layers, embeds)
    tokens, _ = graph.head(hidden, "rows", "logits")
    graph.give("hidden", hidden, [1, "N", shape.hidden_size])
    graph.give("tokens", tokens, [1, "R"], TensorProto.INT64)
    return graph.compile()


def compile_chain(
    shape: LevelShape,
    weights: Mapping[str, FloatArray],
    first: int,
    last: int,
    slots: int,
    screen: Screen | None,
    rough: RoughWeights | None,
) -> onnxruntime.InferenceSession:
    """Blocks first..last-1, each fed what the one before drafted.

    previous (1, N, H), rows of the level before; ids (1, N), each row's token; rows (B,), each slot's last row;
    shift (N,), for each row the next row's index, N + slot for a slot's last -> hidden (1, N, H) of the last block,
    of the model's deepest one (1, B, H), of the slots' last rows;
    drafts and probabilities (last - first, B); without a screen, logits (1, B, V) of the last block.
    """
    graph = _Builder(shape, weights, slots, screen, rough)
    hidden = graph.input("previous", TensorProto.FLOAT, [1, "N", shape.hidden_size])
    ids = graph.input("ids", TensorProto.INT64, [1, "N"])
    graph.input("rows", TensorProto.INT64, ["R"])
    graph.input("shift", TensorProto.INT64, ["N"])
    graph.shared_inputs()
    table = graph.weight("model.embed_tokens.weight")
    drafts, probabilities = [], []
    for block in range(first, last):
        embeds = graph.node("Gather", [table, ids])
        embeds = graph.rms_norm(embeds, f"mtp_embed_norms.{block}.weight")
        hidden = graph.rms_norm(hidden, f"mtp_hidden_norms.{block}.weight")
        both = graph.node("Concat", [embeds, hidden], axis=-1)
        x = graph.linear(both, f"mtp_projs.{block}", weights[f"mtp_projs.{block}.weight"])
        layer = shape.backbone_layers + block
        deepest = block == shape.blocks - 1  # nobody reads its rows but the head
        hidden = graph.layers(layer, layer + 1, x, "rows" if deepest else "")
        tokens, scores = graph.head(hidden, "" if deepest else "rows", "logits" if block == last - 1 else "")
        drafts.append(tokens)
        probabilities.append(
            graph.node(
                "ReduceMax",
                [graph.node("Softmax", [scores], axis=-1), graph.constant("axis", np.array([-1]))],
                keepdims=0,
            )
        )
        if block < last - 1:
            ids = graph.node("Gather", [graph.node("Concat", [ids, tokens], axis=1), "shift"], axis=1)
    for name, values, kind in (
        ("drafts", drafts, TensorProto.INT64),
        ("probabilities", probabilities, TensorProto.FLOAT),
    ):
        graph.node("Concat", values, [name], axis=0)
        graph.output(name, kind, [last - first, slots])
    graph.give("hidden", hidden, [1, "R" if last == shape.blocks else "N", shape.hidden_size])
    return graph.compile()
