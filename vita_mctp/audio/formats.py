"""Sound as clients want it: encoders that give out bytes while they are fed.

libsndfile writes all formats but aac, which is ffmpeg's.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import threading
from contextlib import suppress
from typing import Any

import numpy as np

from vita_mctp.audio.io import ffmpeg
from vita_mctp.audio.resample import StreamResampler
from vita_mctp.errors import ConfigError
from vita_mctp.types import FloatArray, Wave

PCM_RATE = 24_000
"""Of raw samples, which say nothing of their rate, and of opus, which knows few rates."""

MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "aac": "audio/aac",
}
_SOUNDFILE: dict[str, dict[str, Any]] = {
    "mp3": {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.5},  # of any other, lengths are guessed
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
}
_UNKNOWN = 0xFFFFFFFF
"""Size in the header of a WAV whose end is not known."""


class Encoder:
    """Bytes of one sound, as its samples come."""

    def push(self, samples: FloatArray) -> bytes:
        raise NotImplementedError

    def finish(self) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        """For a sound that is given up; needless behind `finish`."""


def new_encoder(name: str, sample_rate: int) -> Encoder:
    """An encoder of samples at `sample_rate`. Raises ConfigError for a format that is unknown or not to be had here."""
    if name == "pcm":
        return PcmEncoder(sample_rate, PCM_RATE)
    if name == "wav":
        return WavEncoder(sample_rate)
    if name == "aac":
        return AacEncoder(sample_rate)
    if name not in _SOUNDFILE:
        raise ConfigError(f"the audio format {name[:20]!r} came; wanted one of {', '.join(MEDIA_TYPES)}")
    return SoundfileEncoder(name, sample_rate)


def encode(name: str, wave: Wave) -> bytes:
    """A whole sound."""
    encoder = new_encoder(name, wave.sample_rate)
    data = bytearray(encoder.push(wave.samples) + encoder.finish())
    if name == "wav":
        struct.pack_into("<I", data, 4, len(data) - 8)
        struct.pack_into("<I", data, 40, len(data) - 44)
    return bytes(data)


class PcmEncoder(Encoder):
    """16-bit little-endian samples at `target_rate`."""

    def __init__(self, sample_rate: int, target_rate: int) -> None:
        self._resampler = StreamResampler(sample_rate, target_rate)

    def push(self, samples: FloatArray) -> bytes:
        return pcm16(self._resampler.push(samples))

    def finish(self) -> bytes:
        return pcm16(self._resampler.finish())


class WavEncoder(Encoder):
    def __init__(self, sample_rate: int) -> None:
        self._header = b"RIFF" + struct.pack("<I", _UNKNOWN) + b"WAVEfmt "
        self._header += struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
        self._header += b"data" + struct.pack("<I", _UNKNOWN)

    def push(self, samples: FloatArray) -> bytes:
        header, self._header = self._header, b""
        return header + pcm16(samples)

    def finish(self) -> bytes:
        return self.push(np.zeros(0, np.float32))


class SoundfileEncoder(Encoder):
    """What libsndfile writes of a file as it grows.

    A FLAC comes whole at the end, since its beginning says its length. An MP3 goes without its first frame, which is
    empty until the end is known, and by which players would guess the length.
    """

    def __init__(self, name: str, sample_rate: int) -> None:
        import soundfile

        self._sink = _Sink()
        self._whole, self._begins = name == "flac", name == "mp3"
        rate = PCM_RATE if name == "opus" else sample_rate
        self._resampler = StreamResampler(sample_rate, rate)
        self._file = soundfile.SoundFile(self._sink, "w", rate, 1, **_SOUNDFILE[name])

    def push(self, samples: FloatArray) -> bytes:
        return self._write(self._resampler.push(samples))

    def finish(self) -> bytes:
        data = self._write(self._resampler.finish())
        self._file.close()
        return data + self._take()

    def close(self) -> None:
        self._file.close()

    def _write(self, samples: FloatArray) -> bytes:
        for piece in np.split(samples, range(1 << 14, len(samples), 1 << 14)):  # as `audio.io` does
            self._file.write(np.clip(piece, -1.0, 1.0))
        return b"" if self._whole else self._take()

    def _take(self) -> bytes:
        if self._begins:
            if (second := self._sink.find_again(2)) < 0:
                return b""
            self._begins = False
            return self._sink.take()[second:]
        return self._sink.take()


class _Sink(io.RawIOBase):
    """A file of which is kept what was not taken yet; what is written before that is lost."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._taken = self._position = 0

    def take(self) -> bytes:
        data = bytes(self._data)
        self._taken += len(data)
        self._data.clear()
        return data

    def find_again(self, length: int) -> int:
        """Where the first so many bytes come once more; -1: not yet."""
        return self._data.find(self._data[:length], length)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        begin = self._position - self._taken
        if begin >= 0:
            self._data[begin : begin + len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._taken + len(self._data)}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


class AacEncoder(Encoder):
    """ADTS frames of ffmpeg's."""

    def __init__(self, sample_rate: int) -> None:
        source = ["-f", "s16le", "-ar", str(sample_rate), "-ac", "1", "-i", "pipe:0"]
        command = [ffmpeg("aac"), "-v", "error", *source, "-f", "adts", "-flush_packets", "1", "pipe:1"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._lock = threading.Lock()
        self._ready = bytearray()
        self._reader = threading.Thread(target=self._read, name="vita-mctp aac", daemon=True)
        self._reader.start()

    def push(self, samples: FloatArray) -> bytes:
        assert self._process.stdin is not None
        self._process.stdin.write(pcm16(samples))
        self._process.stdin.flush()
        return self._take()

    def finish(self) -> bytes:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        self._process.wait()
        return self._take()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        with suppress(BrokenPipeError):  # by what it had not read, else it would stay behind, dead and not waited for
            self._process.stdin.close()
        self.finish()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            with self._lock:
                self._ready += data
        self._process.stdout.close()

    def _take(self) -> bytes:
        with self._lock:
            data = bytes(self._ready)
            self._ready.clear()
        return data


def pcm16(samples: FloatArray) -> bytes:
    """Samples in [-1, 1] as 16-bit little-endian ones."""
    return (np.clip(samples, -1.0, 1.0) * 32767).round().astype("<i2").tobytes()


def from_pcm16(data: bytes) -> FloatArray:
    """An odd byte at the end is left out."""
    return np.frombuffer(data, "<i2", len(data) // 2).astype(np.float32) / np.float32(32768)
