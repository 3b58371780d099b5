"""Levels in ONNX Runtime, float32 on the CPU, without torch.

What one request remembers lies in a `Slot`; a call takes the rows of any number of slots at once. Graphs are made when
they are first called for: one for each number of slots of `_BATCHES`, and for each run of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import finalize, ref

import numpy as np
import numpy.typing as npt
import onnxruntime

from vita_mctp.decoding.runners.cycles import Made, Read
from vita_mctp.decoding.runners.onnx_graphs import (
    HEAD,
    LevelShape,
    RoughWeights,
    cache_name,
    compile_backbone,
    compile_chain,
)
from vita_mctp.decoding.runners.screened import Screen
from vita_mctp.decoding.sampling import Scores
from vita_mctp.errors import ConfigError
from vita_mctp.types import FloatArray

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of slots that graphs are made for; a call fills up to the next one with rows that nobody reads."""

_KEPT_ROWS = 64
"""Calls of one request with up to so many rows keep their memory bound for the next call of that size."""

_SEGMENT = 6
"""Blocks of a graph: with fewer, verified drafts stop sooner; with more, less is called (measured on nano)."""


_SCREENED_FROM = 8 << 20
"""Bytes of a head from which greedy choices are made by `screened`; on a smaller one it costs more than it saves."""


_CAPACITY_STEP = 256
"""Positions: caches have room for a multiple of it, so that what one request leaves fits the next."""

_MOST_SPARE = 16
"""Requests whose caches stay for others: they are bound where they are called, and their memory is there."""


@dataclass(frozen=True, eq=False)
class Caches:
    """Keys and values (layers, 2, 1, heads, capacity, head size)."""

    array: FloatArray

    @property
    def capacity(self) -> int:
        return self.array.shape[4]


class Slot:
    """Caches of one request. With it they become spare, if few are."""

    def __init__(self, caches: Caches, spare: list[Caches]) -> None:
        self.caches = caches
        finalize(self, lambda: spare.append(caches) if len(spare) < _MOST_SPARE else None).atexit = False


