"""ONNX graphs made in memory from numpy weights, and the sessions that run them on a CPU, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from vita_mctp.types import FloatArray

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_EXTERNAL_FROM = 1024  # bytes; smaller weights lie in the graph itself


class OnnxGraph:
    """Nodes, inputs, outputs and constants of one graph under construction. Values go by their names."""

    def __init__(self, weights: Mapping[str, FloatArray]) -> None:
        self.weights = weights
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._made = 0

    def node(
        self, op: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, domain: str = "", **attrs: Any
    ) -> Any:
        """The name of its only output, or the list of them; outputs: how many, or their names."""
        names = [self.fresh(op, i) for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attrs))
        self._made += 1
        return names[0] if len(names) == 1 else names

    def fresh(self, what: str, i: int = 0) -> str:
        """A name for an output of the next node."""
        return f"{what}_{self._made}_{i}"

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str], kind: int) -> str:
        """What `then` makes where the condition, a single bool, holds, else what `otherwise` does; one of them runs."""
        branches = {}
        for name, make in (("then_branch", then), ("else_branch", otherwise)):
            outside, self._nodes = self._nodes, []
            output = helper.make_tensor_value_info(make(), kind, None)
            branches[name] = helper.make_graph(self._nodes, name, [], [output])
            self._nodes = outside
        value: str = self.node("If", [condition], **branches)
        return value

    def input(self, name: str, kind: int, dims: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, dims))
        return name

    def output(self, name: str, kind: int, dims: Sequence[int | str]) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, kind, dims))

    def give(self, name: str, value: str, dims: Sequence[int | str], kind: int = TensorProto.FLOAT) -> None:
        """Makes a value an output under this name."""
        self.node("Identity", [value], [name])
        self.output(name, kind, dims)

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self._constants.setdefault(name, np.ascontiguousarray(array))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def linear(self, x: str, name: str, weight: FloatArray, bias: FloatArray | None = None) -> str:
        """x @ weight.T + bias, weight (out, in), which is packed as it lies, without a transposed copy."""
        y = self.node("FusedMatMul", [x, self.constant(name, weight)], domain=MICROSOFT, transB=1)
        return y if bias is None else self.node("Add", [y, self.constant(f"{name}.bias", bias)])

    def compile(self) -> onnxruntime.InferenceSession:
        """A session of one thread. Weights stay where they are; the session packs them for its products."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Arenas and plans of memory grow with each new shape of an input, and give nothing back.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        tensors, names, values = [], [], []
        for name, array in self._constants.items():
            if array.nbytes < _EXTERNAL_FROM:
                tensors.append(onnx.numpy_helper.from_array(array, name))
                continue
            tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
            tensors.append(tensor)
            names.append(name)
            values.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        options.add_external_initializers(names, values)
        graph = helper.make_graph(self._nodes, "graph", self._inputs, self._outputs, tensors)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
