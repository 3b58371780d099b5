"""Sentences beyond the domain's own: answer-like ones for learning to speak, and babble for phonetic variety."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from vita_mctp.nano import domain
from vita_mctp.nano.domain import DAYS, MONTHS, NUMBERS, build_domain, pairs

HELD_OUT_SENTENCES = 300
"""How many answer-like sentences are kept for judging alone."""

_COUNTRIES, _CITIES = (list(column) for column in zip(*pairs(domain.CAPITALS), strict=True))
_THINGS, _COLOR_NAMES = (list(column) for column in zip(*pairs(domain.COLORS), strict=True))
_ANIMALS, _YOUNG_NAMES = (list(column) for column in zip(*pairs(domain.YOUNG), strict=True))
_LEGGED = [animal for animal, _ in pairs(domain.LEGS)]
_QUALITIES = [word for pair in pairs(domain.OPPOSITES) for word in pair]
_SEASONS = sorted(set(domain.SEASON_OF.values()))


_SUBJECTS = """
i can, you can, i am, you are, my name is, hello i am, good morning i am, thank you i am, yes i can
"""
_TALK_SUBJECTS = [subject.strip() for subject in _SUBJECTS.split(",")]


def _order(rng: Random) -> str:
    names = rng.choice((NUMBERS, DAYS, MONTHS, DAYS + MONTHS))
    return f"{rng.choice(names)} comes {rng.choice(('before', 'after'))} {rng.choice(names)}"


def _two_after(rng: Random) -> str:
    noun, names = rng.choice((("days", DAYS), ("months", MONTHS)))
    return f"{rng.choice(names)} is two {noun} {rng.choice(('before', 'after'))} {rng.choice(names)}"


def _arithmetic(rng: Random) -> str:
    operator = rng.choice(("plus", "minus"))
    return f"{rng.choice(NUMBERS)} {operator} {rng.choice(NUMBERS)} is {rng.choice(NUMBERS)}"


def _capital(rng: Random) -> str:
    if rng.random() < 0.5:
        return f"the capital of {rng.choice(_COUNTRIES)} is {rng.choice(_CITIES)}"
    return f"{rng.choice(_CITIES)} is in {rng.choice(_COUNTRIES)}"


def _talk(rng: Random) -> str:
    words = build_domain().vocabulary
    return f"{rng.choice(_TALK_SUBJECTS)} {' '.join(rng.choices(words, k=rng.randint(1, 3)))}"


_GRAMMAR: tuple[tuple[Callable[[Random], str], int], ...] = (
    (_arithmetic, 36),
    (lambda rng: " ".join(rng.choices(NUMBERS, k=rng.randint(3, 6))), 10),
    (_order, 14),
    (_two_after, 7),
    (lambda rng: f"{rng.choice(MONTHS)} is in the {rng.choice(_SEASONS)}", 3),
    (lambda rng: f"the opposite of {rng.choice(_QUALITIES)} is {rng.choice(_QUALITIES)}", 9),
    (lambda rng: f"the {rng.choice(_THINGS + _ANIMALS)} is {rng.choice(_COLOR_NAMES + _QUALITIES)}", 5),
    (_capital, 6),
    (lambda rng: f"a young {rng.choice(_ANIMALS + _LEGGED)} is a {rng.choice(_YOUNG_NAMES)}", 4),
    (lambda rng: f"a {rng.choice(_LEGGED + _ANIMALS + _YOUNG_NAMES)} has {rng.choice(NUMBERS[1:])} legs", 5),
    (_talk, 8),
)
"""Sentence patterns and how often, in percent-like weights; arithmetic leads because most answers are sums."""


def _stream(seed: int, banned: set[str]) -> Iterator[str]:
    """Distinct answer-like sentences without end, none of them in `banned`."""
    rng = Random(f"sentences:{seed}")
    patterns, weights = zip(*_GRAMMAR, strict=True)
    seen = set(banned)
    while True:
        sentence = rng.choices(patterns, weights)[0](rng)
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def answer_like(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """(trained, held out) sentences in the answers' style, right or wrong; none is an answer, the two share none.

    `trained` has `count` sentences, `held out` always HELD_OUT_SENTENCES; a greater count only adds at the end.
    """
    stream = _stream(seed, set(build_domain().answers))
    held_out = [next(stream) for _ in range(HELD_OUT_SENTENCES)]
    return [next(stream) for _ in range(count)], held_out


def babble(count: int, seed: int = 0) -> list[str]:
    """`count` random sequences of 3 to 7 words in which each word of the domain comes up equally often."""
    rng = Random(f"babble:{seed}")
    bag: list[str] = []
    sentences = []
    for _ in range(count):
        length = rng.randint(3, 7)
        while len(bag) < length:
            refill = list(build_domain().vocabulary)
            rng.shuffle(refill)
            bag += refill
        sentences.append(" ".join(bag[:length]))
        bag = bag[length:]
    return sentences
