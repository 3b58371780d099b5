"""Debian's speech synthesisers through their shared libraries: flite and espeak-ng.

flite tells the end time of every phone and word; espeak-ng has many cheap voices and no times.

flite's excitation noise comes from the C library's `rand`; seeding it before each call makes a voice repeat itself
exactly on one machine. Waves are not bit-equal across machines, so nothing may depend on their exact samples.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np

from vita_mctp.audio import resample
from vita_mctp.errors import MissingExtraError
from vita_mctp.types import FloatArray, Wave

SAMPLE_RATE = 16_000
"""Every synthesiser here hands out mono float32 at this rate (Hz)."""

FLITE_VOICES = ("slt", "rms", "awb", "kal16")

PAUSE = "pau"

_STRETCH = b"duration_stretch"
_MEAN_F0 = b"int_f0_target_mean"
_F0_SHIFT = b"f0_shift"


@dataclass(frozen=True)
class Span:
    """A phone or a word and where it sounds, in seconds from the first sample."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Spoken:
    """One utterance: float32 samples of shape (T,) at `SAMPLE_RATE`, its phones (pauses included) and its words."""

    samples: FloatArray
    phones: tuple[Span, ...]
    words: tuple[Span, ...]


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _Voice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


def load_library(name: str, package: str) -> ctypes.CDLL:
    """Load shared library `name`; MissingExtraError names the Debian `package` that holds it."""
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MissingExtraError(
            f"the speech synthesiser's library {name} cannot be loaded ({error}); install it: apt-get install {package}"
        ) from error


def seed_c_random() -> None:
    """Seed the C library's `rand`, which both synthesisers draw their noise from."""
    ctypes.CDLL(None).srand(1)


