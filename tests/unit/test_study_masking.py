"""The masking study masks what it says: nothing hidden changes no id, and hidden words cannot be looked at."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.study.masking import MASKINGS, hears_word, masks, pronunciations, speak_masked
from vita_mctp.study.samples import NOTHING, AlignedAnswer
from vita_mctp.types import Task, TokenKind

TEXT, BEGIN, CODES, SIZE, PROMPT = 20, 20, 21, 48, (3, 5, 7, 1, 40)


def kind(token: int) -> TokenKind:
    return TokenKind.TEXT if token < TEXT else TokenKind.BEGIN if token == BEGIN else TokenKind.AUDIO


def answer_of(ids: tuple[int, ...], prompt_words: int = 0) -> AlignedAnswer:
    """Every text token is a word of its own; a code says the last word before it."""
    written, spoken, word = [NOTHING] * len(ids), [NOTHING] * len(ids), -1
    for position in range(len(PROMPT), len(ids)):
        if kind(ids[position]) is TokenKind.TEXT:
            written[position] = word = word + 1
        elif kind(ids[position]) is TokenKind.AUDIO:
            spoken[position] = max(word, 0)
    written[:prompt_words] = range(prompt_words)
    unused: Any = None
    return AlignedAnswer(Task.TTS, "", ids, len(PROMPT), tuple(written), tuple(spoken), unused, unused)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_mask_that_masks_nothing_changes_no_id(seed: int, make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model(seed, 0, attn="eager")
    engine = Engine(EagerRunner(model))
    [own] = engine.generate([Request(PROMPT, MODES["vanilla"], 60)])
    answer = answer_of((*PROMPT, *own.ids))
    assert {kind(i) for i in own.ids} >= {TokenKind.TEXT, TokenKind.AUDIO}
    vocabulary = SimpleNamespace(audio_0=CODES, size=SIZE)
    speech_lm = SimpleNamespace(tokenizer=SimpleNamespace(vocabulary=vocabulary))
    studied: Any = SimpleNamespace(model=model, kind=kind, speech_lm=speech_lm)
    made = dict(zip(MASKINGS, speak_masked(studied, answer).tolist(), strict=True))
    assert made["nothing"] == list(answer.ids)
    assert made["all words"] != list(answer.ids)
    text = [i for i, token in enumerate(answer.ids) if kind(token) is not TokenKind.AUDIO]
    assert all([ids[i] for i in text] == [answer.ids[i] for i in text] for ids in made.values())


def test_the_middle_word_is_looked_for_where_it_belongs() -> None:
    assert hears_word("two plus two is four", "two plus two is five", 2)
    assert not hears_word("two plus two is four", "two plus is four", 2)
    assert not hears_word("two plus two is four", "", 2)


def spoken_the(number: int, way: int, code: int, said: int) -> tuple[AlignedAnswer, np.ndarray[Any, Any]]:
    """`the x`, its first word spoken in a way: codes `code` in the reference, `said` in the answers made."""
    utterance: Any = SimpleNamespace(
        phones=(9, way, 5), phone_ends=(10, 20, 40), word_starts=(0, 20), word_ends=(20, 40)
    )
    unused: Any = None
    answer = AlignedAnswer(
        Task.TTS, "the x", (1, 2, code, code, 40), 0, (0, 1, -1, -1, -1), (-1, -1, 0, 0, 1), unused, utterance
    )
    made = np.array([(1, 2, said, said, 40)] * len(MASKINGS))
    made[list(MASKINGS).index("nothing")] = answer.ids
    return answer, made


def test_the_way_a_word_is_spoken_is_told_by_its_codes() -> None:
    """Two ways with codes of their own; the made answers have the other way's codes in one case of four."""
    pairs = [spoken_the(n, way, 21 + way, 21 + (way if n else 1 - way)) for n, way in enumerate((0, 1, 0, 1))]
    facts = pronunciations("t", [answer for answer, _ in pairs], [made for _, made in pairs], 0)
    right = {name: facts[f"t.{name}.right pronunciation"].value for name in ("the references", *MASKINGS)}
    assert right["the references"] == right["nothing"] == 1.0
    assert right["all words"] == 0.75
    assert facts["t.all words.pronunciation lost"].value == 0.25


def test_rows_of_sound_see_the_words_that_are_left() -> None:
    ids = (*PROMPT, 1, BEGIN, 30, 31, 2, 3, BEGIN, 32, 33)  # words 0 | 0 0 | 1 2 | 2 2
    answer = answer_of(ids, prompt_words=3)
    found = dict(zip(MASKINGS, masks(answer, [kind(i) is not TokenKind.TEXT for i in ids]), strict=True))
    row = 12  # reads the code 32, predicts 33, which says word 2; it sees columns 0 to 12
    seen = {name: np.flatnonzero(mask[row]).tolist() for name, mask in found.items()}
    sound = [6, 7, 8, 11, 12]
    assert seen["nothing"] == list(range(13))
    assert seen["all but the spoken word"] == sorted([2, 10, *sound])
    assert seen["all but it and its neighbours"] == sorted([1, 2, 9, 10, *sound])
    assert seen["only the spoken word"] == sorted([0, 1, 3, 4, 5, 9, *sound])  # 3 and 4 have seen the words
    assert seen["all words"] == sound
    assert seen["all but it, for one word"] == seen["nothing"]  # it is in force for word 1, which no code says
    assert all(np.array_equal(mask[9], found["nothing"][9]) for mask in found.values())  # a row of text