class OnnxLevels:
    """Levels of a Qwen2 model with MCTP blocks.

    config: config.json's values. weights: arrays by the checkpoint's names; float32 ones are not copied.
    screened: whether greedy choices spare most of the head; None where that is faster.

    Raises:
        ConfigError: something that these graphs do not compute.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, npt.NDArray[Any]], screened: bool | None = None
    ) -> None:
        shape = self.shape = level_shape(config)
        self.weights = {name: np.asarray(array, np.float32) for name, array in weights.items()}
        self.vocab_size, self.max_positions, self.num_blocks = shape.vocab_size, shape.max_positions, shape.blocks
        self.segments = tuple(
            (first, min(first + _SEGMENT, shape.blocks)) for first in range(0, shape.blocks, _SEGMENT)
        )
        self._embeddings = self.weights["model.embed_tokens.weight"]
        self._head = self.weights[shape.head_name]
        screened = self._head.nbytes >= _SCREENED_FROM if screened is None else screened
        screened = screened and bool(np.isfinite(self._head).all())  # a damaged head shows in its logits
        self._screen = Screen.of(self._head) if screened else None
        self._rough: RoughWeights = {}
        self._calls: dict[tuple[int, int, int, bool, bool], _Call] = {}
        self._spare: list[Caches] = []
        self._filler = self.open(1)

    def open(self, capacity: int) -> Slot:
        """Caches for so many positions."""
        shape, spare = self.shape, self._spare
        for i, caches in enumerate(spare):
            if caches.capacity >= capacity:
                return Slot(spare.pop(i), spare)
        capacity = -(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP
        layers = shape.backbone_layers + shape.blocks
        dims = (layers, 2, 1, shape.kv_heads, capacity, shape.padded_head_size)
        return Slot(Caches(np.zeros(dims, np.float32)), spare)

    def backbone(self, reads: Sequence[Read]) -> list[Made]:
        if len(reads) > _BATCHES[-1]:
            return self.backbone(reads[: _BATCHES[-1]]) + self.backbone(reads[_BATCHES[-1] :])
        call, positions, reads = self._call(0, 0, reads)
        counts, judged = [len(read.ids) for read in reads], [read.judged for read in reads]
        ends, judged_ends = np.cumsum(counts), np.cumsum(judged)
        arrays = call.arrays(ends[-1], judged_ends[-1])
        np.take(self._embeddings, np.concatenate([read.ids for read in reads]), axis=0, out=arrays["embeds"][0])
        arrays["rows"][:] = np.concatenate([np.arange(end - j, end) for end, j in zip(ends, judged, strict=True)])
        call.run(reads)
        results = []
        for i in positions:
            chosen = slice(judged_ends[i] - judged[i], judged_ends[i])
            logits = arrays["logits"][0, chosen] if "logits" in arrays else None
            hidden = arrays["hidden"][0, ends[i] - counts[i] : ends[i]].copy()
            results.append(Made(hidden, arrays["tokens"][0, chosen].tolist(), logits))
        return results

    def chain(self, first: int, last: int, reads: Sequence[Read]) -> list[Made]:
        if len(reads) > _BATCHES[-1]:
            return self.chain(first, last, reads[: _BATCHES[-1]]) + self.chain(first, last, reads[_BATCHES[-1] :])
        call, positions, reads = self._call(first, last, reads)
        counts = [len(read.ids) for read in reads]
        ends = np.cumsum(counts)
        n, batch = ends[-1], len(reads)
        arrays = call.arrays(n, batch)
        np.concatenate([read.ids for read in reads], out=arrays["ids"][0])
        np.concatenate([read.hidden for read in reads], out=arrays["previous"][0])
        arrays["rows"][:] = ends - 1
        arrays["shift"][:] = np.arange(1, n + 1)
        arrays["shift"][ends - 1] = n + np.arange(batch)
        call.run(reads)
        results = []
        for i in positions:
            logits = arrays["logits"][0, i : i + 1] if "logits" in arrays else None
            rows = slice(ends[i] - counts[i], ends[i]) if last < self.num_blocks else slice(i, i + 1)
            drafts, probabilities = (arrays[name][:, i].tolist() for name in ("drafts", "probabilities"))
            results.append(Made(arrays["hidden"][0, rows].copy(), drafts, logits, probabilities))
        return results

    def scores(self, logits: FloatArray) -> Scores:
        return logits

    def concatenate(self, rows: list[FloatArray]) -> FloatArray:
        return np.concatenate(rows)

    def _call(self, first: int, last: int, reads: Sequence[Read]) -> tuple[_Call, list[int], list[Read]]:
        """The session for these reads, the position of each in it, and the reads of all positions."""
        batch = next(size for size in _BATCHES if size >= len(reads))
        rough = reads[0].rough
        screen = None if rough or any(read.scored for read in reads) else self._screen
        key = (first, last, batch, screen is not None, rough)
        call = self._calls.get(key)
        if call is None:
            if last:
                weights = self._rough if rough else None
                compiled = compile_chain(self.shape, self.weights, first, last, batch, screen, weights)
                layers = range(self.shape.backbone_layers + first, self.shape.backbone_layers + last)
            else:
                compiled = compile_backbone(self.shape, self.weights, batch, screen)
                layers = range(self.shape.backbone_layers)
            call = self._calls[key] = _Call(compiled, layers, batch)
            if screen is not None:
                call.bind(HEAD, self._head, True)
        positions = call.positions([read.slot.caches for read in reads])
        nobody = Read(
            self._filler, 0, np.zeros(1, np.int64), 0, hidden=np.zeros((1, self.shape.hidden_size), np.float32)
        )
        placed = [nobody] * batch
        for i, read in zip(positions, reads, strict=True):
            placed[i] = read
        return call, positions, placed


class _Call:
    """A session with the memory that its inputs and outputs lie in; bound anew only where that changes.

    Caches that are bound are not kept alive by it, and never run once they are gone.
    """

    def __init__(self, compiled: onnxruntime.InferenceSession, layers: range, batch: int) -> None:
        self._compiled, self._layers = compiled, layers
        self._binding = compiled.io_binding()
        self._ports = [(p.name, p.shape, p.type, True) for p in compiled.get_inputs()]
        self._ports += [(p.name, p.shape, p.type, False) for p in compiled.get_outputs()]
        self._ports = [port for port in self._ports if not port[0].startswith(("past_", "new_", HEAD))]
        self._slots: list[ref[Caches] | None] = [None] * batch
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._key = (0, 0)
        self._keep: dict[tuple[int, int], dict[str, npt.NDArray[Any]]] = {}

    def arrays(self, rows: int, chosen: int) -> dict[str, npt.NDArray[Any]]:
        if self._key == (rows, chosen):
            return self._arrays
        arrays = self._keep.get((rows, chosen))
        if arrays is None:
            sizes = {"N": rows, "R": chosen}
            arrays = {
                name: np.zeros([sizes.get(d, d) for d in dims], _DTYPES[kind]) for name, dims, kind, _ in self._ports
            }
            if len(self._slots) == 1 and rows <= _KEPT_ROWS:  # sizes of a batch hardly come twice
                self._keep[rows, chosen] = arrays
        for name, _, _, is_input in self._ports:
            self.bind(name, arrays[name], is_input)
        self._arrays, self._key = arrays, (rows, chosen)
        return arrays

    def positions(self, slots: Sequence[Caches]) -> list[int]:
        """Where each slot's caches go: where they are bound, else where none of them are."""
        bound = {reference(): i for i, reference in enumerate(self._slots) if reference is not None}
        taken = {bound[caches] for caches in slots if caches in bound}
        free = iter(i for i in range(len(self._slots)) if i not in taken)
        return [bound[caches] if caches in bound else next(free) for caches in slots]

    def run(self, reads: Sequence[Read]) -> None:
        """reads: of each position."""
        for i, (caches, bound) in enumerate(zip([read.slot.caches for read in reads], self._slots, strict=True)):
            if bound is None or bound() is not caches:
                self._slots[i] = ref(caches)
                for layer in self._layers:
                    for part, cache in zip("kv", caches.array[layer], strict=True):
                        self.bind(cache_name("past", part, layer, i), cache, True)
                        self.bind(cache_name("new", part, layer, i), cache, False)
        counts = [len(read.ids) for read in reads]
        self._arrays["ends"][:] = np.add([read.start for read in reads], counts)
        if len(reads) > 1:
            self._arrays["rows_of_slot"][:] = counts
        self._compiled.run_with_iobinding(self._binding)

    def bind(self, name: str, array: npt.NDArray[Any], is_input: bool) -> None:
        bind = self._binding.bind_input if is_input else self._binding.bind_output
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def level_shape(config: Mapping[str, Any]) -> LevelShape:
    """Sizes from a model's configuration.

    Raises:
        ConfigError: something that the graphs do not compute.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    for key, value, known in (
        ("model_type", config["model_type"], "qwen2_mtp"),
        ("hidden_act", config["hidden_act"], "silu"),
        ("rope_type", kind, "default"),
        ("use_sliding_window", config.get("use_sliding_window", False), False),
    ):
        if value != known:
            raise ConfigError(f"{key} is {value}; ONNX Runtime's graphs compute {known}: take the eager runner")
    blocks, heads, hidden = config["num_nextn_predict_layers"], config["num_attention_heads"], config["hidden_size"]
    if blocks >= config["num_hidden_layers"]:
        raise ConfigError(f"{config['num_hidden_layers']} layers hold {blocks} blocks; wanted a backbone layer more")
    return LevelShape(
        hidden_size=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or hidden // heads,
        intermediate_size=config["intermediate_size"],
        backbone_layers=config["num_hidden_layers"] - blocks,
        blocks=blocks,
        vocab_size=config["vocab_size"],
        tied=config["tie_word_embeddings"],
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        rms_eps=config["rms_norm_eps"],
        max_positions=config["max_position_embeddings"],
    )


_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
