"""Typed, strict configuration: what a JSON or YAML file says becomes a frozen value, or one clear line.

A class that describes a file's contents is a `Schema`; its bounds stand on its fields, its contradictions in a
`model_validator`. Imported only by what reads such files, since pydantic takes a tenth of a second to load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vita_mctp.errors import CheckpointError, ConfigError, VitaError

Width = Annotated[int, Field(ge=1, le=1 << 20)]
"""Of a matrix, or entries of a table."""
Depth = Annotated[int, Field(ge=1, le=4096)]

LONGEST_SHOWN = 60
"""Characters of a wrong value that an error repeats."""


class Schema(BaseModel):
    """Frozen; unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: object, where: str, error: type[VitaError] = ConfigError) -> Self:
        """JSON-like values -> the typed value. Types are JSON's: "1" is no number, true no count, a list is a tuple.

        Raises `error`, which names `where`, the key, what came and what is wanted.
        """
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError) as wrong:
            raise error(f"{where}: no JSON values ({wrong}); wanted text, numbers, lists and objects") from None
        return cls.parse_json(text, where, error)

    @classmethod
    def parse_json(cls, text: str | bytes, where: str, error: type[VitaError] = ConfigError) -> Self:
        """A JSON document -> the typed value, as `parse`; of equal keys the last one counts."""
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as wrong:
            raise error(f"{where}: {_first(cls, wrong)}") from None

    @classmethod
    def read_json(cls, path: Path, error: type[VitaError] = CheckpointError) -> Self:
        """The JSON object in a file. Raises `error` when it cannot be read, or as `parse`."""
        return cls.parse(read_json(path, error), str(path), error)

    def to_json_values(self) -> dict[str, Any]:
        """What `parse` takes."""
        return self.model_dump(mode="json")


def read_json(path: Path, error: type[VitaError] = CheckpointError) -> Any:
    """The values of a JSON file. Raises `error` when it is missing, no UTF-8, no JSON or too deeply nested."""
    try:
        return json.loads(path.read_bytes())
    except OSError as wrong:
        raise error(f"cannot read {path}: {wrong.strerror}; wanted a JSON file there") from None
    except (ValueError, RecursionError) as wrong:
        raise error(f"{path} is damaged ({' '.join(str(wrong).split())}); wanted JSON: get or write it again") from None


def _first(kind: type[Schema], wrong: ValidationError) -> str:
    """The first of its problems in words, a mistyped key before what is then missing, and how many more there are."""
    problem, *others = sorted(wrong.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    key = _short(".".join(map(str, problem["loc"])) or "value")
    more = f" (and {len(others)} more)" if others else ""
    if problem["type"] == "value_error":  # our own words, of a validator
        return f"{key}: {problem['ctx']['error']}{more}" if problem["loc"] else f"{problem['ctx']['error']}{more}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_known_keys(kind, problem['loc'][:-1])}{more}"
    if problem["type"] == "missing":
        return f"missing key {key}{more}"
    return f"{key}: got {_short(repr(problem['input']))}; {problem['msg']}{more}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def _known_keys(kind: Any, path: tuple[int | str, ...]) -> str:
    """The keys of the object at `path` of a `kind`'s values; nothing where it may be of several kinds."""
    for key in path:
        if isinstance(key, str):
            field = getattr(kind, "model_fields", {}).get(key)
            kind = None if field is None else _schema_in(field.annotation)
    return "" if kind is None else f"; known: {', '.join(kind.model_fields)}"


def _schema_in(annotation: Any) -> type[Schema] | None:
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation
    return next(filter(None, map(_schema_in, get_args(annotation))), None)
