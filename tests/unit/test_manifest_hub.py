"""Sets in the hub's layout become manifests that are read back."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vita_mctp.data import hub
from vita_mctp.data.hub import HUB_SETS, HubPart, HubSet, fetch, find_hub_set
from vita_mctp.data.manifest import Form, ManifestCheck, Recording, read_manifest
from vita_mctp.errors import ConfigError, DataError, MissingExtraError

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


def flac(number: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(8000) / (5 + number)), 16000, format="FLAC")
    return file.getvalue()


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """A repository of parquet files with 5 recordings; the third has no text."""
    rows = {
        "audio": [{"bytes": flac(n), "path": f"{n}.flac"} for n in range(5)],
        "text": ["" if n == 2 else f"number {n}" for n in range(5)],
        "json": [{"text": f"json {n}"} for n in range(5)],
    }
    features = datasets.Features(
        audio=datasets.Audio(), text=datasets.Value("string"), json={"text": datasets.Value("string")}
    )
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pydict(rows, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder.parent


def test_a_spoken_set_becomes_a_sound_manifest_with_its_audio(tmp_path: Path, spoken: Path) -> None:
    part = HubPart(str(spoken), None, "train")
    asr = HubSet(Form.ASR, (part, part), "audio", answer="text")
    fetched = fetch(asr, tmp_path / "asr")
    assert (fetched.samples, fetched.skipped) == (8, 2)
    samples = list(read_manifest(fetched.manifest))
    assert [sample.messages[1].content for sample in samples] == [f"number {n}" for n in (0, 1, 3, 4)] * 2
    assert all(sample.form is Form.ASR for sample in samples)
    first = samples[0].audios[0]
    assert isinstance(first, Recording) and first.path.read_bytes() == flac(0) and first.path.suffix == ".flac"
    problems: list[str] = []
    ManifestCheck(problems.append).read(fetched.manifest)
    assert problems == []
    tts = fetch(HubSet(Form.TTS, (part,), "audio", answer="json.text"), tmp_path / "tts", limit=3)
    assert [s.messages[0].content.splitlines()[1] for s in read_manifest(tts.manifest)] == [
        "json 0",
        "json 1",
        "json 2",
    ]
    assert {sample.form for sample in read_manifest(tts.manifest)} == {Form.TTS}


def test_written_sets_of_both_shapes(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    turns = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]
    rows = [
        {"conversations": turns, "context": "", "instruction": "add", "response": "3"},
        {"conversations": turns[:1], "context": "1 2", "instruction": "add", "response": ""},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = (HubPart(str(folder), None, "train"),)
    chat = fetch(replace(HUB_SETS["openhermes"], parts=part), tmp_path / "chat")
    assert (chat.samples, chat.skipped) == (1, 1)
    assert [message.content for message in next(read_manifest(chat.manifest)).messages] == ["one", "two"]
    dolly = fetch(replace(HUB_SETS["dolly_15k"], parts=part), tmp_path / "dolly")
    assert next(read_manifest(dolly.manifest)).messages[0].content == "add" and dolly.skipped == 1


def test_other_columns_and_places_are_errors(tmp_path: Path, spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = HubSet(Form.ASR, (HubPart(str(spoken), None, "train"),), "audio", answer="transcript")
    with pytest.raises(DataError, match=r"lacks the columns \['transcript'\]; it has \['audio', 'json', 'text'\]"):
        fetch(wrong, tmp_path / "out")
    for part in (HubPart(str(tmp_path / "none"), None, "train"), HubPart(str(spoken), None, "nights")):
        with pytest.raises(DataError, match="cannot stream"):
            fetch(replace(wrong, parts=(part,)), tmp_path / "out")
    with pytest.raises(ConfigError, match="no set that can be streamed; known are dolly_15k"):
        find_hub_set("wenetspeech")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"vita-mctp\[data\]"):
        fetch(wrong, tmp_path / "out")
    assert not (tmp_path / "out" / hub.MANIFEST_FILE).exists()
