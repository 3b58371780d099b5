"""A checkpoint hears and speaks as what it was trained from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vita_mctp.checkpoints.speech import SPEECH_FILE, copy_speech
from vita_mctp.errors import CheckpointError
from vita_mctp.nano.run import train


def speaking(folder: Path, decoder: Path) -> dict[str, Any]:
    """What makes a folder's model speak: a codec inside it, a decoder elsewhere, a question to check it by."""
    (folder / "codec").mkdir(parents=True)
    (folder / "codec" / "ramp.json").write_text('{"codebook_size": 9}')
    (folder / "question.wav").write_bytes(b"sound")
    decoder.mkdir(exist_ok=True)
    values = {
        "tokenizer_kind": "glm4voice",
        "audio_tokenizer": {"name": "ramp", "folder": "codec"},
        "audio_decoder": {"name": "ramp", "folder": f"../{decoder.name}"},
        "self_check": {"question": "question.wav", "answer": "one"},
    }
    (folder / SPEECH_FILE).write_text(json.dumps(values))
    return values


def test_the_codec_inside_comes_along_and_the_one_outside_is_named(tmp_path: Path) -> None:
    values = speaking(tmp_path / "parent", tmp_path / "decoder")
    (tmp_path / "far" / "child").mkdir(parents=True)
    copy_speech(tmp_path / "parent", tmp_path / "far" / "child")
    shutil.rmtree(tmp_path / "parent")
    child = tmp_path / "far" / "child"
    values["audio_decoder"]["folder"] = str(tmp_path / "decoder")
    assert json.loads((child / SPEECH_FILE).read_text()) == values
    assert (child / "codec" / "ramp.json").is_file() and (child / "question.wav").read_bytes() == b"sound"


def test_a_released_model_brings_nothing_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    child = tmp_path / "child"
    child.mkdir()
    copy_speech(tmp_path, child)
    assert [*child.iterdir()] == []
    speaking(tmp_path / "parent", tmp_path / "decoder")
    shutil.rmtree(tmp_path / "parent" / "codec")
    with pytest.raises(CheckpointError, match=r"speech\.json names codec, which .*parent has not"):
        copy_speech(tmp_path / "parent", child)
    values = json.loads((tmp_path / "parent" / SPEECH_FILE).read_text())
    values["self_check"]["question"] = "../decoder"  # would be written beside the child
    (tmp_path / "parent" / SPEECH_FILE).write_text(json.dumps(values))
    (tmp_path / "parent" / "codec").mkdir()
    with pytest.raises(CheckpointError, match="not inside"):
        copy_speech(tmp_path / "parent", child)
    for text in ("[]", "{", '{"audio_tokenizer": 1}'):
        (tmp_path / "parent" / SPEECH_FILE).write_text(text)
        with pytest.raises(CheckpointError, match=r"speech\.json"):
            copy_speech(tmp_path / "parent", child)


def test_a_resumed_run_speaks_although_its_parent_is_gone(
    write_recipe: Callable[..., Path], tiny_data: dict[str, Path], tmp_path: Path
) -> None:
    parent = train(write_recipe(1), **tiny_data, out=tmp_path)
    assert parent is not None
    speaking(parent, tmp_path / "decoder")
    changes = {"checkpoint_interval": 1}
    train(write_recipe(2, **changes, max_tokens=1024), **tiny_data, out=tmp_path)
    shutil.rmtree(tmp_path / "tiny2" / "final")
    shutil.rmtree(tmp_path / "tiny1")
    final = train(write_recipe(2, **changes), **tiny_data, out=tmp_path)
    assert final is not None and (final / "codec" / "ramp.json").is_file() and (final / SPEECH_FILE).is_file()
