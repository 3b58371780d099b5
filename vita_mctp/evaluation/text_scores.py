"""Word and character error rates by the rules of the field's public scripts, each under a name.

A rule normalises both texts, which gives tokens apart by blanks, counts edits (Levenshtein, by jiwer) and says how a
data set's rate comes of them: pooled edits over pooled reference length, or the mean of the samples' own rates.
docs/scoring.md names each rule's script.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import regex

from vita_mctp.environment import require, versions
from vita_mctp.errors import ConfigError

Normaliser = Callable[[str], str]


@dataclass(frozen=True)
class WordErrors:
    """The edits that turn a reference into a hypothesis, and the reference's number of words (or characters).

    reference, hypothesis: one sample's texts as they were compared, tokens apart by blanks.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    reference: str = field(default="", compare=False)
    hypothesis: str = field(default="", compare=False)

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits for each reference word; with no reference words, the number of words inserted, as jiwer has it."""
        return self.total / (self.reference_words or 1)


@dataclass(frozen=True)
class TextRule:
    """How texts are compared. hypothesis: the normaliser of what was heard or written, where it differs.

    by_sample: a data set's rate is the mean of its samples' rates, not edits over length. extra, packages: what it
    needs beside jiwer. revision: ours, raised whenever any sample's score changes.
    """

    name: str
    normalise: Normaliser
    normalise_hypothesis: Normaliser | None = None
    by_sample: bool = False
    extra: str = "eval"
    packages: tuple[str, ...] = ()
    revision: int = 1

    @property
    def version(self) -> str:
        return f"{self.name}/{self.revision} ({versions('jiwer', *self.packages)})"

    def score(self, reference: str, hypothesis: str) -> WordErrors:
        """A sample that failed is scored with an empty hypothesis: every reference word is deleted."""
        import jiwer

        said, heard = self.normalise(reference), (self.normalise_hypothesis or self.normalise)(hypothesis)
        edits = jiwer.process_words(said, heard)
        said, heard = (" ".join(side[0]) for side in (edits.references, edits.hypotheses))
        counts = (edits.substitutions, edits.deletions, edits.insertions)
        return WordErrors(*counts, len(edits.references[0]), said, heard)

    def fraction(self, errors: WordErrors) -> tuple[float, int]:
        """A sample's (part, whole): a data set's rate is sum(part) / sum(whole)."""
        return (errors.rate, 1) if self.by_sample else (errors.total, errors.reference_words)


_WENET_DROPPED = "!,?、。！，；？：「」︰『』《》"
_WENET_TOKEN = regex.compile(
    rf"""
    (?: [{_WENET_DROPPED} \t\r\n] | \p{{Zs}} | \p{{Cn}} )
    | (?P<token> \p{{Lo}} | < [\x00-\x7F--\ \t\r\n>]* >? | (?s:.) [\x00-\x7F--\ \t\r\n]* )
    """,
    regex.VERBOSE | regex.VERSION1,
)
_TAG = re.compile("<[^>]*>?")


def plain(text: str) -> str:
    """Lower-case words without punctuation; apostrophes and digits stay."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def same_text(reference: str, hypothesis: str) -> bool:
    """Whether two texts are the same words in the same order; an empty hypothesis is never right."""
    return plain(hypothesis) != "" and plain(reference) == plain(hypothesis)


def whisper_english(text: str) -> str:
    """Whisper's English normaliser: numbers as digits, American spelling, contractions apart, fillers dropped."""
    return str(_whisper_english()(text)).strip()


@functools.cache
def _whisper_english() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def wenet_characters(text: str) -> str:
    """WeNet's `--char=1`: each letter without case (Han, for one) is a token, and so is each run of ASCII, in capitals.

    Punctuation is dropped where it starts a token and kept inside a run; tags in <> are dropped.
    """
    tokens = (match["token"] for match in _WENET_TOKEN.finditer(text) if match["token"])
    return " ".join(token for token in (_TAG.sub("", token.upper()) for token in tokens) if token)


def seed_tts_english(text: str) -> str:
    """Lower case, every Chinese and ASCII punctuation mark removed (not replaced by a blank) but the apostrophe."""
    return text.translate(_seed_tts_punctuation()).lower()


def seed_tts_chinese(text: str) -> str:
    """Characters apart by blanks, punctuation removed as in English; Latin letters keep their case."""
    return " ".join(text.translate(_seed_tts_punctuation()))


@functools.cache
def _seed_tts_punctuation() -> dict[int, None]:
    from zhon.hanzi import punctuation

    return dict.fromkeys(map(ord, (punctuation + string.punctuation).replace("'", "")))


def _simplified_seed_tts_chinese(text: str) -> str:
    import zhconv

    return seed_tts_chinese(zhconv.convert(text, "zh-cn"))


_RULES: Mapping[str, TextRule] = {
    rule.name: rule
    for rule in (
        TextRule("plain", plain),
        TextRule("whisper_en", whisper_english, packages=("whisper_normalizer",)),
        TextRule("zh_cer", wenet_characters),
        TextRule("seed_tts_en", seed_tts_english, None, by_sample=True, extra="zh", packages=("zhon",)),
        TextRule("seed_tts_zh", seed_tts_chinese, _simplified_seed_tts_chinese, True, "zh", ("zhon", "zhconv")),
    )
}
TEXT_RULES = tuple(_RULES)


def text_rule(name: str) -> TextRule:
    """Raises ConfigError for an unknown name, MissingExtraError for a rule whose packages are not installed."""
    if name not in _RULES:
        raise ConfigError(f"there is no text rule {name!r}; choose one of {', '.join(TEXT_RULES)}")
    rule = _RULES[name]
    require("counting word errors", "eval", "jiwer")
    require(f"the rule {name}", rule.extra, *rule.packages)
    return rule
