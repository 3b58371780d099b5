"""espeak-ng through its shared library: many cheap voices, no time alignments."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from vita_mctp.errors import MissingExtraError
from vita_mctp.nano.corpus.flite import load_library, resample, seed_c_random
from vita_mctp.types import FloatArray

DEFAULT_RATE = 175
"""Words per minute, espeak-ng's own default."""

DEFAULT_PITCH = 50
"""On espeak-ng's scale of 0..99."""

_PACKAGE = "libespeak-ng1 espeak-ng-data"
_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_RATE_PARAMETER, _PITCH_PARAMETER = 1, 3

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Synthesiser:
    """The library's one global state: its sample rate and the chunks its callback has handed out."""

    def __init__(self) -> None:
        self.library = load_library("libespeak-ng.so.1", _PACKAGE)
        self.library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self.rate: int = self.library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        if self.rate <= 0:
            raise MissingExtraError(f"espeak-ng finds no voice data; install it: apt-get install {_PACKAGE}")
        self.chunks: list[FloatArray] = []
        self._callback = _CALLBACK(self._receive)  # the library keeps only a pointer to it
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).astype(np.float32) / 32768.0)
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> FloatArray:
        if self.library.espeak_SetVoiceByName(voice.encode("ascii")) != 0:
            raise MissingExtraError(f"espeak-ng has no voice {voice!r}; install its voices: apt-get install {_PACKAGE}")
        self.library.espeak_SetParameter(_RATE_PARAMETER, rate, 0)
        self.library.espeak_SetParameter(_PITCH_PARAMETER, pitch, 0)
        self.chunks = []
        encoded = text.encode("utf-8")
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        return resample(np.concatenate(self.chunks), self.rate)


@functools.cache
def _synthesiser() -> _Synthesiser:
    return _Synthesiser()


def synthesise(text: str, voice: str, rate: int = DEFAULT_RATE, pitch: int = DEFAULT_PITCH) -> FloatArray:
    """Speak `text` by a voice such as `en-us+m3`: float32 (T,) at 16 kHz. Raises MissingExtraError."""
    seed_c_random()
    return _synthesiser().speak(text, voice, rate, pitch)
