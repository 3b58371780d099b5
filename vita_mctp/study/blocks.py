"""`study blocks`: what each block knows, and what it needs to know it. VITA-Audio paper, sections 3.2 and 3.3.

Right answers are read as in training: block k guesses the token behind each position from that position's token and
from the state of the level below, one position before. So level k has seen the backbone's state only k tokens back.
The same is done with a block's inputs put to zero, by hooks on the norms that they pass; with block 1 in the role of
all; with blocks of random weights, which know nothing; and with the checkpoints of a run by stages, where one is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vita_mctp.bench import Line, Panel
from vita_mctp.evaluation.metrics import Estimate, compare, ratio
from vita_mctp.evaluation.report import interval, percent
from vita_mctp.study import Facts, Result, StudyOptions, Table
from vita_mctp.study.attention import TASKS
from vita_mctp.study.samples import (
    AlignedAnswer,
    Studied,
    aligned_answers,
    open_studied,
    speak_answers,
    stage_models,
    teacher_forced_chain,
)
from vita_mctp.types import TokenKind

KINDS = {TokenKind.TEXT: "text", TokenKind.AUDIO: "codes"}
_MARKS = "marks"
TRAINED, REPEATED, RANDOM = "as trained", "block 1 in every role", "random weights"
ZEROED: Mapping[str, tuple[str, ...]] = {
    "hidden state zeroed": ("mtp_hidden_norms",),
    "token zeroed": ("mtp_embed_norms",),
    "both zeroed": ("mtp_hidden_norms", "mtp_embed_norms"),
}
"""The norms whose results are put to zero in every block."""

_WHO = ("backbone", "first block", "last block")

Tally = dict[tuple[int, str], tuple[list[float], ...]]
"""(level, kind of the right token) -> by answer: right guesses, cross-entropy in nats, the backbone's guesses, all.
"""


class Repeated:
    """A model whose every block is its first."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def block(self, k: int, *inputs: Any, **more: Any) -> Tensor:
        hidden: Tensor = self._model.block(0, *inputs, **more)
        return hidden


