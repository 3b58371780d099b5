"""The closed domain: what can be asked, the one right answer to it, and which sentences are never trained on.

A fact is a right answer together with every way to ask for it. All text is spelled as speech: lower-case words, no
digits, no punctuation. Everything here is a pure function of the constants below, so the held-out parts are the same
for everyone.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january february march april may june july august september october november december")
SEASON_OF = dict(
    zip(MONTHS, _words("winter winter spring spring spring summer summer summer fall fall fall winter"), strict=True)
)
OPPOSITES = (
    "hot cold, big small, happy sad, fast slow, hard soft, light dark, full empty, high low, open closed, wet dry, "
    "rich poor, young old"
)
COLORS = (
    "sky blue, grass green, snow white, coal black, blood red, banana yellow, milk white, chocolate brown, pig pink, "
    "frog green"
)
CAPITALS = (
    "france paris, italy rome, spain madrid, japan tokyo, china beijing, russia moscow, england london, egypt cairo, "
    "cuba havana"
)
YOUNG = "dog puppy, cat kitten, cow calf, sheep lamb, duck duckling, pig piglet, horse foal, bear cub"
LEGS = "dog four, cat four, cow four, horse four, duck two, frog four, bear four, spider eight, bee six"


@dataclass(frozen=True)
class QA:
    """A question, its one right answer, and the kind of knowledge it asks for."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Fact:
    """One right answer and every question that asks for it."""

    kind: str
    answer: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """The questions by part. The parts share no question; `text_only` shares no answer with the other two.

    train: asked aloud and in text. text_only: facts asked in text alone. held_out: sentences never trained on in any
    form, each about a fact that `train` asks for in other words.
    """

    train: tuple[QA, ...]
    text_only: tuple[QA, ...]
    held_out: tuple[QA, ...]

    @property
    def questions(self) -> tuple[QA, ...]:
        return self.train + self.text_only + self.held_out

    @functools.cached_property
    def answers(self) -> tuple[str, ...]:
        """Every distinct answer, sorted."""
        return tuple(sorted({qa.answer for qa in self.questions}))

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every distinct word of questions and answers, sorted."""
        return tuple(sorted({word for qa in self.questions for word in f"{qa.question} {qa.answer}".split()}))


def pairs(table: str) -> list[tuple[str, str]]:
    """The word pairs of a table written `a b, c d`."""
    return [(left, right) for left, right in (entry.split() for entry in table.split(","))]


def rank(name: str, text: str) -> str:
    """A pseudo-random sort key of `text`, the same on every machine and Python; `name` makes orders independent."""
    return hashlib.sha256(f"{name}:{text}".encode()).hexdigest()


def _fact(kind: str, answer: str, *questions: str) -> Fact:
    return Fact(kind, answer, questions)


def _arithmetic() -> Iterator[Fact]:
    for first, a in enumerate(NUMBERS):
        for second, b in enumerate(NUMBERS):
            if first + second < len(NUMBERS):
                sum_ = f"{a} plus {b}"
                questions = [f"{ask} {sum_}" for ask in ("what is", "how much is", "tell me")]
                yield _fact("addition", f"{sum_} is {NUMBERS[first + second]}", *questions, f"please add {a} and {b}")
            if first >= second:
                difference = f"{a} minus {b}"
                questions = [f"{ask} {difference}" for ask in ("what is", "how much is", "tell me")]
                answer = f"{difference} is {NUMBERS[first - second]}"
                yield _fact("subtraction", answer, *questions, f"please take {b} from {a}")


def _cycle(kind: str, noun: str, names: tuple[str, ...]) -> Iterator[Fact]:
    """Before, after and two after, on a list that starts again at its end."""
    for index, name in enumerate(names):
        for side, step in (("after", 1), ("before", -1)):
            yield _fact(
                kind,
                f"{names[(index + step) % len(names)]} comes {side} {name}",
                f"what {noun} comes {side} {name}",
                f"which {noun} comes {side} {name}",
                f"tell me the {noun} {side} {name}",
                f"what {noun} is {side} {name}",
                f"please tell me which {noun} comes {side} {name}",
            )
        yield _fact(
            kind,
            f"{names[(index + 2) % len(names)]} is two {noun}s after {name}",
            f"what is two {noun}s after {name}",
            f"which {noun} is two {noun}s after {name}",
            f"tell me what comes two {noun}s after {name}",
            f"what {noun} comes two {noun}s after {name}",
        )


def _seasons() -> Iterator[Fact]:
    for month, season in SEASON_OF.items():
        yield _fact(
            "seasons",
            f"{month} is in the {season}",
            f"what season is {month} in",
            f"which season is {month} in",
            f"tell me the season of {month}",
            f"what is the season of {month}",
            f"please tell me the season of {month}",
        )


def _opposites() -> Iterator[Fact]:
    for left, right in pairs(OPPOSITES):
        for word, other in ((left, right), (right, left)):
            yield _fact(
                "opposites",
                f"the opposite of {word} is {other}",
                f"what is the opposite of {word}",
                f"tell me the opposite of {word}",
                f"which word is the opposite of {word}",
                f"please tell me the opposite of {word}",
                f"can you tell me the opposite of {word}",
            )


def _colors() -> Iterator[Fact]:
    for thing, color in pairs(COLORS):
        yield _fact(
            "colors",
            f"the {thing} is {color}",
            f"what color is the {thing}",
            f"which color is the {thing}",
            f"tell me the color of the {thing}",
            f"what is the color of the {thing}",
            f"please tell me the color of the {thing}",
            f"can you tell me what color the {thing} is",
        )


def _capitals() -> Iterator[Fact]:
    for country, city in pairs(CAPITALS):
        yield _fact(
            "capitals",
            f"the capital of {country} is {city}",
            f"what is the capital of {country}",
            f"which city is the capital of {country}",
            f"tell me the capital of {country}",
            f"please tell me the capital of {country}",
            f"can you tell me the capital of {country}",
        )
        yield _fact(
            "capitals",
            f"{city} is in {country}",
            f"which country is {city} in",
            f"what country is {city} in",
            f"tell me the country of {city}",
            f"can you tell me which country {city} is in",
        )


def _animals() -> Iterator[Fact]:
    for animal, young in pairs(YOUNG):
        yield _fact(
            "animals",
            f"a young {animal} is a {young}",
            f"what is a young {animal}",
            f"what do you call a young {animal}",
            f"tell me what a young {animal} is",
            f"please tell me what a young {animal} is",
            f"can you tell me what you call a young {animal}",
        )
    for animal, legs in pairs(LEGS):
        yield _fact(
            "animals",
            f"a {animal} has {legs} legs",
            f"how many legs has a {animal}",
            f"tell me how many legs a {animal} has",
            f"please tell me how many legs a {animal} has",
            f"can you tell me how many legs a {animal} has",
        )


def _counting() -> Iterator[Fact]:
    for start, first in enumerate(NUMBERS):
        for length in (3, 4, 5, 6):
            run = NUMBERS[start : start + length]
            if len(run) < length:
                continue
            yield _count(run, "up")
            yield _count(run[::-1], "down")
        for side, other in (("after", start + 1), ("before", start - 1)):
            if 0 <= other < len(NUMBERS):
                yield _fact(
                    "counting",
                    f"{NUMBERS[other]} comes {side} {first}",
                    f"what number comes {side} {first}",
                    f"which number comes {side} {first}",
                    f"tell me the number {side} {first}",
                    f"what number is {side} {first}",
                )


def _count(run: tuple[str, ...], direction: str) -> Fact:
    ends = f"from {run[0]} to {run[-1]}"
    asks = (f"count {ends}", f"please count {ends}", f"count {direction} {ends}", f"can you count {ends}")
    return _fact("counting", " ".join(run), *asks)


def _talk() -> Iterator[Fact]:
    for hour in ("morning", "evening"):
        yield _fact(
            "talk",
            f"good {hour} to you",
            f"good {hour}",
            f"good {hour} nano",
            f"hello good {hour}",
            f"a good {hour} to you",
        )
    yield _fact("talk", "hello i am nano", "hello", "hello nano", "hello hello", "hello to you", "hello hello nano")
    for answer, core in (
        ("my name is nano", "what is your name"),
        ("i am a small talking machine", "what are you"),
        ("i am fine thank you", "how are you"),
        ("yes i can hear you", "can you hear me"),
        ("yes i can count to twenty", "can you count"),
        ("i can talk and count", "what can you do"),
    ):
        yield _fact(
            "talk",
            answer,
            core,
            f"{core} nano",
            f"hello {core}",
            f"hello nano {core}",
            f"good morning {core}",
            f"good evening {core}",
        )
    yield _fact(
        "talk",
        "you are welcome",
        *(
            "thank you",
            "thank you nano",
            "thank you very much",
            "thank you very much nano",
            "fine thank you",
            "good thank you",
        ),
    )
    yield _fact(
        "talk",
        "goodbye and thank you",
        "goodbye",
        "goodbye nano",
        "thank you goodbye",
        "thank you and goodbye",
        "fine goodbye",
    )


def facts() -> list[Fact]:
    """Every fact of the domain, in a fixed order."""
    sources: tuple[Iterable[Fact], ...] = (
        _arithmetic(),
        _cycle("weekdays", "day", DAYS),
        _cycle("months", "month", MONTHS),
        _seasons(),
        _opposites(),
        _colors(),
        _capitals(),
        _animals(),
        _counting(),
        _talk(),
    )
    return [fact for source in sources for fact in source]


TEXT_ONLY_SHARE = 0.06
"""Of each kind's facts, how many are asked in text alone."""

