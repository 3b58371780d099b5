"""Units of VocalNet's data: dicts in npy, repeats left out, and files that would run something."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vita_mctp.data.units import read_units
from vita_mctp.errors import DataError


class Evil:
    """Read as a pickle is read, it makes the folder `made` in the working one."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made",)


def saved(folder: Path, value: object) -> Path:
    np.save(folder / "units.npy", value, allow_pickle=True)
    return folder / "units.npy"


def test_a_dict_and_a_plain_array(tmp_path: Path) -> None:
    units = np.array([[3, 3, 5, 3, 3, 9]], np.int32)
    content = {"speech_token": units, "speech_token_len": np.array([6], np.int32)}
    assert read_units(saved(tmp_path, content), 60).tolist() == [3, 5, 3, 9]
    assert read_units(saved(tmp_path, units[0]), 60).tolist() == [3, 5, 3, 9]


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        ({"speech_token": Evil()}, "mkdir"),
        ({"text": np.arange(3)}, "speech_token"),
        ({"speech_token": np.arange(3.0)}, "float64"),
        ({"speech_token": np.array([[60]])}, r"\[0, 60\)"),
        ({"speech_token": np.zeros((1, 0), np.int64)}, "speech_token"),
    ],
)
def test_what_is_no_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, fact: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=fact):
        read_units(saved(tmp_path, value), 60)
    assert not Path("made").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "cut.npy").write_bytes(saved(tmp_path, {"speech_token": np.arange(5)}).read_bytes()[:-9])
    for name in ("cut.npy", "none.npy"):
        with pytest.raises(DataError, match=name):
            read_units(tmp_path / name, 60)
