"""`whisper_en` against what openai/whisper documents of its normalisers.

The English cases are those of its tests/test_normalizer.py and of the lists in its whisper/normalizers/english.py.
"""

import json
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from vita_mctp.evaluation.text_scores import WordErrors, text_rule, whisper_english

pytest.importorskip("whisper_normalizer")
NUMBERS = {
    "two": "2",
    "thirty one": "31",
    "five twenty four": "524",
    "nineteen ninety nine": "1999",
    "twenty nineteen": "2019",
    "two point five million": "2500000",
    "four point two billions": "4200000000s",
    "200 thousand": "200000",
    "200 thousand dollars": "$200000",
    "$20 million": "$20000000",
    "€52.4 million": "€52400000",
    "£77 thousands": "£77000s",
    "two double o eight": "2008",
    "three thousand twenty nine": "3029",
    "forty three thousand two hundred and sixty": "43260",
    "nineteen fifties": "1950s",
    "thirty first": "31st",
    "thirty three thousand and three hundred and thirty third": "33333rd",
    "millions": "1000000s",
    "july third twenty twenty": "july 3rd 2020",
    "3 14": "3 14",
    "3 point 14": "3.14",
    "two point two five dollars": "$2.25",
    "ninety percent": "90%",
    "seventy six per cent": "76%",
    "double oh seven": "007",
    "nine one one": "911",
    "one triple oh one": "10001",
    "thirty two thousandth": "32000th",
    "minus 500": "-500",
    "positive twenty thousand": "+20000",
    "two dollars and seventy cents": "$2.70",
    "3 cents": "¢3",
    "$0.36": "¢36",
    "three euros and sixty five cents": "€3.65",
    "three and a half million": "3500000",
    "forty eight and a half dollars": "$48.5",
    "b747": "b 747",
    "10 th": "10th",
    "one": "one",
    "the ones, 1,000 of them": "the ones 1000 of them",
}
WORDS = {
    "Let's go.": "let us go",
    "he's like": "he is like",
    "she's been like": "she has been like",
    "10km": "10 km",
    "RC232": "rc 232",
    "Mr. Park visited Assoc. Prof. Kim Jr.": "mister park visited associate professor kim junior",
    "won't can't don't": "will not can not do not",
    "I'm gonna go": "i am going to go",
    "You'd have, they'll be, we're": "you would have they will be we are",
    "uh, hmm: Mm-hmm (laughs) [noise] yes": "yes",
    "The colour of the theatre's mobilisation": "the color of the theater is mobilization",
    "naïve café, Æsop": "naive cafe aesop",
    "wait ... what?!": "wait what",
    "": "",
    "?!": "",
}


@pytest.mark.parametrize(("text", "wanted"), (NUMBERS | WORDS).items())
def test_english_is_normalised_as_documented(text: str, wanted: str) -> None:
    assert whisper_english(text) == wanted


@pytest.mark.parametrize(
    ("reference", "hypothesis", "wanted"),
    [
        ("Mr. Smith paid twenty one dollars.", "mister smith paid $21", WordErrors(0, 0, 0, 4)),
        ("I'm in the theatre", "I am in a theater", WordErrors(1, 0, 0, 5)),
        ("It isn't here", "", WordErrors(0, 4, 0, 4)),
        ("yes", "uh, yes, um, hmm", WordErrors(0, 0, 0, 1)),
        ("[noise]", "one more", WordErrors(0, 0, 2, 0)),
    ],
)
def test_word_errors_follow_normalising(reference: str, hypothesis: str, wanted: WordErrors) -> None:
    assert text_rule("whisper_en").score(reference, hypothesis) == wanted


SPOKEN = st.lists(
    st.sampled_from(["one", "oh", "two", "twenty", "third", "half", "a", "and", "point", "hundred", "million", "minus"])
    | st.sampled_from(["$5", "£3.20", "1,000", "3%", "per", "cent", "can't", "he's", "colour", "Mr.", "uh", "1960s"])
    | st.sampled_from(["[x]", "(y)", "café", "-7", "..."])
    | st.text(max_size=4),
    max_size=8,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(SPOKEN)
def test_another_copy_of_whispers_normalisers_agrees(text: str) -> None:
    """transformers keeps its own, without the table of spellings, which is OpenAI's english.json."""
    spellings = json.loads((files("whisper_normalizer") / "normalizers" / "english.json").read_text())
    assert whisper_english(text) == EnglishTextNormalizer(spellings)(text).strip()
