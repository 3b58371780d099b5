"""Benchmarks of three sentences in every published layout, spoken by this library's own generator."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vita_mctp.audio import write_wave
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.voices import ANSWER_VOICE, speak
from vita_mctp.types import Wave

QUESTIONS = {
    "1089-134686-0000": ("what is seven plus three", "seven plus three is ten"),
    "1089-134686-0001": ("which day comes after wednesday", "thursday comes after wednesday"),
    "1089-134686-0002": ("which country is london in", "london is in england"),
}
CHINESE = {"BAC009S0764W0121": "今天 天气 好", "BAC009S0764W0122": "二十 三 点", "BAC009S0765W0130": "你好"}

Recordings = dict[str, Path]
Publish = Callable[[Path, Recordings], None]


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """Each question as a wave."""
    folder, made = tmp_path_factory.mktemp("recordings"), {}
    for name, (question, _) in QUESTIONS.items():
        made[name] = folder / f"{name}.flac"
        write_wave(made[name], Wave(speak(question, ANSWER_VOICE).samples, SAMPLE_RATE))
    return made


@pytest.fixture
def publish(recordings: Recordings, tmp_path: Path) -> Callable[[str], Path]:
    """A layout's name -> a folder in that layout with the three questions, or three Chinese sentences."""

    def published(layout: str) -> Path:
        folder = tmp_path / layout
        folder.mkdir()
        LAYOUTS[layout](folder, recordings)
        return folder

    return published


def librispeech(folder: Path, recordings: Recordings) -> None:
    place = folder / "test-clean" / "1089" / "134686"
    lines = [f"{name} {question.upper()}" for name, (question, _) in QUESTIONS.items()]
    _write(place / "1089-134686.trans.txt", "\n".join(lines) + "\n")
    _copy({place / f"{name}.flac": recording for name, recording in recordings.items()})


def libritts(folder: Path, recordings: Recordings) -> None:
    for name, (_, answer) in QUESTIONS.items():
        _write(folder / "test-clean" / "1089" / "134686" / f"{name}.normalized.txt", answer.capitalize() + ".\n")


def fleurs(folder: Path, recordings: Recordings) -> None:
    rows = [f"7\t{name}.wav\t{words}?\t{words}\tx |\t99\tFEMALE" for name, (words, _) in QUESTIONS.items()]
    _write(folder / "test.tsv", "\n".join(rows) + "\n")
    _copy({folder / "audio" / "test" / f"{name}.wav": recording for name, recording in recordings.items()})


def aishell1(folder: Path, recordings: Recordings) -> None:
    lines = [f"{name} {words}" for name, words in {**CHINESE, "BAC009S0002W0122": "训练"}.items()]
    _write(folder / "transcript" / "aishell_transcript_v0.8.txt", "\n".join(lines) + "\n")
    spoken = zip(CHINESE, recordings.values(), strict=True)
    _copy({folder / "wav" / "test" / name[6:11] / f"{name}.wav": recording for name, recording in spoken})


def kaldi(folder: Path, recordings: Recordings) -> None:
    place = folder / "iOS" / "test"
    _write(place / "wav.scp", "".join(f"{name}\twav/{name}.wav\n" for name in CHINESE))
    _write(place / "trans.txt", "".join(f"{name}\t{words}\n" for name, words in CHINESE.items()))
    spoken = zip(CHINESE, recordings.values(), strict=True)
    _copy({place / "wav" / f"{name}.wav": recording for name, recording in spoken})


def common_voice(folder: Path, recordings: Recordings) -> None:
    rows = [f'speaker\t{name}.mp3\t"{words}\t2' for name, (words, _) in QUESTIONS.items()]
    _write(folder / "test.tsv", "\n".join(["client_id\tpath\tsentence\tup_votes", *rows]) + "\n")
    _copy({folder / "clips" / f"{name}.mp3": recording for name, recording in recordings.items()})


def seed_tts(folder: Path, recordings: Recordings) -> None:
    lines = [f"{name}|a voice|prompt-wavs/{name}.wav|{answer}" for name, (_, answer) in QUESTIONS.items()]
    _write(folder / "en" / "meta.lst", "\n".join([*lines[:2], lines[2] + "|wavs/own.wav"]) + "\n")
    _copy({folder / "en" / "prompt-wavs" / f"{name}.wav": recording for name, recording in recordings.items()})


def open_audio_bench(folder: Path, recordings: Recordings) -> None:
    place = folder / "eval_datas" / "trivia_qa"
    rows = [
        f'"{question}",{answer},"{answer}, {answer.split()[-1]}",{name}.mp3'
        for name, (question, answer) in QUESTIONS.items()
    ]
    head = "question,answer_normalized_value,answer_normalized_aliases,audio_filename"
    _write(place / "trivia_qa.csv", "\n".join([head, *rows]) + "\n")
    _copy({place / "audios" / f"{name}.mp3": recording for name, recording in recordings.items()})


def jsonl(folder: Path, recordings: Recordings) -> None:
    rows = [
        {"audio": f"audio/{name}.flac", "prompt": question, "reference": [answer.split()[-1]]}
        for name, (question, answer) in QUESTIONS.items()
    ]
    _write(folder / "test.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _copy({folder / "audio" / f"{name}.flac": recording for name, recording in recordings.items()})


LAYOUTS: dict[str, Publish] = {
    made.__name__: made
    for made in (
        librispeech,
        libritts,
        fleurs,
        aishell1,
        kaldi,
        common_voice,
        seed_tts,
        open_audio_bench,
        jsonl,
    )
}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(wanted: dict[Path, Path]) -> None:
    for target, source in wanted.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
