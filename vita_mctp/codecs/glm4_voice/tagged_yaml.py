"""Reads HyperPyYAML as plain data: a `!new:` of a class is the mapping of its arguments, and nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vita_mctp.errors import CheckpointError

_WRAPPER = "omegaconf.DictConfig"
"""A class that only wraps the mapping given as its argument `content`."""


@dataclass(frozen=True)
class _Reference:
    """`!ref <key>`: the value of a key of the outermost mapping."""

    key: str


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with HyperPyYAML's tags and the numbers of YAML 1.2 (1e-06 is a float, without a dot)."""


def read_tagged_yaml(path: Path) -> dict[str, Any]:
    """The file's outermost mapping, references replaced by what they name. JSON is read too.

    Raises:
        CheckpointError: the file is not YAML, not a mapping, or has a tag or a reference that is not understood.
    """
    try:
        # _Loader is a SafeLoader: it builds plain values and _Reference, nothing else
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(f"{path} is damaged or no such configuration ({problem}): download it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, wanted a mapping: download it again")
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
