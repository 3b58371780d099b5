"""The independent judge hears the answer voice rightly, each wave by itself, and silence as nothing."""

from importlib import util
from pathlib import Path

import numpy as np
import pytest

from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.evaluation import judge as judging
from vita_mctp.evaluation.judge import Heard, Judge, PocketSphinx, domain_bigram
from vita_mctp.evaluation.language_model import word_loop_arpa
from vita_mctp.nano.corpus.flite import SAMPLE_RATE
from vita_mctp.nano.corpus.voices import ANSWER_VOICE, speak
from vita_mctp.types import Wave

RIGHT, WRONG = "seven plus three is ten", "seven plus three is nineteen"


def said(text: str) -> Wave:
    return Wave(speak(text, ANSWER_VOICE).samples, SAMPLE_RATE)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.of_domain()


@pytest.mark.parametrize("text", [RIGHT, "thursday comes after wednesday", "london is in england"])
def test_the_answer_voice_is_heard_word_for_word(judge: Judge, text: str) -> None:
    assert judge.hear(said(text)) == Heard(text, text)


def test_a_wrong_answer_is_not_heard_as_the_right_one(judge: Judge) -> None:
    assert judge.hear(said(WRONG)).bigram == WRONG


def test_another_rate_is_heard_too(judge: Judge) -> None:
    wave = said(RIGHT)
    doubled = Wave(np.repeat(wave.samples, 2), 2 * SAMPLE_RATE)
    assert judge.hear(doubled).bigram == RIGHT


def test_what_was_heard_before_plays_no_part(judge: Judge) -> None:
    first = judge.hear(said(RIGHT))
    judge.hear(Wave(said("cairo is in egypt").samples * np.float32(0.1), SAMPLE_RATE))
    assert judge.hear(said(RIGHT)) == first


@pytest.mark.parametrize("seconds", [0.0, 1 / SAMPLE_RATE, 0.5])
def test_nothing_and_silence_hold_no_answer(judge: Judge, seconds: float) -> None:
    heard = judge.hear(Wave(np.zeros(round(seconds * SAMPLE_RATE), np.float32), SAMPLE_RATE))
    assert len(heard.bigram.split()) <= 1
    assert seconds > 0 or heard == Heard("", "")


def test_no_sentence_makes_the_right_sum_likelier() -> None:
    """After "is" the bigram must not know which number the sum calls for: the words before are out of its sight."""
    rows = [line.split() for line in domain_bigram().splitlines() if line.count(" ") == 2]
    after_is = {word: float(p) for p, history, word in rows if history == "is"}
    assert {"ten", "nineteen", "zero"} <= set(after_is)
    assert abs(after_is["ten"] - after_is["nineteen"]) < 0.3


def test_words_without_pronunciation_are_named() -> None:
    with pytest.raises(ConfigError, match="lacks qwxzzy"):
        PocketSphinx(word_loop_arpa(["qwxzzy"]), ["qwxzzy"])


def test_pocketsphinx_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(judging, "find_spec", lambda name: None if name == "pocketsphinx" else util.find_spec(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'vita-mctp\[eval\]'"):
        PocketSphinx("", [])
