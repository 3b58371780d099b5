"""Models with a talker behind what every family has: benches, evaluation, the server, the page."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serving.conftest import served, serving
from vita_mctp.audio.io import read_wave, wav_bytes
from vita_mctp.bench import Machine
from vita_mctp.bench.first_audio import TALKER_PARTS
from vita_mctp.cli import main
from vita_mctp.evaluation.benchmarks import Question
from vita_mctp.evaluation.systems import SystemConfig
from vita_mctp.serving.demo import build_demo
from vita_mctp.serving.options import ServerOptions
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import Task, Wave

RECORDING = wav_bytes(Wave((0.4 * np.sin(np.arange(9000) / 9)).astype(np.float32), 16000))


@pytest.fixture(params=["tiny_vocalnet_folder", "tiny_m2_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_the_benches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vita_mctp.bench.measure_machine", lambda device, dtype: Machine("cpu", "float32", 1e9, 1e12))
    out = tmp_path / "out.json"
    options = ["--model", str(folder), "--json", str(out), "--runs", "1"]
    assert main(["bench", "first-audio", *options, "--warm-up", "1"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["mode"], row["part"]) for row in rows] == [
        (mode, part) for mode in ("1x", "5x") for part in (*TALKER_PARTS, "sum")
    ]
    assert all(row["p50"] > 0 and row["least"] >= 0 for row in rows)
    assert main(["bench", "modes", *options, "--modes", "1x", "--tokens", "6"]) == 0
    assert [row["mode"] for row in json.loads(out.read_text())["rows"]] == ["1x"]
    assert main(["bench", "first-audio", *options, "--modes", "boost"]) == 2
    assert "1x or 5x" in capsys.readouterr().err


def test_it_is_evaluated_as_any_system(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "question.wav").write_bytes(RECORDING)
    system = SystemConfig(model=str(folder), mode="2x")
    system.check()
    reply = system.open().answer(Question(id="1", audio=tmp_path / "question.wav"), Task.SPEECH_TO_SPEECH)
    assert reply.wave is not None and len(reply.wave.samples) and reply.text


def test_the_server_answers_aloud(folder: Path) -> None:
    audio = {"data": base64.b64encode(RECORDING).decode(), "format": "wav"}
    body = {
        "model": "tiny",
        "modalities": ["text", "audio"],
        "audio": {"voice": "default", "format": "wav"},
        "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}],
    }
    with served(SpeechLM.from_pretrained(folder), ServerOptions("tiny")) as (address, _):
        made = httpx.post(f"{address}/v1/chat/completions", json=body | {"mode": "3x"}, timeout=60).json()
        assert "choices" in made, made
        said = made["choices"][0]["message"]["audio"]
        assert len(read_wave(base64.b64decode(said["data"])).samples) and said["transcript"]
        refused = httpx.post(f"{address}/v1/chat/completions", json=body | {"mode": "boost"}, timeout=60)
        assert refused.status_code == 400 and "5x" in refused.json()["error"]["message"]


def test_the_page_offers_its_speeds(folder: Path) -> None:
    pytest.importorskip("gradio")
    with serving(build_demo(SpeechLM.from_pretrained(folder), "tiny")) as address:
        about = httpx.get(f"{address}/about.json").json()
    assert about["modes"] == ["1x", "2x", "3x", "4x", "5x"] and about["mode"] in about["modes"]
    assert "talker" in about["hint"]
