"""Typed, strict configuration: what a JSON or YAML file says becomes a frozen value, or one clear line.

A class that describes a file's contents is a `Schema`; its bounds stand on its fields, its contradictions in a
`model_validator`. Imported only by what reads such files, since pydantic takes a tenth of a second to load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from vita_mctp.errors import CheckpointError, ConfigError, VitaError

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
            return cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as wrong:
            raise error(f"{where}: {_first(wrong)}") from None
        except (TypeError, ValueError, RecursionError) as wrong:
            raise error(f"{where}: no JSON values ({wrong}); wanted text, numbers, lists and objects") from None

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


def _first(wrong: ValidationError) -> str:
    """The first of its problems in words, and how many more there are."""
    problem, *others = wrong.errors(include_url=False)
    key = ".".join(map(str, problem["loc"])) or "value"
    more = f" (and {len(others)} more)" if others else ""
    if problem["type"] == "value_error":  # our own words, of a validator
        return f"{key}: {problem['ctx']['error']}{more}" if problem["loc"] else f"{problem['ctx']['error']}{more}"
    came = repr(problem["input"])
    came = came if len(came) <= LONGEST_SHOWN else came[:LONGEST_SHOWN] + "..."
    words = {"extra_forbidden": f"unknown key {key}", "missing": f"missing key {key}"}
    return words.get(problem["type"], f"{key}: got {came}; {problem['msg']}") + more
