"""How a step is computed. The plan says what, the scheduler says who, a runner says how."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from vita_mctp.arrays import Shapes
from vita_mctp.decoding.request import Request, SequenceState
from vita_mctp.errors import ConfigError
from vita_mctp.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from vita_mctp.models.registry import SpeechModel

Token = tuple[int, int]
"""A final token: its id and the level that made it."""


class Runner(Protocol):
    """Runs one model. Everything of one request lies in what `open` returns, so any number of them may be under way."""

    vocab_size: int
    max_positions: int
    num_blocks: int

    def open(self, request: Request) -> Any:
        """A fresh `SequenceState.memory`."""
        ...

    def reopen(self, memory: Any, request: Request, standing: int) -> Any | None:
        """An ended request's memory for one whose prompt begins with the same `standing` ids; None: it is of no use.

        It has room for no more positions than it was opened with.
        """
        ...

    def run(self, states: Sequence[SequenceState]) -> list[list[Token]]:
        """One step for every state: its new tokens in order, none while a long prompt is read, or a whole cycle.

        The states' cursors and memories move on; their ids are the caller's to extend, by all of the tokens or, where
        the answer ends among them, by some and never again.
        """
        ...


_ONNX_BYTES = 2 << 30
"""Weights beyond this stay with their model: ONNX Runtime and oneDNN hold them a second time, packed for products."""


def graph_runner(config: Mapping[str, Any], read: Callable[[Shapes], Mapping[str, FloatArray]]) -> Runner:
    """ONNX Runtime's, in float32 on the CPU. It is made without torch.

    config: config.json's values. read: gives the weights of these names and shapes.
    Raises ConfigError for what the graphs do not compute.
    """
    from vita_mctp.decoding.runners.cycles import CycleRunner
    from vita_mctp.decoding.runners.onnx import OnnxLevels, level_shape

    shapes = level_shape(config).weights
    if 4 * sum(map(prod, shapes.values())) > _ONNX_BYTES:
        raise ConfigError(f"its weights take more than {_ONNX_BYTES >> 30} GiB, too much to hold twice")
    return CycleRunner(OnnxLevels(config, read(shapes)))


def runner_for(model: SpeechModel) -> Runner:
    """The fastest runner of a model where it lies: on a CPU ONNX Runtime's for float32, oneDNN's for bfloat16."""
    import torch

    from vita_mctp.decoding.runners.eager import EagerRunner

    weights = dict(model.state_dict())
    cpu = torch.device("cpu")
    if all(type(w) is torch.Tensor and (w.dtype, w.device) == (torch.float32, cpu) for w in weights.values()):
        try:
            return graph_runner(model.config.to_dict(), lambda _: {name: w.numpy() for name, w in weights.items()})
        except ConfigError:  # another family, an architecture that the graphs do not have, or too large
            return EagerRunner(model)
    if _is_packable(weights.values()):
        from vita_mctp.decoding.runners.cycles import CycleRunner
        from vita_mctp.decoding.runners.packed import PackedLevels

        with suppress(ConfigError):
            return CycleRunner(PackedLevels(model.config.to_dict(), weights))
    return EagerRunner(model)


def _is_packable(weights: Collection[Tensor]) -> bool:
    """Whether this processor's oneDNN has products for these weights, and room for them a second time."""
    import torch

    bfloat16 = (torch.bfloat16, torch.device("cpu"))
    plain = all(type(w) is torch.Tensor and (w.dtype, w.device) == bfloat16 for w in weights)
    small = sum(weight.nbytes for weight in weights) <= _ONNX_BYTES
    return plain and small and torch.ops.mkldnn._is_mkldnn_bf16_supported()
