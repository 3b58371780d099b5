"""English text as it is spoken: words in lower case, numbers and signs written out, nothing else.

For models that were taught plain words alone (`spoken_words` in speech.json). No library: num2words brings docopt,
which has no wheel, into every install.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = ("", "", *_words("twenty thirty forty fifty sixty seventy eighty ninety"))
_POWERS = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_MONTHS = _words("january february march april may june july august september october november december")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
_FULL_HOUR = "o'clock"
_LONGEST = 15
"""Digits of a number that is read as one; a longer one is read digit by digit."""


def cardinal(number: int) -> str:
    """A number in [0, 10^15) in words."""
    for power, name in _POWERS:
        if number >= power:
            rest = f" {cardinal(number % power)}" if number % power else ""
            return f"{cardinal(number // power)} {name}{rest}"
    if number < len(_ONES):
        return _ONES[number]
    return _TENS[number // 10] + (f" {_ONES[number % 10]}" if number % 10 else "")


def ordinal(number: int) -> str:
    """As `cardinal`, counting."""
    *before, last = cardinal(number).split()
    stem = f"{last[:-1]}ie" if last.endswith("y") else last
    return " ".join([*before, _ORDINALS.get(last, f"{stem}th")])


def spoken_form(text: str) -> str:
    """Words of letters and apostrophes, apart by blanks; empty where nothing can be spoken."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    for pattern, written_out in _RULES:
        text = pattern.sub(written_out, text)
    words = (word.strip("'") for word in re.findall(r"[^\W\d_](?:[^\W_]|')*", text.lower()))
    return " ".join(word for word in words if word)


def untaught(words: str, taught: Iterable[str]) -> list[str]:
    """Those of a spoken form that are not among the taught ones, each once, in their order."""
    known = set(taught)
    return [word for word in dict.fromkeys(words.split()) if word not in known]


def _digits(digits: str) -> str:
    return " ".join(_ONES[int(digit)] for digit in digits)


def _number(match: re.Match[str]) -> str:
    whole, fraction = match["whole"].replace(",", ""), match["fraction"]
    words = cardinal(int(whole)) if len(whole) <= _LONGEST else _digits(whole)
    return f" {words} {f'point {_digits(fraction)}' if fraction else ''} "


def _money(match: re.Match[str]) -> str:
    name, small = _CURRENCIES[match["sign"]]
    whole, cents = match["whole"].replace(",", ""), int((match["fraction"] or "0").ljust(2, "0")[:2])
    words = f" {whole} {name}{'' if int(whole) == 1 else 's'} "
    plural = "pence" if small == "penny" else f"{small}s"
    return words + (f"and {cents} {small if cents == 1 else plural} " if cents else "")


def _time(match: re.Match[str]) -> str:
    hour, minute = int(match["hour"]), int(match["minute"])
    minutes = f"oh {minute}" if minute < 10 else f"{minute}"
    return f" {hour} {minutes if minute else _FULL_HOUR} "


def _date(match: re.Match[str]) -> str:
    return f" {_MONTHS[int(match['month']) - 1]} {ordinal(int(match['day']))} {_year(int(match['year']))} "


def _year(year: int) -> str:
    century, rest = divmod(year, 100)
    if year % 1000 < 10:
        return cardinal(year)
    return f"{cardinal(century)} {cardinal(rest) if rest >= 10 else f'oh {cardinal(rest)}' if rest else 'hundred'}"


_NUMBER = r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.(?P<fraction>\d+))?"
_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\b(?P<year>[12]\d{3})-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])\b", re.ASCII), _date),
    (re.compile(rf"(?P<sign>[$€£])\s?{_NUMBER}", re.ASCII), _money),
    (re.compile(r"\b(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)\b", re.ASCII), _time),
    (
        re.compile(r"\b(\d{1,15})(?:st|nd|rd|th)\b", re.ASCII | re.IGNORECASE),
        lambda match: f" {ordinal(int(match[1]))} ",
    ),
    (re.compile(r"(?<=\d)\s*[-−]\s*(?=\d)|(?<!\w)[-−](?=\d)|(?<=\s)[-−](?=\s*\d)", re.ASCII), " minus "),
    (re.compile(_NUMBER, re.ASCII), _number),
    (re.compile(r"%"), " percent "),
    (re.compile(r"\+"), " plus "),
    (re.compile(r"="), " is "),
    (re.compile(r"[×*]"), " times "),
    (re.compile(r"÷"), " divided by "),
    (re.compile(r"&"), " and "),
)
