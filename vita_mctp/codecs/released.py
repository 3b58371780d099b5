"""Reads the files of a codec's folder as plain data: tensors, every one accounted for, and tagged YAML.

Nothing in them is ever run: pickles are read with `weights_only`, and a `!new:` of a class is the mapping of its
arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vita_mctp.arrays import Shapes, check_shapes
from vita_mctp.errors import CheckpointError
from vita_mctp.yaml_file import PlainLoader, read_yaml

CONVERTED = ".safetensors"
_Built = TypeVar("_Built")

_DAMAGED = (SafetensorError, OSError, UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError)
_WRAPPER = "omegaconf.DictConfig"
"""A class that only wraps the mapping given as its argument `content`."""


def without_memory(build: Callable[[], _Built]) -> _Built:
    """Networks without their numbers, on the meta device."""
    with torch.device("meta"):
        return build()


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def load_tensors(path: Path, remedy: str, key: str | None = None) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or of a pickled state dict, on the CPU, mapped from it where it allows that.

    key: of a pickled mapping that holds the state dict. Raises CheckpointError: the file is missing, cut short, or
    holds something else.
    """
    try:
        tensors: Any = load_file(path) if path.suffix == CONVERTED else torch.load(path, "cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; {remedy}") from None
    except _DAMAGED as error:
        fault = "cut short, damaged, or holds more than tensors"
        raise CheckpointError(f"{path} is {fault} ({type(error).__name__}): {remedy}") from None
    if key is not None and isinstance(tensors, dict):
        tensors = tensors.get(key)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds something else than a mapping of names to tensors: {remedy}")
    return tensors


def read_tensors(path: Path, needed: Shapes, remedy: str) -> dict[str, Tensor]:
    """As `load_tensors`, exactly those needed. Also raises when one is missing, surplus or of another shape."""
    tensors = load_tensors(path, remedy)
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, needed, path, remedy)
    return tensors


class _TaggedLoader(PlainLoader):
    """HyperPyYAML's tags, of which only the data are taken; `root` is the outermost node."""

    takes_tags = True
    root: yaml.Node | None = None

    def get_single_node(self) -> yaml.Node | None:
        self.root = super().get_single_node()
        return self.root

    def data_of(self, class_name: str, node: yaml.Node) -> Any:
        """The arguments of a class or function that HyperPyYAML would call."""
        if isinstance(node, yaml.MappingNode):
            values = self.construct_mapping(node, deep=True)
            return values.get("content") if class_name == _WRAPPER else values
        return self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None

    def referred(self, node: yaml.Node) -> Any:
        """`!ref <key>`: the value of a key of the outermost mapping."""
        match = re.fullmatch(r"<(\w+)>", str(node.value))
        if match is None:
            raise _wrong(f"!ref {node.value} is more than the name of one key", node)
        keys = self.root.value if isinstance(self.root, yaml.MappingNode) else []
        target = next((value for key, value in keys if key.value == match[1]), None)
        if not isinstance(target, yaml.ScalarNode) or target.tag == "!ref":
            raise _wrong(f"!ref <{match[1]}> names no plain value of the file; write the value itself", node)
        return self.construct_object(target)


def _wrong(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


for _tag in ("!new:", "!name:", "!apply:"):
    _TaggedLoader.add_multi_constructor(_tag, _TaggedLoader.data_of)
_TaggedLoader.add_constructor("!ref", _TaggedLoader.referred)


def read_tagged_yaml(path: Path) -> dict[str, Any]:
    """HyperPyYAML's outermost mapping, references replaced by what they name. JSON is read too.

    Raises CheckpointError: not YAML, not a mapping, or with a tag or a reference that is not understood.
    """
    values = read_yaml(path, _TaggedLoader, CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}; wanted a mapping: download it again")
    return values
