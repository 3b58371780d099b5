"""Units of VocalNet's data: dicts in npy, frames of codebooks, and files that would run something."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vita_mctp.data.units import UnitStore, read_units
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
    assert read_units(saved(tmp_path, content), 60).tolist() == units[0].tolist()
    assert read_units(saved(tmp_path, units[0]), 60).tolist() == units[0].tolist()
    frames = np.arange(6).reshape(3, 2)
    assert read_units(saved(tmp_path, frames), 60, codebooks=2).tolist() == frames.tolist()
    with pytest.raises(DataError, match=r"\(F, 2\)"):
        read_units(saved(tmp_path, frames.T), 60, codebooks=2)


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


def entry(folder: Path, **changes: object) -> UnitStore:
    """A list of one conversation, with some of its values changed."""
    soundfile.write(folder / "q.wav", np.sin(np.arange(8000) / 9) / 2, 16000)
    np.save(folder / "u.npy", np.array([3, 3, 5]))
    turns = [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "four"}]
    values = {"speech": "q.wav", "units": "u.npy", "conversations": turns, "id": "a"} | changes
    (folder / "list.json").write_text(json.dumps([values]))
    return UnitStore(folder / "list.json", 60, 1)


def test_a_list_is_read_as_a_store(tmp_path: Path) -> None:
    store = entry(tmp_path)
    assert len(store) == 1 and store[0].codes == ((), (3, 3, 5)) and store[0].positions == (5, 0)
    assert [message.content for message in store[0].sample.messages] == ["<|audio|>", "four<|audio|>"]
    assert store.features(0, 0).positions == 5
    assert entry(tmp_path, units=None)[0].codes == ((),)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"conversations": []}, "entry 0: conversations"),
        ({"conversations": [{"from": "me", "value": "x"}]}, "entry 0: conversations.0.from"),
        ({"speech": None}, "entry 0: wanted one <speech>"),
        ({"speech": "none.wav"}, "entry 0: cannot read .*none.wav"),
        ({"speech": "u.npy"}, "entry 0: .*wanted"),
        ({"units": "none.npy"}, "none.npy has no units"),
    ],
)
def test_what_is_no_entry(tmp_path: Path, changes: dict[str, object], fact: str) -> None:
    store = entry(tmp_path, **changes)
    with pytest.raises(DataError, match=fact):
        store[0]


@pytest.mark.parametrize(("text", "fact"), [("{}", "wanted a list"), ("[", "is damaged"), ("[]", "not empty")])
def test_what_is_no_list(tmp_path: Path, text: str, fact: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=fact):
        UnitStore(tmp_path / "list.json", 60, 1)