@contextmanager
def zeroed(model: Any, norms: Sequence[str]) -> Iterator[Any]:
    """The model with these inputs of its blocks put to zero."""
    handles = [
        norm.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        for name in norms
        for norm in getattr(model, name)
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def with_random_blocks(model: Any, seed: int) -> Any:
    """A copy whose blocks are as before any training; the backbone is as it was."""
    copy, depth = deepcopy(model), model.config.num_backbone_layers
    generator = torch.Generator().manual_seed(seed)
    parts = [*copy.model.layers[depth:], copy.mtp_projs, copy.mtp_embed_norms, copy.mtp_hidden_norms]
    with torch.no_grad():
        for weight in (weight for part in parts for weight in part.parameters()):
            if weight.dim() > 1:
                drawn = torch.randn(weight.shape, generator=generator) * model.config.initializer_range
                weight.copy_(drawn)
            else:
                weight.fill_(1.0)
    return copy


def tally(model: Any, answers: Sequence[AlignedAnswer], kind: Any, deepest: int | None = None) -> Tally:
    """Every level's guesses at the tokens of each answer, its end included. kind: of a token. deepest: level."""
    found: Tally = {}
    kinds = (*KINDS.values(), _MARKS)
    for number, answer in enumerate(answers):
        targets = torch.tensor(answer.ids[answer.start :], device=model.device)
        names = [KINDS.get(kind(token), _MARKS) for token in targets.tolist()]
        chain = teacher_forced_chain(model, answer.ids, deepest)
        backbone = chain[0][answer.start - 1 : -1].argmax(-1)
        for level, logits in enumerate(chain):
            rows = logits[answer.start - 1 - level : -1].float()
            guesses = rows.argmax(-1)
            loss = torch.nn.functional.cross_entropy(rows, targets, reduction="none")
            for name in kinds:
                chosen = torch.tensor([each == name for each in names], device=model.device)
                right, same = (guesses == targets)[chosen].sum(), (guesses == backbone)[chosen].sum()
                values = (right, loss[chosen].sum(), same, chosen.sum())
                lists = found.setdefault((level, name), tuple([0.0] * len(answers) for _ in values))
                for into, value in zip(lists, values, strict=True):
                    into[number] = float(value)
    return found


def run(options: StudyOptions) -> Result:
    """Raises as `open_studied` and `speak_answers`, and ConfigError for a model without blocks of this kind."""
    studied = open_studied(options, blocks=True)
    model: Any = studied.model
    corpus = speak_answers(options.folder / "speech", options.n, options.seed)
    stages = {name: open_studied(replace(options, model=str(folder))) for name, folder in stage_models(options)}
    result = Result("What each block knows, and what from", _NOTES + ((_STAGE_NOTE,) if stages else ()))
    for task, kind in TASKS.items():
        answers = list(aligned_answers(studied, corpus, kind))
        tallies = {TRAINED: tally(model, answers, studied.kind)}
        for name, norms in ZEROED.items():
            with zeroed(model, norms) as cut:
                tallies[name] = tally(cut, answers, studied.kind)
        tallies[REPEATED] = tally(Repeated(model), answers, studied.kind)
        tallies[RANDOM] = tally(with_random_blocks(model, options.seed), answers, studied.kind)
        guess = _commonest(answers, studied)
        found = _facts(task, tallies, guess, options.seed)
        result.facts |= found
        result.tables.append(_level_table(task, tallies[TRAINED], options.seed))
        result.tables.append(_variant_table(task, found, tuple(tallies)))
        result.pictures[f"-{task}"] = _panels(task, tallies, options.seed)
        by_stage = {name: tally(each.model, answers, each.kind) for name, each in stages.items()}
        if by_stage:
            result.tables.append(stage_table(task, by_stage, options.seed))
    return result


_NOTES = (
    "right: guesses whose likeliest token is the right one. cross-entropy in nats a token. Level 0 is the backbone, "
    "level k block k, which has seen the backbone's states up to k tokens before. as the backbone: guesses that are "
    "the backbone's too, right or wrong.",
    "nano's encoder was trained on after nano had learnt its answers' codes, so that some of these are others today: "
    "that lowers what is right at every level, the backbone's included.",
    "Zeroed: in every block at once, while it computes; the blocks were not trained for it, so this says what these "
    "blocks use, not what blocks could learn without.",
    "block 1 in every role: its weights at every level. random weights: blocks before any training, on the trained "
    "backbone. always the commonest: how often the most frequent token of that kind is the right one.",
    "Answers are the right ones; brackets are bootstrap 95 % intervals over answers.",
)

_STAGE_NOTE = (
    "By training stage: checkpoints of the run that `runs` names, with the codec of the model above. "
    "The cross-entropy is of all blocks together; of a stage without blocks, the backbone's."
)


def _commonest(answers: Sequence[AlignedAnswer], studied: Studied) -> dict[str, float]:
    """By kind: the fraction of the most frequent token."""
    found: dict[str, list[int]] = {}
    for answer in answers:
        for token in answer.ids[answer.start :]:
            found.setdefault(KINDS.get(studied.kind(token), _MARKS), []).append(token)
    return {kind: max(map(tokens.count, set(tokens))) / len(tokens) for kind, tokens in found.items()}


def pooled(found: Tally, kind: str, value: int, levels: Sequence[int]) -> tuple[list[float], list[float]]:
    """Of several levels together; value: 0 right guesses, 1 cross-entropy, 2 the backbone's guesses."""
    parts, wholes = (
        [sum(each) for each in zip(*(found[level, kind][side] for level in levels), strict=True)]
        for side in (value, -1)
    )
    return parts, wholes


def _levels(found: Tally) -> list[int]:
    return sorted({level for level, _ in found})


def _facts(task: str, tallies: Mapping[str, Tally], guess: Mapping[str, float], seed: int) -> Facts:
    trained = tallies[TRAINED]
    first, *blocks = _levels(trained)
    facts: Facts = {}
    for kind in KINDS.values():
        here = f"{task}.{kind}"
        for name, found in tallies.items():
            accuracy = pooled(found, kind, 0, blocks)
            facts[f"{here}.{name}.right"] = ratio(*accuracy, seed)
            facts[f"{here}.{name}.cross-entropy"] = ratio(*pooled(found, kind, 1, blocks), seed)
            if name != TRAINED:
                below = compare(accuracy, pooled(trained, kind, 0, blocks), seed)
                facts[f"{here}.{name}.below trained"] = below.difference
        for level in (first, *blocks):
            facts[f"{here}.level {level}.right"] = ratio(*pooled(trained, kind, 0, [level]), seed)
        one, last, backbone = (pooled(trained, kind, 0, [level]) for level in (blocks[0], blocks[-1], first))
        facts[f"{here}.last block below the first"] = compare(last, one, seed).difference
        facts[f"{here}.first block below the backbone"] = compare(one, backbone, seed).difference
        facts[f"{here}.commonest"] = Estimate.exact(guess[kind], facts[f"{here}.{TRAINED}.right"].n)
        random = pooled(tallies[RANDOM], kind, 0, blocks)
        above = [right - guess[kind] * whole for right, whole in zip(*random, strict=True)]
        facts[f"{here}.{RANDOM}.above the commonest"] = ratio(above, random[1], seed)
        hidden, token = (pooled(tallies[name], kind, 0, blocks) for name in list(ZEROED)[:2])
        facts[f"{here}.token zeroed above hidden zeroed"] = compare(hidden, token, seed).difference
    return facts


def _level_table(task: str, trained: Tally, seed: int) -> Table:
    head, rows = ["level"], []
    for kind in KINDS.values():
        head += [f"{kind} right, %", f"{kind}, cross-entropy", f"{kind} as the backbone, %"]
    for level in _levels(trained):
        cells = [str(level)]
        for kind in KINDS.values():
            cells.append(percent(ratio(*pooled(trained, kind, 0, [level]), seed)))
            cells.append(interval(ratio(*pooled(trained, kind, 1, [level]), seed), 1, 2))
            cells.append(percent(ratio(*pooled(trained, kind, 2, [level]), seed)))
        rows.append(tuple(cells))
    return f"By level, {task}", tuple(head), tuple(rows)


def _variant_table(task: str, facts: Facts, names: Sequence[str]) -> Table:
    head = ("blocks", *(f"{kind}, {what}" for kind in KINDS.values() for what in ("right, %", "cross-entropy")))
    rows = []
    for name in names:
        cells = []
        for kind in KINDS.values():
            cells.append(percent(facts[f"{task}.{kind}.{name}.right"]))
            cells.append(interval(facts[f"{task}.{kind}.{name}.cross-entropy"], 1, 2))
        rows.append((name, *cells))
    guesses = [f"{100 * (facts[f'{task}.{kind}.commonest'].value or 0.0):.1f}" for kind in KINDS.values()]
    rows.append(("always the commonest", guesses[0], "-", guesses[1], "-"))
    return f"All blocks together, {task}", head, tuple(rows)


def stage_table(task: str, stages: Mapping[str, Tally], seed: int) -> Table:
    """What the backbone knows and, where there are blocks, the first of them, the last, and all together."""
    head = ("stage", *(f"{kind} right, {who}, %" for kind in KINDS.values() for who in _WHO), "codes, cross-entropy")
    rows = []
    for stage, found in stages.items():
        backbone, *blocks = _levels(found)
        cells = []
        for kind in KINDS.values():
            for level in (backbone, *blocks[:1], *blocks[-1:]):
                cells.append(percent(ratio(*pooled(found, kind, 0, [level]), seed)))
            cells += ["-"] * (0 if blocks else 2)
        loss = ratio(*pooled(found, KINDS[TokenKind.AUDIO], 1, blocks or [backbone]), seed)
        rows.append((stage, *cells, interval(loss, 1, 2)))
    return f"By training stage, {task}", head, tuple(rows)


def _panels(task: str, tallies: Mapping[str, Tally], seed: int) -> list[Panel]:
    panels = []
    for kind in KINDS.values():
        lines = []
        for name, found in tallies.items():
            values = [ratio(*pooled(found, kind, 0, [level]), seed).value or 0.0 for level in _levels(found)]
            lines.append(Line(name, _levels(found), [100 * value for value in values]))
        panels.append(Panel(f"{kind.capitalize()} guessed rightly, {task}", "level", "%", lines))
    return panels
