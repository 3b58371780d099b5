"""Text as it is spoken, and that a model never speaks something else without a word."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_mctp import SpeechLM
from vita_mctp.cli import main
from vita_mctp.errors import ConfigError
from vita_mctp.text.spoken_form import spoken_form


@pytest.fixture(scope="module")
def nano() -> SpeechLM:
    return SpeechLM.from_pretrained("nano")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("7 + 6 = 13", "seven plus six is thirteen"),
        ("Seven plus six is thirteen.", "seven plus six is thirteen"),
        ("20-13=7", "twenty minus thirteen is seven"),
        ("-5 degrees", "minus five degrees"),
        (
            "1,234,567",
            "one million two hundred thirty four thousand five hundred sixty seven",
        ),
        ("3.14 or 0.05%", "three point one four or zero point zero five percent"),
        ("$5.20, £1 and €3.01", "five dollars and twenty cents one pound and three euros and one cent"),
        ("at 3:30, 15:05 or 7:00", "at three thirty fifteen oh five or seven o'clock"),
        ("on 2026-11-30 or 2000-01-02", "on november thirtieth twenty twenty six or january second two thousand"),
        ("the 1st, 22nd and 40th", "the first twenty second and fortieth"),
        ("I’m well-known; 'quoted'!", "i'm well known quoted"),
        ("12345678901234567890", "one two three four five six seven eight nine zero " * 2),
        ("GRÜN 4x4", "grün four x four"),
        ("...!?", ""),
    ],
)
def test_written_text_becomes_words(written: str, spoken: str) -> None:
    assert spoken_form(written) == spoken.strip()


@given(st.text())
def test_any_text_becomes_words_alone(text: str) -> None:
    words = spoken_form(text)
    assert spoken_form(words) == words and all(word.strip("'") == word and not word.isdigit() for word in words.split())


def test_nano_says_what_is_written_in_digits(nano: SpeechLM, caplog: pytest.LogCaptureFixture) -> None:
    assert nano.say("7 + 6 = 13").done.codes == nano.say("seven plus six is thirteen").done.codes
    assert nano.chat("What is 7 plus 6?") == nano.chat("what is seven plus six") == "seven plus six is thirteen"
    assert caplog.text == ""


def test_words_that_were_never_taught_are_named_once(nano: SpeechLM, caplog: pytest.LogCaptureFixture) -> None:
    nano.say("The zebra and the quagga, a zebra!", max_new_tokens=40)
    (first, *_) = caplog.records
    assert first.levelno == logging.WARNING and "zebra, quagga" in first.getMessage()
    assert first.getMessage().count("zebra") == 1


def test_what_is_spoken_instead_is_said(nano: SpeechLM, caplog: pytest.LogCaptureFixture) -> None:
    answer = nano.say("please take two from ten")
    assert answer.text != "please take two from ten"  # it answers as it was taught to; should this hold, take another
    assert len(caplog.records) == 1 and answer.text in caplog.text
    assert list(nano.stream("please take two from ten", "tts")) and len(caplog.records) == 1  # who streams compares


def test_a_text_without_words_is_refused(nano: SpeechLM) -> None:
    with pytest.raises(ConfigError, match="no words"):
        nano.say("?!")


def test_other_models_get_the_text_as_it_is(tiny_speech_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = SpeechLM.from_pretrained(tiny_speech_folder)
    question = model.prompt("Zebra 7!", "tts").question
    events = model.stream("Zebra 7!", "tts", max_new_tokens=3)
    assert list(events)[-1].turns[0] == question and caplog.text == ""  # type: ignore[union-attr]


def test_the_command_warns_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["say", "a zebra has four legs", "-o", str(tmp_path / "a.wav")]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert errors and all(line.startswith("vita-mctp: warning: ") for line in errors) and "zebra" in errors[0]