@functools.cache
def _flite() -> ctypes.CDLL:
    """libflite with its argument types declared, initialised once in this process."""
    library = load_library("libflite.so.1", "libflite1")
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures = {
        "flite_init": ([], ctypes.c_int),
        "flite_synth_text": ([text, pointer], pointer),
        "utt_wave": ([pointer], ctypes.POINTER(_Wave)),
        "utt_relation": ([pointer, text], pointer),
        "relation_head": ([pointer], pointer),
        "item_next": ([pointer], pointer),
        "item_feat_string": ([pointer, text], text),
        "ffeature_string": ([pointer, text], text),
        "ffeature_float": ([pointer, text], ctypes.c_float),
        "feat_set_float": ([pointer, text, ctypes.c_float], None),
        "feat_float": ([pointer, text], ctypes.c_float),
        "feat_present": ([pointer, text], ctypes.c_int),
        "delete_utterance": ([pointer], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    library.flite_init()
    return library


@functools.cache
def _flite_voice(name: str) -> tuple[int, float | None]:
    """The address of a registered voice, and its mean pitch (Hz) if it is a diphone voice, else None."""
    if name not in FLITE_VOICES:
        raise ValueError(f"flite voice wants one of {', '.join(FLITE_VOICES)}, got {name!r}")
    library = _flite()
    for shared in ("usenglish", "cmulex"):
        load_library(f"libflite_{shared}.so.1", "libflite1")
    register = getattr(load_library(f"libflite_cmu_us_{name}.so.1", "libflite1"), f"register_cmu_us_{name}")
    register.argtypes, register.restype = [ctypes.c_char_p], ctypes.c_void_p
    address: int = register(None)
    features = _features(address)
    return address, float(library.feat_float(features, _MEAN_F0)) if library.feat_present(features, _MEAN_F0) else None


def _features(address: int) -> int:
    """The address of a voice's feature list."""
    features: int = ctypes.cast(address, ctypes.POINTER(_Voice)).contents.features
    return features


def _items(library: ctypes.CDLL, utterance: int, relation: str) -> list[int]:
    """Addresses of a relation's items, in order of time."""
    items = []
    item = library.relation_head(library.utt_relation(utterance, relation.encode()))
    while item:
        items.append(item)
        item = library.item_next(item)
    return items


def _phones(library: ctypes.CDLL, utterance: int) -> tuple[Span, ...]:
    spans, start = [], 0.0
    for item in _items(library, utterance, "Segment"):
        end = float(library.ffeature_float(item, b"end"))
        spans.append(Span(library.item_feat_string(item, b"name").decode(), start, end))
        start = end
    return tuple(spans)


def _words(library: ctypes.CDLL, utterance: int) -> tuple[Span, ...]:
    """The words' spans; flite writes a letter read by its name, such as a closing `a`, with an underscore before it."""
    first = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
    last = b"R:SylStructure.daughtern.daughtern.R:Segment.end"
    return tuple(
        Span(
            library.item_feat_string(item, b"name").decode().lstrip("_"),
            float(library.ffeature_float(item, first)),
            float(library.ffeature_float(item, last)),
        )
        for item in _items(library, utterance, "Word")
    )


def speak_flite(text: str, voice: str, stretch: float = 1.0, pitch: float = 1.0) -> Spoken:
    """Speak `text`; `stretch` multiplies durations, `pitch` the voice's mean fundamental. Raises MissingExtraError."""
    library = _flite()
    address, mean_f0 = _flite_voice(voice)
    library.feat_set_float(_features(address), _STRETCH, stretch)
    if mean_f0 is None:
        library.feat_set_float(_features(address), _F0_SHIFT, pitch)
    else:
        library.feat_set_float(_features(address), _MEAN_F0, mean_f0 * pitch)
    seed_c_random()
    utterance = library.flite_synth_text(text.encode("ascii"), address)
    try:
        wave = library.utt_wave(utterance).contents
        pcm = np.ctypeslib.as_array(wave.samples, shape=(wave.num_samples,)).astype(np.float32) / 32768.0
        rate = wave.sample_rate
        phones, words = _phones(library, utterance), _words(library, utterance)
    finally:
        library.delete_utterance(utterance)
    return Spoken(resample(Wave(pcm, rate), SAMPLE_RATE).samples, phones, words)


ESPEAK_RATE = 175
"""Words per minute, espeak-ng's own default."""

ESPEAK_PITCH = 50
"""On espeak-ng's scale of 0..99."""

_ESPEAK_PACKAGE = "libespeak-ng1 espeak-ng-data"
_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_RATE_PARAMETER, _PITCH_PARAMETER = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Espeak:
    """The library's one global state: its sample rate and the chunks its callback has handed out."""

    def __init__(self) -> None:
        self.library = load_library("libespeak-ng.so.1", _ESPEAK_PACKAGE)
        text, size, flags, pointer = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p
        self.library.espeak_Synth.argtypes = [text, size, flags, ctypes.c_int, flags, flags, pointer, pointer]
        self.library.espeak_TextToPhonemes.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
        self.library.espeak_TextToPhonemes.restype = text
        self.rate: int = self.library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        if self.rate <= 0:
            raise MissingExtraError(f"espeak-ng finds no voice data; install it: apt-get install {_ESPEAK_PACKAGE}")
        self.chunks: list[FloatArray] = []
        self._callback = _CALLBACK(self._receive)  # the library keeps only a pointer to it
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).astype(np.float32) / 32768.0)
        return 0

    def choose(self, voice: str) -> None:
        if self.library.espeak_SetVoiceByName(voice.encode("ascii")) != 0:
            raise MissingExtraError(
                f"espeak-ng has no voice {voice!r}; install its voices: apt-get install {_ESPEAK_PACKAGE}"
            )

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> FloatArray:
        self.choose(voice)
        self.library.espeak_SetParameter(_RATE_PARAMETER, rate, 0)
        self.library.espeak_SetParameter(_PITCH_PARAMETER, pitch, 0)
        self.chunks = []
        encoded = text.encode("utf-8")
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        return resample(Wave(np.concatenate(self.chunks), self.rate), SAMPLE_RATE).samples


@functools.cache
def _espeak() -> _Espeak:
    return _Espeak()


def speak_espeak(text: str, voice: str, rate: int = ESPEAK_RATE, pitch: int = ESPEAK_PITCH) -> FloatArray:
    """Speak `text` by a voice such as `en-us+m3`: float32 (T,) at 16 kHz. Raises MissingExtraError."""
    seed_c_random()
    return _espeak().speak(text, voice, rate, pitch)


def espeak_library(voice: str) -> ctypes.CDLL:
    """libespeak-ng with a voice chosen, for its phonemes. Raises MissingExtraError."""
    _espeak().choose(voice)
    return _espeak().library
