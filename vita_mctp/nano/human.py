"""A real human asks nano: sums and series spliced from words that one speaker recorded.

The recordings are Debian's package asterisk-core-sounds-en-g722 (CC-BY-SA 3.0). They are read where the package puts
them, or in the folder that ASTERISK_SOUNDS names. Nothing of them is shipped, and no model is trained on them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from vita_mctp.audio import write_wave
from vita_mctp.audio.io import ffmpeg
from vita_mctp.errors import ConfigError
from vita_mctp.evaluation.benchmarks import ASR, SQA, Benchmark, Case, answer_case, transcribe_case
from vita_mctp.nano.cases import BY_LOOP, JUDGE
from vita_mctp.nano.domain import DAYS, MONTHS, NUMBERS, build_domain
from vita_mctp.nano.recordings import splice
from vita_mctp.types import FloatArray

PACKAGE = "asterisk-core-sounds-en-g722"
_FOLDER = "/usr/share/asterisk/sounds/en_US_f_Allison"
_FILES = {
    **{word: f"digits/{number}" for number, word in enumerate(NUMBERS)},
    **{word: f"digits/day-{(number + 1) % 7}" for number, word in enumerate(DAYS)},  # day-0 is sunday
    **{word: f"digits/mon-{number}" for number, word in enumerate(MONTHS)},
    "plus": "letters/plus",
    "minus": "digits/minus",
}
_BETWEEN = 0.08
"""Seconds between two words."""


def texts() -> list[tuple[str, str]]:
    """(kind, text): sixty sums whose answers are in the domain, then series of days, months and numbers."""
    rng = Random("human")
    answers = set(build_domain().answers)
    sums = [
        (kind, f"{one} {sign} {other}")
        for kind, sign in (("addition", "plus"), ("subtraction", "minus"))
        for one in NUMBERS
        for other in NUMBERS
        if any(answer.startswith(f"{one} {sign} {other} is ") for answer in answers)
    ]
    found = rng.sample(sums, 60)
    for kind, words in (("weekdays", DAYS), ("months", MONTHS)):
        found += [(kind, " ".join(rng.sample(words, 3))) for _ in range(20)]
    return found + [("counting", " ".join(NUMBERS[start : start + 4])) for start in range(len(NUMBERS) - 3)]


def make_cases(folder: Path, part: str, limit: int | None) -> Iterator[Case]:
    """ "transcribed questions": all of `texts`; "questions": the sums, with their answers. WAV files go to `folder`.

    Raises ConfigError where the package or ffmpeg is missing.
    """
    chosen = [(kind, text) for kind, text in texts() if part != "questions" or kind in ("addition", "subtraction")]
    answers = {answer.partition(" is ")[0]: answer for answer in build_domain().answers}
    folder.mkdir(parents=True, exist_ok=True)
    for number, (kind, text) in enumerate(chosen[:limit]):
        path = folder / f"human-{number:03d}.wav"
        write_wave(path, splice([_word(word) for word in text.split()], _BETWEEN))
        if part == "questions":
            yield answer_case(path.stem, path, text, (answers[text],), kind=kind)
        else:
            yield transcribe_case(path.stem, path, text, kind=kind)


@cache
def _word(word: str) -> FloatArray:
    path = Path(os.environ.get("ASTERISK_SOUNDS", _FOLDER)) / f"{_FILES[word]}.g722"
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing; wanted: Debian's recordings of a human; do `apt-get install {PACKAGE}`, or unpack "
            "that package and let ASTERISK_SOUNDS name its folder that has `digits` in it"
        )
    command = [ffmpeg(path.name), "-v", "error", "-nostdin", "-f", "g722", "-i", str(path), "-f", "f32le", "pipe:1"]
    samples = np.frombuffer(subprocess.run(command, capture_output=True).stdout, np.float32)  # of 16 kHz, mono
    if not samples.any():
        raise ConfigError(f"{path} holds no sound; wanted: a word in G.722; install {PACKAGE} again")
    return samples


def _benchmark(task: str, part: str, samples: int, rules: tuple[str, ...], judges: tuple[str, ...] = ()) -> Benchmark:
    licence, tags = "CC-BY-SA 3.0", ("kind",)
    return Benchmark(
        f"nano-human-{task}", task, "en", PACKAGE, part, licence, samples, rules, judges, maker=make_cases, tags=tags
    )


BENCHMARKS = (
    _benchmark(ASR, "transcribed questions", 118, ("plain",)),
    _benchmark(SQA, "questions", 60, ("exact", "plain"), (JUDGE, BY_LOOP)),
)