HELD_OUT_SHARE = {"addition": 0.35, "subtraction": 0.35, "counting": 0.35}
OTHER_HELD_OUT_SHARE = 0.8
"""Of the facts asked aloud, how many lose one question to `held_out`; small kinds lose more, to be measured at all."""


@functools.cache
def build_domain() -> Domain:
    """Split the facts' questions into their parts, kind by kind."""
    train, text_only, held_out = [], [], []
    by_kind: dict[str, list[Fact]] = {}
    for fact in facts():
        by_kind.setdefault(fact.kind, []).append(fact)
    for kind, members in by_kind.items():
        ordered = sorted(members, key=lambda fact: rank("fact", fact.answer))
        hidden = 0 if kind == "talk" else round(TEXT_ONLY_SHARE * len(ordered))
        losing = hidden + round(HELD_OUT_SHARE.get(kind, OTHER_HELD_OUT_SHARE) * (len(ordered) - hidden))
        for index, fact in enumerate(ordered):
            items = [
                QA(question, fact.answer, kind)
                for question in sorted(fact.questions, key=lambda q: rank("question", q))
            ]
            if index < hidden:
                text_only += items
            else:
                cut = 1 if index < losing else 0
                held_out += items[:cut]
                train += items[cut:]
    return Domain(tuple(train), tuple(text_only), tuple(held_out))
