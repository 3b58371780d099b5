"""Manifests: every form and every kind of audio is read; whatever is wrong is one DataError with file and line."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from vita_mctp.data import manifest
from vita_mctp.data.manifest import Form, GivenCodes, ManifestCheck, Recording, decode, read_bytes, read_manifest
from vita_mctp.errors import DataError


def conversation(question: str, answer: str, *audios: object, **more: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "audios": list(audios), **more}


ASR = conversation("Convert the speech to text.\n<|audio|>", "two plus three", "a.wav")
SAMPLES = {
    Form.ASR: ASR,
    Form.TTS: conversation("Convert the text to speech.\nfive", "<|audio|>", {"codes": [1, 2], "codec": "ramp"}),
    Form.SPEECH_QA: conversation(
        "<|audio|>", "five<|audio|>", "t.tar::a.wav", {"tar": "t.tar", "offset": 5, "size": 9}
    ),
    Form.TEXT: conversation("two plus three", "five", id="x"),
}


def wave_bytes(seconds: float = 0.5, rate: int = 16000, level: float = 0.4) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, level * np.sin(np.arange(int(seconds * rate)) / 9), rate, format="WAV")
    return file.getvalue()


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def problems_of(path: Path) -> tuple[list[str], dict[str, Any]]:
    problems: list[str] = []
    check = ManifestCheck(problems.append, max_seconds=2.0)
    check.read(path)
    assert check.problems == len(problems)
    return [problem.removeprefix(f"{path}:") for problem in problems], check.summary()


def test_every_form_and_every_kind_of_audio_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", *SAMPLES.values())
    samples = list(read_manifest(path))
    assert [sample.form for sample in samples] == list(SAMPLES)
    assert [sample.where for sample in samples] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    tar = tmp_path / "t.tar"
    kinds = ((Recording(tmp_path / "a.wav"),), (GivenCodes(codes=(1, 2), codec="ramp"),))
    assert [sample.audios for sample in samples] == [*kinds, (Recording(tar, "a.wav"), Recording(tar, span=(5, 9))), ()]
    assert samples[3].id == "x" and samples[0].messages[1].content == "two plus three"


def test_recordings_come_from_files_and_from_tar_files(tmp_path: Path) -> None:
    data = wave_bytes()
    (tmp_path / "a.wav").write_bytes(data)
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "a.wav", "in/a.wav")
    tar = tmp_path / "t.tar"
    with tarfile.open(tar) as archive:
        begin = archive.getmembers()[0].offset_data
    whole, member = Recording(tmp_path / "a.wav"), Recording(tar, "in/a.wav")
    for recording in (whole, member, Recording(tar, span=(begin, len(data)))):
        assert read_bytes(recording, "here") == data
    assert decode(data, "here").seconds == 0.5


BAD_LINES = {
    "": "the line is empty",
    "{": "no JSON object",
    "[" * 100_000: "no JSON object",
    '{"messages": NaN}': "messages: got nan",
    '{"messages": [], "messages": []}': "a key occurs twice",
    "9" * 5000: "no JSON object",
    "[]": "got []",
    '{"message": []}': "unknown key message; known: messages, audios, id",
    "{}": "missing key messages",
    '{"messages": {}}': "messages: got {}",
    '{"messages": []}': "messages is empty",
    '{"messages": [{"role": "user", "content": "\\ud800"}]}': "Invalid JSON",
    '{"messages": [{"role": "user"}]}': "missing key messages.0.content",
    '{"messages": [{"role": "user", "content": 3}]}': "messages.0.content: got 3",
    '{"messages": [{"role": "robot", "content": "x"}]}': "messages.0.role: got 'robot'; Input should be 'system'",
    '{"messages": [{"role": "user", "content": "x"}]}': "the last message is of the role 'user'",
    '{"messages": [{"role": "gpt", "content": " "}]}': "messages.0.content: got nothing",
    '{"messages": [{"role": "gpt", "content": "<|im_end|>"}]}': "messages.0.content: got <|im_end|>",
}
BAD_SAMPLES: list[tuple[dict[str, Any], str]] = [
    (conversation("<|audio|>", "x"), "1 <|audio|> tags and 0 audios"),
    (conversation("x", "<|audio|><|audio|>", "a", "b"), "an answer has 2 <|audio|> tags"),
    (conversation("x", "y", id=""), "id: got ''"),
    (conversation("<|audio|>", "x", ""), "audios.0.path: got ''"),
    (conversation("<|audio|>", "x", "a.tar::"), "audios.0.path: got 'a.tar::'"),
    (conversation("<|audio|>", "x", "a\0b"), "audios.0.path: got 'a\\x00b'"),
    (conversation("<|audio|>", "x", 7), "audios.0.range: got 7"),
    (conversation("<|audio|>", "x", {"tar": "t", "offset": 0}), "missing key audios.0.range.size"),
    (conversation("<|audio|>", "x", {"tar": "t", "offset": -1, "size": 2}), "offset: got -1"),
    (conversation("<|audio|>", "x", {"tar": "t", "offset": 0, "size": True}), "size: got True"),
    (conversation("<|audio|>", "x", {"codes": [], "codec": "nano"}), "codes: got []"),
    (conversation("<|audio|>", "x", {"codes": [1, -2], "codec": "nano"}), "codes.1: got -2"),
    (conversation("<|audio|>", "x", {"codes": [1], "codec": ""}), "codec: got ''"),
]


@pytest.mark.parametrize(
    ("line", "message"), [*BAD_LINES.items(), *((json.dumps(values), message) for values, message in BAD_SAMPLES)]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "m.jsonl", ASR, line)
    with pytest.raises(DataError) as error:
        list(read_manifest(path))
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_LINE_BYTES", 400)
    path = write(tmp_path / "m.jsonl", "[" + "0," * 5000, ASR)
    assert problems_of(path)[0][0].startswith("1: the line has over")
    assert [line.number for line in manifest.read_lines(path)] == [1, 2]


def test_unreadable_and_empty_manifests_and_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ASR).encode() + b"\r\n" + "{'ü'}".encode("latin-1"))
    for name, message in {"none": "No such file", "empty.jsonl": "is empty", ".": "Is a directory"}.items():
        with pytest.raises(DataError, match=message):
            list(read_manifest(tmp_path / name))
    with pytest.raises(DataError, match=r"latin\.jsonl:2: byte 2 is no UTF-8"):
        list(read_manifest(tmp_path / "latin.jsonl"))


def test_check_finds_every_problem_and_sums_up_the_rest(tmp_path: Path) -> None:
    files = {
        "a.wav": wave_bytes(),
        "b.wav": wave_bytes(1.5, 44100),
        "odd.wav": wave_bytes(1, 15999),
        "short.wav": wave_bytes(0.01),
        "long.wav": wave_bytes(2.5),
        "silent.wav": wave_bytes(level=0),
        "text.wav": b"no audio",
        "zero.wav": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.wav")
    names = [*files, "gone.wav", "pipe.wav", "text.wav::x", "a.wav"]
    asked = [conversation("Convert the speech to text.\n<|audio|>", "hello", name, id=name) for name in names]
    given = conversation("Convert the text to speech.\nhi", "<|audio|>", {"codes": [1], "codec": "nano"})
    problems, summary = problems_of(write(tmp_path / "m.jsonl", *asked, given, "{", SAMPLES[Form.TEXT]))
    expected = {
        3: "unusual sample rate of 15999 Hz",
        4: "lasts 0.010 s",
        5: "lasts 2.5 s; wanted at most 2 s",
        6: "silent",
        7: "not audio",
        8: "holds no bytes",
        9: "No such file",
        10: "no regular file",
        11: "no tar file",
        12: f"the id 'a.wav' is that of {tmp_path / 'm.jsonl'}:1",
        14: "no JSON object",
    }
    assert [int(problem.partition(":")[0]) for problem in problems] == list(expected)
    for problem, message in zip(problems, expected.values(), strict=True):
        assert message in problem
    assert summary["lines"] == 15 and summary["problems"] == 11
    assert summary["samples"] == {"asr": 2, "text": 1, "tts": 1}
    assert summary["given_codes"] == {"nano": 1} and summary["sample_rates"] == {"15999": 1, "16000": 2, "44100": 1}
    assert summary["seconds"]["shortest"] == 0.5 and summary["seconds"]["longest"] == 1.5
    assert summary["hours"] == round(3.5 / 3600, 4)
