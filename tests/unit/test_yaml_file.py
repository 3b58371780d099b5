"""YAML as configuration is written in it: values, or one ConfigError, and never anything else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vita_mctp.errors import ConfigError
from vita_mctp.yaml_file import parse_yaml, read_yaml

PIECES = [*"ab,[]{}?|>'\"1~#\t\n\0", ": ", "- ", "  ", "&x ", "*x", "!!int ", "!!timestamp ", "!!set ", "<<", "1e3"]
PIECES += ["2001-99-99", "%YAML 9.9\n", "---\n", "...\n"]


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@example(text="!!timestamp x")
@example(text="!!bool x")
@example(text="[" * 5000)
@example(text="9" * 5000)
def test_any_text_gives_values_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "here")
    except ConfigError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)


@given(data=st.binary(max_size=60))
def test_any_bytes_give_values_or_one_line(data: bytes) -> None:
    try:
        parse_yaml(data, "here")
    except ConfigError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)


@given(st.floats(1e-12, 1e12))
def test_a_number_with_an_exponent_is_a_number(value: float) -> None:
    written = f"{value:.0e}"
    assert parse_yaml(f"a: {written}", "here") == {"a": float(written)}
    assert parse_yaml(f"[{written}, {written.upper()}, .{written}]", "here")[:2] == [float(written)] * 2


@pytest.mark.parametrize("text", ["a: 1\na: 2", "b: {a: 1, a: 1}", "- {a: 1, 'a': 2}"])
def test_a_key_that_occurs_twice_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a occurs twice"):
        parse_yaml(text, "here")


def test_a_file_that_unfolds_into_gigabytes_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="alias"):
        parse_yaml("\n".join(lines), "here")
    assert time.monotonic() - begun < 5


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(ConfigError, match="cannot read"):
            read_yaml(path)
