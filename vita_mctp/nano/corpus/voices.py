"""Who speaks: one voice answers, many ask, and a few are kept for judging alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from vita_mctp.nano.corpus import espeak, flite
from vita_mctp.nano.corpus.flite import Span, Spoken

PHONES = (
    *(
        "pau",
        "aa",
        "ae",
        "ah",
        "ao",
        "aw",
        "ax",
        "ay",
        "b",
        "ch",
        "d",
        "dh",
        "eh",
        "er",
        "ey",
        "f",
        "g",
        "hh",
        "ih",
        "iy",
    ),
    *("jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh"),
)
"""The one phone inventory, flite's US English; a phone's id is its index. `pau` is a pause."""

PHONE_ID = {phone: index for index, phone in enumerate(PHONES)}


@dataclass(frozen=True)
class Voice:
    """A speaker: a synthesiser's voice at one speed and pitch.

    speed 1.0 and pitch 1.0 are the voice's own; speed multiplies the speaking rate, pitch the mean fundamental
    (flite) or espeak-ng's pitch setting.
    """

    engine: Literal["flite", "espeak"]
    base: str
    speed: float = 1.0
    pitch: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.engine}:{self.base}:{self.speed:g}:{self.pitch:g}"

    @property
    def timed(self) -> bool:
        """Whether its phones and words come with times."""
        return self.engine == "flite"


def _flite(base: str, *settings: tuple[float, float]) -> tuple[Voice, ...]:
    return tuple(Voice("flite", base, speed, pitch) for speed, pitch in settings)


ANSWER_VOICE = Voice("flite", "slt")

STATISTICAL_VOICES = (
    *_flite("slt", (1.0, 1.0), (0.85, 0.95), (1.15, 1.05), (1.0, 1.12), (1.05, 0.88)),
    *_flite("awb", (1.0, 1.0), (0.85, 1.05), (1.15, 0.95), (1.0, 1.15), (1.05, 0.88), (0.92, 1.0), (1.1, 1.08)),
)
DIPHONE_VOICES = _flite(
    "kal16", (1.0, 1.0), (0.85, 1.1), (1.15, 0.9), (1.0, 1.25), (1.05, 0.8), (0.92, 1.4), (1.1, 1.55), (0.9, 0.95)
)
ESPEAK_VOICES = tuple(
    Voice("espeak", base, speed, pitch)
    for base, speed, pitch in (
        ("en-us", 0.85, 1.0),
        ("en-us", 1.05, 1.3),
        ("en-us+m1", 0.8, 0.9),
        ("en-us+m2", 0.9, 1.1),
        ("en-us+m3", 0.85, 0.8),
        ("en-us+m4", 1.0, 1.2),
        ("en-us+m5", 0.8, 1.0),
        ("en-us+m6", 0.95, 0.9),
        ("en-us+m7", 0.9, 1.0),
        ("en-us+m8", 0.85, 1.1),
        ("en-us+f1", 0.8, 1.0),
        ("en-us+f2", 0.9, 1.2),
        ("en-us+f3", 1.0, 0.9),
        ("en-us+f5", 0.85, 1.1),
        ("en-us+linda", 0.85, 1.0),
        ("en-us+adam", 0.85, 1.0),
        ("en-us+Andrea", 0.9, 1.0),
        ("en-us+Alex", 0.85, 1.1),
        ("en-us+rob", 0.9, 0.9),
        ("en-us+steph", 0.85, 1.0),
        ("en-us+zac", 0.9, 1.0),
        ("en-us+quincy", 0.8, 1.1),
        ("en-us+grandpa", 0.9, 1.0),
        ("en-us+max", 0.85, 1.0),
        ("en-us+paul", 0.85, 0.9),
        ("en-us-nyc", 0.85, 1.0),
        ("en-us-nyc+f2", 0.9, 0.9),
        ("en-us-nyc+m3", 0.8, 1.2),
        ("en", 0.85, 1.0),
        ("en+m4", 0.9, 0.8),
        ("en+f1", 0.85, 1.2),
        ("en-gb-x-rp", 0.85, 1.1),
        ("en-gb-x-rp+f3", 0.9, 1.0),
        ("en-gb-scotland", 0.85, 1.0),
        ("en-gb-scotland+m7", 0.9, 1.0),
        ("en-029+f2", 0.85, 1.1),
    )
)
USER_VOICES = (*STATISTICAL_VOICES, *DIPHONE_VOICES, *ESPEAK_VOICES)

HELD_OUT_FLITE = _flite("rms", (1.0, 1.0), (0.9, 1.05), (1.1, 0.95))
HELD_OUT_ESPEAK = (Voice("espeak", "en-us+f4", 0.85, 1.0),)
HELD_OUT_VOICES = (*HELD_OUT_FLITE, *HELD_OUT_ESPEAK)
"""Never trained on by anything: flite's rms at any setting, and espeak-ng's variant f4."""


def speak(text: str, voice: Voice) -> Spoken:
    """Say `text`. An untimed voice's phones are those of flite's lexicon without pauses, and all its times are zero."""
    if voice.timed:
        return flite.synthesise(text, voice.base, 1.0 / voice.speed, voice.pitch)
    rate = round(espeak.DEFAULT_RATE * voice.speed)
    pitch = min(99, round(espeak.DEFAULT_PITCH * voice.pitch))
    return Spoken(espeak.synthesise(text, voice.base, rate, pitch), _lexicon_phones(text), ())


@functools.lru_cache(maxsize=8192)
def _lexicon_phones(text: str) -> tuple[Span, ...]:
    spoken = flite.synthesise(text, DIPHONE_VOICES[0].base)
    return tuple(Span(phone.name, 0.0, 0.0) for phone in spoken.phones if phone.name != flite.PAUSE)
