"""Recordings in, answers out: here alone channels, sample types and file formats are settled.

Anything that libsndfile (wav, flac, ogg, mp3, ...) or, where it is installed, ffmpeg (m4a, webm, ...) reads becomes a
mono float32 `Wave`; a recording that cannot be a spoken question is refused here with one line, so that nothing
downstream has to ask again. ffmpeg is given a file of ours and demuxers that open nothing else, so that no recording
can name a path or an address.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from vita_mctp.errors import AudioError, ConfigError, OutputError
from vita_mctp.files import cannot_write, write_whole
from vita_mctp.types import FloatArray, Wave

_DEMUXERS = "mov,matroska,webm,aac,mp3,ogg,flac,wav,amr,asf,caf,aiff"
_CONVERSION_SECONDS = 60


def ffmpeg(what: str) -> str:
    """The program. Raises ConfigError, which says what needs it."""
    found = shutil.which("ffmpeg")
    if found is None:
        raise ConfigError(f"{what} needs ffmpeg, which is not installed here; take wav, pcm, mp3, opus or flac")
    return found


def as_wav(recording: IO[bytes], limit_seconds: float, limit_bytes: int) -> bytes:
    """The bytes of a WAV, a little longer than allowed at most; none where ffmpeg is not installed or cannot read it.

    recording: of which no more than `limit_bytes` are looked at. Raises AudioError where it takes ffmpeg too long.
    """
    if shutil.which("ffmpeg") is None:
        return b""
    recording.seek(0)
    with tempfile.TemporaryDirectory(prefix="vita-mctp-") as folder:  # Windows opens no file twice
        path = Path(folder, "recording")
        path.write_bytes(recording.read(limit_bytes))
        safe = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _DEMUXERS]
        target = ["-map", "0:a:0", "-t", str(limit_seconds + 1), "-f", "wav", "pipe:1"]
        command = [ffmpeg("such files"), "-v", "error", "-nostdin", *safe, "-i", str(path), *target]
        try:
            made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CONVERSION_SECONDS)
        except subprocess.TimeoutExpired:
            raise AudioError("the recording takes ffmpeg too long to read; send it as wav, flac, ogg or mp3") from None
    return made.stdout


STDIO = "-"
"""As a source: standard input. As a target: standard output."""

MIN_SAMPLE_RATE = 8_000
MAX_SAMPLE_RATE = 192_000
MAX_CHANNELS = 2
MIN_SECONDS = 0.1
SILENCE_PEAK = 1e-3
"""-60 dBFS: a recording whose every sample lies closer than this to its mean is taken as silent."""

_LOUDEST = 10.0
"""Times full scale; what overshoots more is no sound in [-1, 1], such as 16-bit samples as floats."""

_BYTES_PER_SECOND = MAX_SAMPLE_RATE * MAX_CHANNELS * 4
_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".mp3": ("MP3", None)}
_KINDS = "a wav, flac, ogg or mp3 file"
_WRITE_FRAMES = 1 << 14  # libsndfile's Vorbis encoder overflows its stack when given minutes in one call


class Tensor(Protocol):
    """torch's, on any device."""

    def detach(self) -> Any: ...


Samples = npt.NDArray[Any] | Tensor
"""(T,), (T, channels) or (channels, T): float in [-1, 1], or integers as files have them."""

Source = str | os.PathLike[str] | bytes | IO[bytes] | Samples | Mapping[str, Any]
"""A path ("-" is standard input), a file's bytes, a file open for reading, or samples.

A mapping is a row of datasets: {"array": samples, "sampling_rate": rate}.
"""


