"""Questions spliced from a human's words; the recordings are stood in for by tones."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vita_mctp.audio import read_wave
from vita_mctp.errors import ConfigError
from vita_mctp.evaluation.benchmarks import find_benchmark
from vita_mctp.nano import human
from vita_mctp.nano.recordings import splice
from vita_mctp.types import FloatArray

RATE = 16_000


def _tone(seconds: float, level: float) -> FloatArray:
    time = np.arange(round(seconds * RATE)) / RATE
    tone = level * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 4 * time))
    return np.pad(tone, 4_000).astype(np.float32)


def test_words_are_equally_loud_and_the_silence_around_each_is_short() -> None:
    wave = splice([_tone(0.4, 0.02), _tone(0.4, 0.4)], 0.08)

    half = len(wave.samples) // 2
    first, second = (float(np.square(part).sum()) for part in (wave.samples[:half], wave.samples[half:]))
    assert first == pytest.approx(second, rel=0.1)
    assert 2 * 0.4 < wave.seconds < 2 * 0.4 + 1.2


def test_sums_have_answers_and_every_word_has_a_recording() -> None:
    texts = human.texts()

    assert len(texts) == len({text for _, text in texts}) == find_benchmark("nano-human-asr").samples
    assert all(word in human._FILES for _, text in texts for word in text.split())
    assert sum(kind in ("addition", "subtraction") for kind, _ in texts) == find_benchmark("nano-human-sqa").samples


def test_recordings_become_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg encodes the recordings")
    monkeypatch.setenv("ASTERISK_SOUNDS", str(tmp_path))
    human._word.cache_clear()
    kind, text = human.texts()[0]
    for word in text.split():
        path = tmp_path / f"{human._FILES[word]}.g722"
        path.parent.mkdir(exist_ok=True)
        sound = ["-f", "f32le", "-ar", str(RATE), "-ac", "1", "-i", "pipe:0", "-f", "g722", "-y", str(path)]
        subprocess.run(["ffmpeg", "-v", "error", *sound], input=_tone(0.3, 0.3).tobytes(), check=True)

    (case,) = human.make_cases(tmp_path / "questions", "questions", 1)

    assert case.prompt == text and case.references[0].startswith(f"{text} is ") and case.tags == {"kind": kind}
    assert case.question.audio is not None
    assert 0.9 < read_wave(case.question.audio).seconds < 2.5
    human._word.cache_clear()


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTERISK_SOUNDS", str(tmp_path))
    human._word.cache_clear()

    with pytest.raises(ConfigError, match="apt-get install asterisk-core-sounds-en-g722"):
        next(human.make_cases(tmp_path, "questions", 1))


def test_a_recording_without_sound_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg reads the recordings")
    monkeypatch.setenv("ASTERISK_SOUNDS", str(tmp_path))
    human._word.cache_clear()
    for word in human._FILES:
        path = tmp_path / f"{human._FILES[word]}.g722"
        path.parent.mkdir(exist_ok=True)
        path.touch()

    with pytest.raises(ConfigError, match="holds no sound"):
        next(human.make_cases(tmp_path, "questions", 1))
