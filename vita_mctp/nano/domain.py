"""The closed domain: what can be asked, the one right answer to it, and which sentences are never trained on.

A fact is a right answer together with every way to ask for it. All text is spelled as speech: lower-case words, no
digits, no punctuation. Everything here is a pure function of the constants below, so the held-out parts are the same
for everyone.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain


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


def _fact(kind: str, answer: str, asks: str) -> Fact:
    """asks: its questions, apart by commas."""
    return Fact(kind, answer, tuple(" ".join(ask.split()) for ask in asks.split(",")))


def _arithmetic() -> Iterator[Fact]:
    for first, a in enumerate(NUMBERS):
        for second, b in enumerate(NUMBERS):
            if first + second < len(NUMBERS):
                sum_ = f"{a} plus {b}"
                asks = f"what is {sum_}, how much is {sum_}, tell me {sum_}, please add {a} and {b}"
                yield _fact("addition", f"{sum_} is {NUMBERS[first + second]}", asks)
            if first >= second:
                rest = f"{a} minus {b}"
                asks = f"what is {rest}, how much is {rest}, tell me {rest}, please take {b} from {a}"
                yield _fact("subtraction", f"{rest} is {NUMBERS[first - second]}", asks)


def _cycle(kind: str, noun: str, names: tuple[str, ...]) -> Iterator[Fact]:
    """Before, after and two after, on a list that starts again at its end."""
    for index, name in enumerate(names):
        for side, step in (("after", 1), ("before", -1)):
            asks = f"""what {noun} comes {side} {name}, which {noun} comes {side} {name},
                tell me the {noun} {side} {name}, what {noun} is {side} {name},
                please tell me which {noun} comes {side} {name}"""
            yield _fact(kind, f"{names[(index + step) % len(names)]} comes {side} {name}", asks)
        asks = f"""what is two {noun}s after {name}, which {noun} is two {noun}s after {name},
            tell me what comes two {noun}s after {name}, what {noun} comes two {noun}s after {name}"""
        yield _fact(kind, f"{names[(index + 2) % len(names)]} is two {noun}s after {name}", asks)


def _seasons() -> Iterator[Fact]:
    for month, season in SEASON_OF.items():
        asks = f"""what season is {month} in, which season is {month} in, tell me the season of {month},
            what is the season of {month}, please tell me the season of {month}"""
        yield _fact("seasons", f"{month} is in the {season}", asks)


def _opposites() -> Iterator[Fact]:
    for left, right in pairs(OPPOSITES):
        for word, other in ((left, right), (right, left)):
            core = f"the opposite of {word}"
            asks = f"""what is {core}, tell me {core}, which word is {core}, please tell me {core},
                can you tell me {core}"""
            yield _fact("opposites", f"{core} is {other}", asks)


def _colors() -> Iterator[Fact]:
    for thing, color in pairs(COLORS):
        asks = f"""what color is the {thing}, which color is the {thing}, tell me the color of the {thing},
            what is the color of the {thing}, please tell me the color of the {thing},
            can you tell me what color the {thing} is"""
        yield _fact("colors", f"the {thing} is {color}", asks)


def _capitals() -> Iterator[Fact]:
    for country, city in pairs(CAPITALS):
        core = f"the capital of {country}"
        asks = f"""what is {core}, which city is {core}, tell me {core}, please tell me {core},
            can you tell me {core}"""
        yield _fact("capitals", f"{core} is {city}", asks)
        asks = f"""which country is {city} in, what country is {city} in, tell me the country of {city},
            can you tell me which country {city} is in"""
        yield _fact("capitals", f"{city} is in {country}", asks)


def _animals() -> Iterator[Fact]:
    for animal, young in pairs(YOUNG):
        core = f"a young {animal}"
        asks = f"""what is {core}, what do you call {core}, tell me what {core} is, please tell me what {core} is,
            can you tell me what you call {core}"""
        yield _fact("animals", f"{core} is a {young}", asks)
    for animal, legs in pairs(LEGS):
        core = f"how many legs a {animal} has"
        asks = f"how many legs has a {animal}, tell me {core}, please tell me {core}, can you tell me {core}"
        yield _fact("animals", f"a {animal} has {legs} legs", asks)


def _counting() -> Iterator[Fact]:
    for start, first in enumerate(NUMBERS):
        for length in (3, 4, 5, 6):
            run = NUMBERS[start : start + length]
            if len(run) == length:
                yield _count(run, "up")
                yield _count(run[::-1], "down")
        for side, other in (("after", start + 1), ("before", start - 1)):
            if 0 <= other < len(NUMBERS):
                asks = f"""what number comes {side} {first}, which number comes {side} {first},
                    tell me the number {side} {first}, what number is {side} {first}"""
                yield _fact("counting", f"{NUMBERS[other]} comes {side} {first}", asks)


def _count(run: tuple[str, ...], direction: str) -> Fact:
    ends = f"from {run[0]} to {run[-1]}"
    asks = f"count {ends}, please count {ends}, count {direction} {ends}, can you count {ends}"
    return _fact("counting", " ".join(run), asks)


_SMALL_TALK = {
    "my name is nano": "what is your name",
    "i am a small talking machine": "what are you",
    "i am fine thank you": "how are you",
    "yes i can hear you": "can you hear me",
    "yes i can count to twenty": "can you count",
    "i can talk and count": "what can you do",
}
_COURTESIES = {
    "hello i am nano": "hello, hello nano, hello hello, hello to you, hello hello nano",
    "you are welcome": """thank you, thank you nano, thank you very much, thank you very much nano, fine thank you,
        good thank you""",
    "goodbye and thank you": "goodbye, goodbye nano, thank you goodbye, thank you and goodbye, fine goodbye",
}


def _talk() -> Iterator[Fact]:
    for hour in ("morning", "evening"):
        asks = f"good {hour}, good {hour} nano, hello good {hour}, a good {hour} to you"
        yield _fact("talk", f"good {hour} to you", asks)
    for answer, core in _SMALL_TALK.items():
        asks = f"""{core}, {core} nano, hello {core}, hello nano {core}, good morning {core}, good evening {core}"""
        yield _fact("talk", answer, asks)
    for answer, asks in _COURTESIES.items():
        yield _fact("talk", answer, asks)


def facts() -> list[Fact]:
    """Every fact of the domain, in a fixed order."""
    cycles = (_cycle("weekdays", "day", DAYS), _cycle("months", "month", MONTHS))
    others = (_seasons(), _opposites(), _colors(), _capitals(), _animals(), _counting(), _talk())
    return [*chain(_arithmetic(), *cycles, *others)]


TEXT_ONLY_FRACTION = 0.06
"""Of each kind's facts, how many are asked in text alone."""

HELD_OUT_FRACTION = {"addition": 0.35, "subtraction": 0.35, "counting": 0.35}
OTHER_HELD_OUT_FRACTION = 0.8
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
        hidden = 0 if kind == "talk" else round(TEXT_ONLY_FRACTION * len(ordered))
        losing = hidden + round(HELD_OUT_FRACTION.get(kind, OTHER_HELD_OUT_FRACTION) * (len(ordered) - hidden))
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