def read_wave(
    source: Source,
    limit_seconds: float = 60.0,
    *,
    channel: int | None = None,
    sample_rate: int | None = None,
) -> Wave:
    """A recording as mono float32 at its own rate. Only `limit_seconds` of a longer one are decoded.

    channel: the one to hear, from 0; None = the mean of all. The released models heard channel 0.
    sample_rate: of samples, which want one; files say their own.
    Raises AudioError: not there, not audio, empty, silent, too long, NaN, over 2 channels, under 8 kHz. ConfigError: a
    sample rate is missing, or given with a file; a source of another kind.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(_not_empty(source, "the recording")), "the recording", limit_seconds, channel)
    if not isinstance(source, str | os.PathLike):
        return _read_object(source, limit_seconds, channel, sample_rate)
    if sample_rate is not None:
        raise ConfigError(f"sample_rate {sample_rate} came with a file, which says its own; leave it out")
    if str(source) == STDIO:
        return _decode_stream(sys.stdin.buffer, "standard input", limit_seconds, channel)
    path = Path(source)
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe cannot be seeked in
                return _decode_stream(file, str(path), limit_seconds, channel)
            _not_empty(file.read(1), str(path))
            file.seek(0)
            return _decode(file, str(path), limit_seconds, channel)  # by its name libsndfile would need UTF-8
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"cannot read {str(path)!r}: {reason}; wanted {_KINDS}: give its path") from None


def _read_object(source: Any, limit_seconds: float, channel: int | None, sample_rate: int | None) -> Wave:
    """A `Source` that is in memory or open already."""
    if isinstance(source, Mapping) and {"array", "sampling_rate"} <= source.keys():
        source, sample_rate = source["array"], source["sampling_rate"]
    if hasattr(source, "read"):
        return _decode_stream(source, "the recording", limit_seconds, channel)
    if hasattr(source, "detach"):
        tensor = source.detach().cpu()
        source = np.asarray(tensor.float() if tensor.is_floating_point() else tensor)  # numpy knows no bfloat16
    if not isinstance(source, np.ndarray):
        raise ConfigError(
            f"a {type(source).__name__} came as a recording; wanted a path, bytes, a file, a Wave, or samples: give an "
            "array or a tensor with sample_rate"
        )
    if sample_rate is None:
        raise ConfigError("samples came without a sample rate; give sample_rate in Hz")
    return wave_from_array(source, sample_rate, limit_seconds, channel=channel)


def wave_from_array(
    samples: npt.NDArray[Any],
    sample_rate: int,
    limit_seconds: float = 60.0,
    *,
    channel: int | None = None,
) -> Wave:
    """Samples (T,), (T, channels) or (channels, T), float in [-1, 1] or signed integers, as a checked mono `Wave`."""
    name = "the recording"
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fi":
        came = f"is {samples.dtype} of shape {samples.shape}"
        raise _wrong(name, came, "floats or integers of shape (T,), (T, channels) or (channels, T)", "convert it")
    scale = -float(np.iinfo(samples.dtype).min) if samples.dtype.kind == "i" else 1.0
    frames = samples.astype(np.float32) / np.float32(scale)
    frames = frames[:, None] if frames.ndim == 1 else frames
    frames = frames.T if frames.shape[0] <= MAX_CHANNELS < frames.shape[1] else frames
    _check_layout(sample_rate, frames.shape[1], len(frames) / max(sample_rate, 1), name, limit_seconds)
    return _checked_mono(frames, sample_rate, name, channel)


def write_wave(target: str | os.PathLike[str], wave: Wave) -> None:
    """Writes 16-bit audio in the format of the target's suffix; "-" is WAV on standard output.

    A file appears whole under its name or not at all. Raises OutputError.
    """
    data = _encode(wave, *_FORMATS[check_target(target)])
    if str(target) == STDIO:
        _write_stdout(data)
        return
    path = Path(target)
    try:
        if path.exists() and not path.is_file():  # a device or a pipe: nothing to rename over
            path.write_bytes(data)
        else:
            write_whole(path.resolve(), data)
    except OSError as error:
        raise cannot_write(path, error) from None


def check_target(target: str | os.PathLike[str]) -> str:
    """The suffix that names the format `write_wave` will use; raises OutputError before any work is spent on it."""
    if str(target) == STDIO:
        return ".wav"
    path = Path(target)
    if path.is_dir():
        raise OutputError(f"{path} is a directory; wanted an audio file: give a name such as {path / 'answer.wav'}")
    if path.exists() and not path.is_file():
        return ".wav"
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise OutputError(f"no audio format in the name {path}; wanted one that ends in {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no directory {path.parent}; make it or give another name")
    return suffix


def _decode(file: IO[bytes], name: str, limit_seconds: float, channel: int | None, *, converts: bool = True) -> Wave:
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            rate = int(sound.samplerate)
            _check_layout(rate, sound.channels, sound.frames / rate, name, limit_seconds)
            frames = sound.read(int(limit_seconds * rate) + 1, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError):  # TypeError: a name that ends in .raw, which has no header to read
        made = as_wav(file, limit_seconds, int(limit_seconds * _BYTES_PER_SECOND)) if converts else b""
        if made:
            return _decode(io.BytesIO(made), name, limit_seconds, channel, converts=False)
        raise _wrong(name, "is not audio that can be read", _KINDS, "ffmpeg, where installed, reads others") from None
    _check_seconds(len(frames) / rate, name, limit_seconds)
    return _checked_mono(frames, rate, name, channel)


def _wrong(name: str, came: str, needed: str, remedy: str = "record it again") -> AudioError:
    return AudioError(f"{name} {came}; wanted {needed}: {remedy}")


def _check_layout(rate: int, channels: int, seconds: float, name: str, limit_seconds: float) -> None:
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        rates = f"speech of {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
        raise _wrong(name, f"has a sample rate of {rate} Hz", rates, "record it again at 16000 Hz or more")
    if channels > MAX_CHANNELS:
        remedy = "pick the speaker's channel (sox in out remix 1)"
        raise _wrong(name, f"has {channels} channels", "mono or stereo", remedy)
    _check_seconds(seconds, name, limit_seconds)


def _check_seconds(seconds: float, name: str, limit_seconds: float) -> None:
    if seconds > limit_seconds:
        remedy = f"cut out the question (sox in out trim 0 {limit_seconds:g})"
        raise _wrong(name, f"lasts {seconds:.1f} s", f"at most {limit_seconds:g} s", remedy)
    if seconds == 0:
        raise _wrong(name, "holds no samples", "speech")


def _checked_mono(frames: FloatArray, rate: int, name: str, channel: int | None) -> Wave:
    """frames (T, channels), T >= 0."""
    if channel is not None and channel >= frames.shape[1]:
        raise _wrong(name, f"has {frames.shape[1]} channels", f"channel {channel}", "count them from 0")
    if not np.isfinite(frames).all():
        raise _wrong(name, "holds NaN or infinite samples", "finite ones in [-1, 1]", "export it again")
    if (loudest := float(np.abs(frames).max(initial=0.0))) > _LOUDEST:
        raise _wrong(name, f"holds samples of {loudest:g}", "such in [-1, 1]", "scale them")
    if len(frames) / rate < MIN_SECONDS:
        raise _wrong(name, f"lasts {len(frames) / rate:.3f} s", f"at least {MIN_SECONDS} s of speech")
    mono = frames.mean(axis=1) if channel is None else frames[:, channel]
    samples = np.clip(mono, -1.0, 1.0).astype(np.float32)
    peak = float(np.abs(samples - samples.mean()).max())
    if peak < SILENCE_PEAK:
        remedy = "check the microphone and record it again"
        raise _wrong(name, f"is silent (peak {peak:.1e})", f"at least {SILENCE_PEAK:g} of full scale", remedy)
    return Wave(samples, rate)


def _not_empty(data: bytes, name: str) -> bytes:
    if not data:
        raise _wrong(name, "is empty (0 bytes)", _KINDS)
    return data


def _decode_stream(stream: IO[bytes], name: str, limit_seconds: float, channel: int | None) -> Wave:
    limit = int(limit_seconds * _BYTES_PER_SECOND)
    data = stream.read(limit + 1)
    if not isinstance(data, bytes):
        raise ConfigError(f"a file that gives {type(data).__name__} came as a recording; wanted bytes: open it as 'rb'")
    _not_empty(data, name)
    if len(data) > limit:
        raise _wrong(name, f"brings more than {limit >> 20} MB", f"at most {limit_seconds:g} s of audio", "cut it")
    return _decode(io.BytesIO(data), name, limit_seconds, channel)


def wav_bytes(wave: Wave, subtype: str | None = "PCM_16") -> bytes:
    """A WAV file of 16-bit samples, or of another of libsndfile's subtypes."""
    return _encode(wave, "WAV", subtype)


def _encode(wave: Wave, name: str, subtype: str | None) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    samples = np.clip(wave.samples, -1.0, 1.0)
    try:
        with soundfile.SoundFile(buffer, "w", wave.sample_rate, 1, subtype, format=name) as sound:
            for begin in range(0, len(samples), _WRITE_FRAMES):
                sound.write(samples[begin : begin + _WRITE_FRAMES])
    except soundfile.LibsndfileError as error:
        raise OutputError(f"{name} holds no sound of {wave.sample_rate} Hz ({error}); take wav or flac") from None
    return buffer.getvalue()


def _write_stdout(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more
        raise cannot_write("standard output", error) from None
