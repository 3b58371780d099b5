"""Typed, strict configuration: a mapping, as JSON or YAML give it, becomes a frozen dataclass or an error."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vita_mctp.errors import ConfigError
from vita_mctp.schema import Schema


def build_strict(cls: type[Any], values: object, where: str) -> Any:
    """A mapping -> the dataclass `cls`, nested ones too. Raises ConfigError on unknown, missing or ill-typed keys."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: wanted a mapping with the keys {[f.name for f in fields(cls)]}, got {values!r}")
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(str(key) for key in values if key not in known):
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(known)}")
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where}: missing key {', '.join(missing)}")
    hints = get_type_hints(cls)
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(next(o for o in options if o is not type(None)), value, where)
    if is_dataclass(hint):
        return build_strict(hint, value, where)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, Schema):
        return hint.parse(value, where)
    if origin is Literal:
        if not any(type(option) is type(value) and option == value for option in options):
            raise ConfigError(f"{where}: got {value!r}, wanted one of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        return _convert_tuple(options, value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _positive(float(value), where)
    if type(value) is hint:
        return _positive(value, where)
    raise ConfigError(f"{where}: got {value!r}, wanted {hint.__name__}")


def _convert_tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    open_ended = options[-1] is Ellipsis
    if not isinstance(value, list) or (not open_ended and len(value) != len(options)):
        raise ConfigError(f"{where}: got {value!r}, wanted a list of {'any' if open_ended else len(options)} values")
    return tuple(_convert(options[0], item, where) for item in value)


def _positive(value: Any, where: str) -> Any:
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise ConfigError(f"{where}: got {value}, wanted a finite value of at least 0")
    return value
