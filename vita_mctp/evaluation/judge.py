"""An independent listener: what a recogniser that has never met our model hears in a wave.

It is PocketSphinx with the US English acoustic model of its own package. Of the domain it knows the words and, in the
bigram's case, which word may follow which in sentences of the answers' style; these are right and wrong alike, so a
wrong answer is not bent into the right one.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vita_mctp.audio import resample
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.evaluation.language_model import bigram_arpa, word_loop_arpa
from vita_mctp.nano.corpus.domain import build_domain
from vita_mctp.nano.corpus.sentences import answer_like
from vita_mctp.types import Wave

SAMPLE_RATE = 16_000
_LANGUAGE_MODEL_SENTENCES = 20_000
_LANGUAGE_MODEL_SEED = 1
"""Not the corpus's, so that the judge is no better prepared for the sentences it will hear than for any other."""

_PADDING_SECONDS = 0.15
_DITHER = 3e-4
"""Silence around each wave and a noise floor of -70 dBFS under it, as in the recordings the recogniser knows."""


class Listener(Protocol):
    """Wave -> lower-case words apart by blanks; nothing heard is an empty text."""

    def transcribe(self, wave: Wave) -> str: ...


@dataclass(frozen=True)
class Heard:
    """One wave's transcripts. bigram: helped by the domain's sentences; loop: any word may follow any other."""

    bigram: str
    loop: str


class PocketSphinx:
    """PocketSphinx with a language model in ARPA text. Each wave is heard alone: no state is carried to the next.

    Without one it takes the US English model and dictionary of its own package.
    Raises MissingExtraError where the package is not installed, ConfigError for words that its dictionary lacks.
    """

    def __init__(self, arpa: str | None = None, vocabulary: Sequence[str] = ()) -> None:
        if find_spec("pocketsphinx") is None:
            raise MissingExtraError("judging needs pocketsphinx, which is missing: pip install 'vita-mctp[eval]'")
        from pocketsphinx import Decoder, get_model_path

        if arpa is None:
            self._decoder: Any = Decoder(logfn=os.devnull, cmn="batch")
            return
        lexicon = _pronunciations(Path(get_model_path("en-us/cmudict-en-us.dict")), vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            model, dictionary = Path(folder) / "domain.arpa", Path(folder) / "domain.dict"
            model.write_text(arpa)
            dictionary.write_text(lexicon)
            self._decoder = Decoder(lm=str(model), dict=str(dictionary), logfn=os.devnull, cmn="batch")

    def transcribe(self, wave: Wave) -> str:
        if not len(wave.samples):
            return ""
        self._decoder.start_utt()
        self._decoder.process_raw(_pcm(wave), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return "" if hypothesis is None else hypothesis.hypstr


def _pronunciations(dictionary: Path, vocabulary: Sequence[str]) -> str:
    """The lines of `word phones` and `word(2) phones` that the vocabulary needs: a small dictionary loads at once."""
    wanted, found, lines = set(vocabulary), set(), []
    for line in dictionary.read_text(encoding="utf-8").splitlines():
        word = line.split(maxsplit=1)[0].split("(")[0]
        if word in wanted:
            found.add(word)
            lines.append(line)
    if missing := sorted(wanted - found):
        raise ConfigError(f"PocketSphinx's dictionary lacks {', '.join(missing)}; leave them out of the vocabulary")
    return "\n".join(lines) + "\n"


def _pcm(wave: Wave) -> bytes:
    """16-bit mono at 16 kHz; the same bytes for the same wave."""
    samples = np.pad(resample(wave, SAMPLE_RATE).samples, round(_PADDING_SECONDS * SAMPLE_RATE))
    dithered = samples + np.random.default_rng(0).normal(0, _DITHER, len(samples))
    return (np.clip(dithered, -1, 1) * 32767).astype("<i2").tobytes()


class Judge:
    """Hears each wave twice: with the bigram of the domain (its errors are WER2) and in a word loop (WER1)."""

    def __init__(self, bigram: Listener, loop: Listener) -> None:
        self._bigram, self._loop = bigram, loop

    @classmethod
    def of_domain(cls) -> Judge:
        """Raises MissingExtraError where PocketSphinx is not installed."""
        words = build_domain().vocabulary
        return cls(PocketSphinx(domain_bigram(), words), PocketSphinx(word_loop_arpa(words), words))

    def hear(self, wave: Wave) -> Heard:
        return Heard(self._bigram.transcribe(wave), self._loop.transcribe(wave))


@functools.cache
def domain_bigram() -> str:
    """The bigram of every answer of the domain, once each, among 20,000 answer-like sentences, right or wrong."""
    sentences, _ = answer_like(_LANGUAGE_MODEL_SENTENCES, _LANGUAGE_MODEL_SEED)
    domain = build_domain()
    return bigram_arpa([*domain.answers, *sentences], domain.vocabulary)
