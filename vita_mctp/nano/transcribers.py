"""Judges for the closed domain: PocketSphinx that knows its words and, with the bigram, which word may follow which;
and Whisper, which knows nothing of it unless prompted, with numbers and signs written as the domain says them.

PocketSphinx's acoustic model shares nothing with ours. The bigram's sentences are right and wrong alike, so that a
wrong answer is not bent into the right one; in the word loop any word may follow any other: only the sound decides.

The language models are in ARPA text form. w a word, h the word before it, c(.) a count in the training sentences, N all
tokens, V different ones (words and `</s>`), T(h) how many different tokens follow h:

    p(w)     = (c(w) + 1) / (N + V)                               add one
    p(w | h) = (c(h w) + T(h) p(w)) / (c(h) + T(h))               Witten and Bell 1991, method C, interpolated

For a pair that was never seen the second line is its backoff weight T(h) / (c(h) + T(h)) times p(w), which is how ARPA
files state it, so that every row sums to one.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vita_mctp.evaluation.judges import PocketSphinx, Transcriber, WhisperBase
from vita_mctp.nano.domain import NUMBERS, build_domain
from vita_mctp.nano.sentences import answer_like
from vita_mctp.types import Wave

_SENTENCES = 20_000
_SENTENCES_SEED = 1
"""Not the corpus's, so that the judge is no better prepared for the sentences it will hear than for any other."""

BEGIN, END = "<s>", "</s>"
_NEVER = -99.0
"""ARPA's log10 probability of what is only ever a history."""

Probabilities = Mapping[str, float]

_PROMPT = "Seven plus five is twelve. The day after Monday is Tuesday. The capital of Spain is Madrid. Hot is not cold."
"""Says how numbers are to be written and what is spoken of."""

_SIGNS = {"+": " plus ", "=": " is ", " - ": " minus ", "−": " minus "}
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class _InWords:
    """What another transcriber hears, as the domain spells it."""

    transcriber: Transcriber

    def transcribe(self, wave: Wave) -> str:
        return in_words(self.transcriber.transcribe(wave))


def in_words(heard: str) -> str:
    """Signs and numbers as words: "7 + 5 = 12" and "1-2-3" as they are said; over twenty digit by digit."""
    for sign, word in _SIGNS.items():
        heard = heard.replace(sign, word)
    return " ".join(_DIGITS.sub(lambda match: _number(match[0]), heard).split())


def _number(digits: str) -> str:
    if int(digits) < len(NUMBERS):
        return NUMBERS[int(digits)]
    return " ".join(NUMBERS[int(digit)] for digit in digits)


@functools.cache
def whisper_transcriber() -> Transcriber:
    """Raises MissingExtraError where Whisper base is not installed."""
    return _InWords(WhisperBase())


@functools.cache
def prompted_whisper_transcriber() -> Transcriber:
    """Whisper that has read four of the domain's answers. Raises MissingExtraError where it is not installed."""
    return _InWords(WhisperBase(_PROMPT))


@functools.cache
def bigram_transcriber() -> PocketSphinx:
    """Raises MissingExtraError where PocketSphinx is not installed."""
    return PocketSphinx(domain_bigram(), build_domain().vocabulary)


@functools.cache
def word_loop_transcriber() -> PocketSphinx:
    """Raises MissingExtraError where PocketSphinx is not installed."""
    words = build_domain().vocabulary
    return PocketSphinx(word_loop_arpa(words), words)


@functools.cache
def domain_bigram() -> str:
    """The bigram of every answer of the domain, once each, among 20,000 answer-like sentences, right or wrong."""
    sentences, _ = answer_like(_SENTENCES, _SENTENCES_SEED)
    domain = build_domain()
    return bigram_arpa([*domain.answers, *sentences], domain.vocabulary)


def word_loop_arpa(vocabulary: Sequence[str]) -> str:
    """Any word after any other, each as likely as the end of the sentence: only the sound decides."""
    tokens = [*sorted(set(vocabulary)), END]
    return _arpa({token: 1 / len(tokens) for token in tokens}, {}, {})


def bigram_arpa(sentences: Iterable[str], vocabulary: Sequence[str]) -> str:
    """A Witten-Bell bigram of `sentences` (words apart by blanks) over `vocabulary`, which must hold all their words.

    Raises ValueError for a word that the vocabulary lacks.
    """
    follow: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        words = [BEGIN, *sentence.split(), END]
        for history, word in itertools.pairwise(words):
            follow[history][word] += 1
    counts = sum(follow.values(), Counter[str]())
    tokens = [*sorted(set(vocabulary)), END]
    if unknown := set(counts) - set(tokens):
        raise ValueError(f"the vocabulary lacks {', '.join(sorted(unknown))}")
    unigram = {token: (counts[token] + 1) / (counts.total() + len(tokens)) for token in tokens}
    backoff = {history: len(after) / (after.total() + len(after)) for history, after in follow.items()}
    pairs = {
        history: {
            word: (count + len(after) * unigram[word]) / (after.total() + len(after)) for word, count in after.items()
        }
        for history, after in follow.items()
    }
    return _arpa(unigram, pairs, backoff)


def _arpa(unigram: Probabilities, pairs: Mapping[str, Probabilities], backoff: Probabilities) -> str:
    rows = {1: [_row(_NEVER, BEGIN, backoff.get(BEGIN))]}
    rows[1] += [_row(math.log10(p), word, backoff.get(word)) for word, p in unigram.items()]
    if pairs:
        rows[2] = [
            _row(math.log10(p), f"{history} {word}") for history in pairs for word, p in sorted(pairs[history].items())
        ]
    header = [f"ngram {order}={len(lines)}" for order, lines in rows.items()]
    body = [line for order, lines in rows.items() for line in ("", f"\\{order}-grams:", *lines)]
    return "\n".join(["\\data\\", *header, *body, "", "\\end\\", ""])


def _row(log_probability: float, ngram: str, backoff: float | None = None) -> str:
    weight = "" if backoff is None else f" {math.log10(backoff):.6f}"
    return f"{log_probability:.6f} {ngram}{weight}"
