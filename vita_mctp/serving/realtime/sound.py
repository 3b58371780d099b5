"""The three forms of sound on a Realtime connection: 16-bit samples at 24 kHz, and G.711 at 8 kHz."""

from __future__ import annotations

from functools import cache

import numpy as np

from vita_mctp.audio.formats import from_pcm16, pcm16
from vita_mctp.audio.resample import StreamResampler
from vita_mctp.serving.realtime.wire import Format
from vita_mctp.types import FloatArray

RATE = 24_000
"""At which a conversation takes what comes in."""
_G711_RATE = 8_000


class SoundIn:
    """Bytes as they come, however they are cut, to samples at RATE."""

    def __init__(self, form: Format) -> None:
        self._law = law_of(form)
        self._odd = b""
        self._resampler = StreamResampler(rate_of(form), RATE)

    def push(self, data: bytes) -> FloatArray:
        if self._law is None:
            data = self._odd + data
            self._odd = data[len(data) // 2 * 2 :]
            samples = from_pcm16(data)
        else:
            samples = decode_g711(data, self._law)
        return self._resampler.push(samples)


class SoundOut:
    """Samples of one answer to bytes."""

    def __init__(self, form: Format, sample_rate: int) -> None:
        self._law = law_of(form)
        self._resampler = StreamResampler(sample_rate, rate_of(form))

    def push(self, samples: FloatArray) -> bytes:
        return self._encode(self._resampler.push(samples))

    def finish(self) -> bytes:
        return self._encode(self._resampler.finish())

    def _encode(self, samples: FloatArray) -> bytes:
        return pcm16(samples) if self._law is None else encode_g711(samples, self._law)


def rate_of(form: Format) -> int:
    return RATE if form.type == "audio/pcm" else _G711_RATE


def law_of(form: Format) -> str | None:
    """The companding law of G.711, "u" or "A"; None for plain samples."""
    return {"audio/pcm": None, "audio/pcmu": "u", "audio/pcma": "A"}[form.type]


@cache
def _levels(law: str) -> FloatArray:
    """(256,) the value of each byte, in [-1, 1] (ITU-T G.711)."""
    code = np.arange(256)
    code = code ^ (0xFF if law == "u" else 0x55)
    exponent, mantissa = code >> 4 & 7, code & 15
    if law == "u":
        value = ((mantissa << 3) + 0x84 << exponent) - 0x84
        value = np.where(code & 0x80, -value, value)
    else:
        value = np.where(exponent, (mantissa << 4) + 0x108 << np.maximum(exponent - 1, 0), (mantissa << 4) + 8)
        value = np.where(code & 0x80, value, -value)
    return (value / 32768).astype(np.float32)


def decode_g711(data: bytes, law: str) -> FloatArray:
    return _levels(law)[np.frombuffer(data, np.uint8)]


def encode_g711(samples: FloatArray, law: str) -> bytes:
    """The byte whose value is nearest to each sample."""
    levels = _levels(law)
    order = np.argsort(levels, kind="stable")
    borders = (levels[order][1:] + levels[order][:-1]) / 2
    return order[np.searchsorted(borders, samples, side="right")].astype(np.uint8).tobytes()
