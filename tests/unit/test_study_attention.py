"""The attention study finds a code that looks at its word; a shuffled alignment is chance."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vita_mctp.study.attention import Looks, captured_attention, numbers
from vita_mctp.study.samples import teacher_forced_chain

WORDS, CODES = 5, 400


def looking_at(words: np.ndarray[Any, Any], spoken: np.ndarray[Any, Any]) -> Looks:
    """One map and head, whose attention is on `words`."""
    mass = np.zeros((1, 1, len(words), WORDS))
    mass[0, 0, np.arange(len(words)), words] = 0.3
    return Looks(mass, spoken, np.ones((len(words), WORDS)))


def fraction(found: dict[str, Any], name: str) -> float:
    part, whole = found[name]
    return float(part[0, 0] / whole[0, 0])


def test_the_right_word_and_a_shuffled_alignment() -> None:
    spoken = np.sort(np.random.default_rng(0).integers(WORDS, size=CODES))
    right = numbers(looking_at(spoken, spoken), spoken.tolist())
    assert fraction(right, "right") == pytest.approx(1)
    assert fraction(right, "hit") == 1 and fraction(right, "forward") == 1
    assert fraction(right, "chance") == pytest.approx(1 / WORDS) == pytest.approx(fraction(right, "lucky"))
    assert fraction(right, "on words") == pytest.approx(0.3)
    shuffled = np.random.default_rng(1).permutation(spoken)
    wrong = numbers(looking_at(spoken, shuffled), spoken.tolist())
    assert fraction(wrong, "right") == pytest.approx(1 / WORDS, abs=0.06)
    assert fraction(wrong, "another") == pytest.approx(1)  # here the other answer has the true words


def test_hooks_see_every_layer_and_are_gone_afterwards(make_tiny_model: Callable[..., Any]) -> None:
    model = make_tiny_model(1, 2, attn="eager")
    ids = list(range(9))
    alone = teacher_forced_chain(model, ids)
    with captured_attention(model) as maps:
        watched = teacher_forced_chain(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    assert [each.shape for each in maps] == [(4, 9, 9), (4, 9, 9), (4, 8, 8), (4, 7, 7)]
    assert all(np.allclose(each.sum(-1), 1) and np.allclose(np.triu(each, 1), 0) for each in maps)
    teacher_forced_chain(model, ids)
    assert len(maps) == 4
