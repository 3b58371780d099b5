"""The blocks' study counts guesses: an untrained block's are chance, a hook that cuts nothing changes none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vita_mctp.study.blocks import ZEROED, Repeated, stage_table, tally, with_random_blocks, zeroed
from vita_mctp.study.samples import AlignedAnswer, teacher_forced_chain
from vita_mctp.types import Task, TokenKind

SIZE, LENGTH, START = 48, 60, 6


def random_answers(count: int) -> list[AlignedAnswer]:
    rng, nothing = np.random.default_rng(0), (-1,) * LENGTH
    unused: Any = None
    rows = rng.integers(SIZE, size=(count, LENGTH)).tolist()
    return [AlignedAnswer(Task.TTS, "", tuple(ids), START, nothing, nothing, unused, unused) for ids in rows]


def kind(token: int) -> TokenKind:
    return TokenKind.TEXT if token < 24 else TokenKind.AUDIO


def test_an_untrained_block_has_the_accuracy_of_chance(make_tiny_model: Callable[..., Any]) -> None:
    answers, model = random_answers(30), make_tiny_model(1, 3)
    found = tally(with_random_blocks(model, 0), answers, kind)
    for level in (1, 2, 3):
        right, loss, _, guesses = (
            sum(sum(found[level, name][side]) for name in ("text", "codes")) for side in range(4)
        )
        assert guesses == 30 * (LENGTH - START)
        assert right / guesses == pytest.approx(1 / SIZE, abs=0.02)
        assert loss / guesses > np.log(SIZE) - 0.05


def test_guesses_are_counted_where_they_belong(make_tiny_model: Callable[..., Any]) -> None:
    """Answers made of one level's own guesses are guessed by that level without a fault."""
    model = make_tiny_model(1, 2)
    [answer] = random_answers(1)
    ids = list(answer.ids)
    for position in range(START, LENGTH):
        ids[position] = int(teacher_forced_chain(model, ids[:position])[1][-1].argmax())
    found = tally(model, [AlignedAnswer(Task.TTS, "", tuple(ids), START, (), (), answer.codes, answer.utterance)], kind)
    right, guesses = (sum(found[1, name][side][0] for name in ("text", "codes")) for side in (0, -1))
    assert right == guesses == LENGTH - START
    assert sum(found[0, name][0][0] for name in ("text", "codes")) < guesses


def test_cutting_nothing_changes_nothing_and_hooks_go(make_tiny_model: Callable[..., Any]) -> None:
    answers, model = random_answers(2), make_tiny_model(1, 2)
    plain = tally(model, answers, kind)
    with zeroed(model, ()) as whole:
        assert tally(whole, answers, kind) == plain
    for norms in ZEROED.values():
        with zeroed(model, norms) as cut:
            assert tally(cut, answers, kind) != plain
    assert tally(model, answers, kind) == plain
    repeated = tally(Repeated(model), answers, kind)
    assert repeated[1, "text"] == plain[1, "text"] and repeated[2, "text"] != plain[2, "text"]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with_random_blocks(model, 1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_stage_without_blocks_shows_its_backbone_alone(make_tiny_model: Callable[..., Any]) -> None:
    answers = random_answers(2)
    found = {f"stage{blocks}": tally(make_tiny_model(1, blocks), answers, kind) for blocks in (0, 1, 2)}
    _, head, rows = stage_table("questions", found, 0)
    assert all(len(row) == len(head) for row in rows)
    assert [row.count("-") for row in rows] == [4, 0, 0]
    assert rows[1][2] == rows[1][3] and rows[1][5] == rows[1][6]  # the first block is the last one
