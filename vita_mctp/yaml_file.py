"""YAML as configuration is written in it: no duplicate keys, aliases or tags, and `1e-3` is a number.

PyYAML follows YAML 1.1, which takes `1e-3` for a text, and lets a second key win in silence. An alias can make a file
of a kilobyte unfold into gigabytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vita_mctp.errors import ConfigError, VitaError

_FLOAT = re.compile(r"[-+]?(?:\.\d[\d_]*|\d[\d_]*(?:\.[\d_]*)?)[eE][-+]?\d+")
"""The floats with an exponent that YAML 1.2 knows and YAML 1.1 does not."""


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, without what this file's docstring complains of."""

    takes_tags = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _wrong(f"alias *{event.anchor}: write the value out", event)
        if event.tag is not None and not self.takes_tags:
            raise _wrong(f"tag {event.tag}: take it out", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _wrong(f"key {key!r}: wanted a text", key_node)
            if key in keys:
                raise _wrong(f"key {key} occurs twice", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep)


PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _wrong(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """at: the event or node that begins where the problem is."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_yaml(path: Path, loader: type[PlainLoader] = PlainLoader, error_type: type[VitaError] = ConfigError) -> Any:
    """The values of a YAML file. Raises `error_type` when it is missing or is not YAML."""
    try:
        return parse_yaml(path.read_bytes(), str(path), loader, error_type)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise error_type(f"cannot read {path}: {reason}; wanted a YAML file there") from None


def parse_yaml(
    text: str | bytes,
    where: str,
    loader: type[PlainLoader] = PlainLoader,
    error_type: type[VitaError] = ConfigError,
) -> Any:
    """The values of a YAML document. Raises `error_type` beginning with `where`."""
    try:
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: such as a date of month 13
        raise error_type(f"{where}: not YAML ({' '.join(str(error).split())}); mend it") from None
