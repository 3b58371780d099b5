"""Reads the files of a codec's folder as plain data: tensors, every one accounted for, and tagged YAML.

Nothing in them is ever run: pickles are read with `weights_only`, and a `!new:` of a class is the mapping of its
arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vita_mctp.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
CONVERTED = ".safetensors"
_Module = TypeVar("_Module", bound=nn.Module)

_WRAPPER = "omegaconf.DictConfig"
"""A class that only wraps the mapping given as its argument `content`."""


def without_memory(build: Callable[[], _Module]) -> _Module:
    """The network without its numbers, on the meta device."""
    with torch.device("meta"):
        return build()


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def read_tensors(path: Path, wanted: Shapes, remedy: str) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or of a pickled state dict, on the CPU, exactly those wanted.

    Raises:
        CheckpointError: the file is missing or cut short, or a tensor is missing, surplus or of another shape.
    """
    tensors = _read_safetensors(path, remedy) if path.suffix == CONVERTED else _read_pickle(path, remedy)
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, wanted, path, remedy)
    return tensors


def check_shapes(found: Shapes, wanted: Shapes, path: Path, remedy: str, optional: Shapes | None = None) -> None:
    """Raises CheckpointError, which names the first tensor that is missing, surplus or of another shape."""
    known = {**wanted, **(optional or {})}
    if missing := [name for name in wanted if name not in found]:
        raise CheckpointError(f"{path} lacks {_first(missing)}, which its configuration wants: {remedy}")
    if surplus := [name for name in found if name not in known]:
        raise CheckpointError(f"{path} holds {_first(surplus)}, which its configuration does not describe: {remedy}")
    for name, shape in found.items():
        if shape != known[name]:
            raise CheckpointError(f"{path}: {name} has shape {shape}; its configuration wants {known[name]}: {remedy}")


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _read_safetensors(path: Path, remedy: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; {remedy}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): {remedy}") from None
    return tensors


def _read_pickle(path: Path, remedy: str) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        fault = "cut short, damaged, or holds more than tensors"
        raise CheckpointError(f"{path} is {fault} ({type(error).__name__}): {remedy}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds something else than a mapping of names to tensors: {remedy}")
    return content


@dataclass(frozen=True)
class _Reference:
    """`!ref <key>`: the value of a key of the outermost mapping."""

    key: str


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with HyperPyYAML's tags and the numbers of YAML 1.2 (1e-06 is a float, without a dot)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for more values than memory holds
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name) came; write the value itself", mark)
        return super().compose_node(parent, index)


def read_tagged_yaml(path: Path) -> dict[str, Any]:
    """HyperPyYAML's outermost mapping, references replaced by what they name. JSON is read too.

    Raises:
        CheckpointError: the file is not YAML, not a mapping, or has a tag or a reference that is not understood.
    """
    try:
        # _Loader is a SafeLoader: it builds plain values and _Reference, nothing else
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; wanted a YAML file there") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(f"{path} is damaged or no such configuration ({problem}): download it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}; wanted a mapping: download it again")
    return {key: _resolve(value, values, path) for key, value in values.items()}


def _resolve(value: Any, root: Mapping[str, Any], path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, root, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, root, path) for item in value]
    if not isinstance(value, _Reference):
        return value
    target = root.get(value.key)
    if isinstance(target, _Reference | dict | list | None):
        raise CheckpointError(f"{path}: !ref <{value.key}> names no plain value of the file; write the value itself")
    return target


def _construct(loader: yaml.SafeLoader, class_name: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        values = loader.construct_mapping(node, deep=True)
        return values.get("content") if class_name == _WRAPPER else values
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


def _construct_reference(loader: yaml.SafeLoader, node: yaml.Node) -> _Reference:
    written = loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else ""
    match = re.fullmatch(r"<(\w+)>", str(written))
    if match is None:
        raise yaml.constructor.ConstructorError(
            None, None, f"!ref {written} is more than the name of one key", node.start_mark
        )
    return _Reference(match[1])


for _tag in ("!new:", "!name:", "!apply:"):
    _Loader.add_multi_constructor(_tag, _construct)
_Loader.add_constructor("!ref", _construct_reference)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)
