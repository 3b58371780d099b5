"""Blocks trained alike learn what their inputs tell: a rule of tokens from the token, nothing from nothing."""

from collections.abc import Callable
from typing import Any

import torch

from vita_mctp.study.blocks import ZEROED, pooled, tally, zeroed
from vita_mctp.study.inputs import train_first_block
from vita_mctp.study.samples import AlignedAnswer
from vita_mctp.types import Task, TokenKind

SIZE, LENGTH, START = 48, 40, 3


def counting(first: int) -> AlignedAnswer:
    """Each token is the one before it and seven."""
    unused: Any = None
    ids = tuple((first + 7 * i) % SIZE for i in range(LENGTH + first % 3))  # of several lengths
    return AlignedAnswer(Task.TTS, "", ids, START, (), (), unused, unused)


def test_a_block_learns_from_the_input_that_it_has(make_tiny_model: Callable[..., Any]) -> None:
    model, lessons = make_tiny_model(0, 2, attn="eager"), [counting(first) for first in range(SIZE)]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    right = {}
    for name in ("hidden state zeroed", "both zeroed"):
        student = train_first_block(model, lessons, ZEROED[name], 100, 0)
        with zeroed(student, ZEROED[name]) as cut:
            found = tally(cut, lessons[:8], lambda token: TokenKind.TEXT, deepest=1)
        assert {level for level, _ in found} == {0, 1}
        guesses, wholes = pooled(found, "text", 0, [1])
        right[name] = sum(guesses) / sum(wholes)
    assert right["hidden state zeroed"] > 0.5
    assert right["both zeroed"] < 0.2
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    kept = dict(student.named_parameters())
    changed = {name for name, weight in before.items() if not torch.equal(weight, kept[name])}
    assert changed and all("layers.1." in name or ("mtp" in name and ".0." in name) for name in changed)
