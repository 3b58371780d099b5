"""Recordings of every kind come in as one kind; outputs are whole or absent."""

import errno
import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vita_mctp.audio import formats, read_wave, resample, wave_from_array, write_wave
from vita_mctp.audio import io as audio_io
from vita_mctp.errors import AudioError, OutputError
from vita_mctp.types import Wave


def tone(seconds: float = 0.5, rate: int = 16000, hertz: float = 440.0, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav_bytes(samples: np.ndarray, rate: int = 16000, **how: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **{"format": "WAV", "subtype": "PCM_16", **how})
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_every_format_and_rate_keeps_the_tone(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(1.0, rate), rate)
    wave = read_wave(path)
    assert wave.sample_rate == rate
    assert wave.seconds == pytest.approx(1.0, abs=0.08)
    spectrum = np.abs(np.fft.rfft(wave.samples[: rate // 2]))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=4)


def test_stereo_becomes_the_mean_of_its_channels() -> None:
    left, right = tone(hertz=300), tone(hertz=500)
    wave = read_wave(wav_bytes(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(wave.samples, (left + right) / 2, atol=1e-7)


def test_one_channel_is_heard_where_it_is_named() -> None:
    left, right = tone(hertz=300), tone(hertz=500)
    data = wav_bytes(np.stack([left, right], axis=1), subtype="FLOAT")
    for channel, samples in enumerate((left, right)):
        np.testing.assert_array_equal(read_wave(data, channel=channel).samples, samples)
    with pytest.raises(AudioError, match="has 2 channels; wanted channel 2"):
        read_wave(data, channel=2)


def test_samples_beyond_full_scale_are_clipped() -> None:
    wave = read_wave(wav_bytes(tone(peak=3.0), subtype="FLOAT"))
    assert wave.samples.max() == 1.0 and wave.samples.min() == -1.0


def test_a_named_pipe_reads_like_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = wav_bytes(tone())
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    wave = read_wave(pipe)
    writer.join()
    np.testing.assert_array_equal(wave.samples, read_wave(data).samples)


def test_standard_input_reads_like_a_file() -> None:
    code = "from vita_mctp.audio import read_wave; w = read_wave('-'); print(len(w.samples), w.sample_rate)"
    done = subprocess.run([sys.executable, "-c", code], input=wav_bytes(tone()), capture_output=True, check=True)
    assert done.stdout.split() == [b"8000", b"16000"]


def test_a_wav_header_of_unknown_length_is_read_to_the_end() -> None:
    data = bytearray(wav_bytes(tone()))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # what sox and ffmpeg write into a pipe
    assert len(read_wave(bytes(data)).samples) == 8000


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integer_arrays_are_scaled_by_their_range(dtype: type) -> None:
    samples = (tone() * np.iinfo(dtype).max).astype(dtype)
    np.testing.assert_allclose(wave_from_array(samples, 16000).samples, tone(), atol=1e-4)


def test_resampling_keeps_length_and_tone() -> None:
    wave = resample(Wave(tone(1.0, 44100), 44100), 16000)
    assert wave.sample_rate == 16000 and abs(len(wave.samples) - 16000) <= 1
    middle = slice(2000, 14000)
    np.testing.assert_allclose(wave.samples[middle], tone(1.0, 16000)[middle], atol=2e-3)


def nan_in_the_middle() -> bytes:
    samples = tone()
    samples[100] = np.nan
    return wav_bytes(samples, subtype="FLOAT")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (b"this is a letter, not a recording\n" * 50, "not audio"),
        (wav_bytes(np.zeros(0, np.float32)), "no samples"),
        (wav_bytes(np.zeros(16000, np.float32)), "silent"),
        (wav_bytes(np.full(16000, 0.2, np.float32)), "silent"),
        (nan_in_the_middle(), "NaN"),
        (wav_bytes(np.stack([tone()] * 8, axis=1)), "8 channels"),
        (wav_bytes(tone(rate=4000), 4000), "4000 Hz"),
        (wav_bytes(tone(61.0, 8000), 8000), "61.0 s"),
        (wav_bytes(tone(0.05)), "0.050 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",  # a float WAV holds the second it was made in
)
def test_what_is_no_spoken_question_is_refused_with_one_line(data: bytes, complaint: str) -> None:
    with pytest.raises(AudioError, match=complaint) as caught:
        read_wave(data)
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_twenty_minutes_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(tone(1.0, 8000), 1200), 8000)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", never)
    with pytest.raises(AudioError, match=r"1200\.0 s; wanted at most 60 s"):
        read_wave(path)


@pytest.mark.parametrize("name", ["missing.wav", ".", "headerless.raw"])
def test_a_path_without_a_recording_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "headerless.raw").write_bytes(b"\x01\x02" * 900)
    with pytest.raises(AudioError) as caught:
        read_wave(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_written_waves_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"answer.{suffix}"
    write_wave(path, Wave(tone(2.0, 16000), 16000))
    again = read_wave(path)
    assert again.sample_rate == 16000 and again.seconds == pytest.approx(2.0, abs=0.1)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_an_empty_answer_is_a_valid_file_without_samples(tmp_path: Path) -> None:
    write_wave(tmp_path / "none.wav", Wave(np.zeros(0, np.float32), 16000))
    assert soundfile.info(tmp_path / "none.wav").frames == 0


def test_an_older_answer_survives_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answer.wav"
    path.write_bytes(b"older")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(audio_io.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_wave(path, Wave(tone(), 16000))
    assert path.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


def test_a_full_device_is_one_line() -> None:
    with pytest.raises(OutputError, match="/dev/full: No space left on device"):
        write_wave("/dev/full", Wave(tone(), 16000))


def test_a_full_disk_behind_standard_output_is_one_error() -> None:
    code = """
import numpy, sys
from vita_mctp.audio import write_wave
from vita_mctp.errors import OutputError
from vita_mctp.types import Wave
try:
    write_wave("-", Wave(numpy.ones(9000, numpy.float32), 16000))
except OutputError as error:
    sys.stderr.write(str(error))
"""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("cannot write standard output: No space left on device")
    assert done.stderr.count("No space") == 1 and "Exception ignored" not in done.stderr


@pytest.mark.parametrize(("name", "complaint"), [("a.xyz", "format"), ("no/a.wav", "no directory"), ("", "directory")])
def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(OutputError, match=complaint):
        write_wave(tmp_path / name, Wave(tone(), 16000))
    assert list(tmp_path.iterdir()) == []


def test_samples_far_beyond_full_scale_are_refused_and_not_clipped() -> None:
    tone = np.sin(np.arange(16_000) / 9)
    with pytest.raises(AudioError, match="32767"):
        read_wave(32_767 * tone, sample_rate=16_000)
    assert read_wave(1.4 * tone, sample_rate=16_000).samples.max() == 1.0


def test_a_rate_that_a_format_cannot_hold_is_one_line(tmp_path: Path) -> None:
    wave = Wave(np.zeros(9600, np.float32), 96_000)
    with pytest.raises(OutputError, match="96000 Hz"):
        wave.save(tmp_path / "a.mp3")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="aac is ffmpeg's")
def test_an_encoder_whose_program_has_died_is_closed_all_the_same() -> None:
    encoder = formats.AacEncoder(16_000)
    encoder._process.kill()
    encoder._process.wait()
    with pytest.raises(BrokenPipeError):
        encoder.push(tone(0.1))  # less than its pipe's buffer keeps, which closing flushes again
    encoder.close()
    assert not encoder._reader.is_alive() and encoder._process.stdin is not None and encoder._process.stdin.closed
