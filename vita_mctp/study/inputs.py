"""`study inputs`: what a first block can learn from each of its inputs. VITA-Audio paper, section 3.2.

Four first blocks are trained alike (begun as stage 2 begins one, same sentences, same order, same steps) on the frozen
backbone: with both inputs, with the token or the hidden state put to zero, with neither. `study blocks` cuts the inputs
of blocks that have learnt to rely on them; here a block may learn to do without.

B answers of a step, T positions, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.evaluation.metrics import compare, ratio
from vita_mctp.evaluation.report import interval, percent
from vita_mctp.nano.corpus import build_planned
from vita_mctp.nano.sentences import answer_like
from vita_mctp.nano.voices import ANSWER_VOICE, Item
from vita_mctp.study import Facts, Result, StudyOptions
from vita_mctp.study.blocks import KINDS, ZEROED, Tally, pooled, tally, zeroed
from vita_mctp.study.samples import AlignedAnswer, align, aligned_answers, open_studied, speak_answers
from vita_mctp.types import Task

BOTH, HIDDEN, TOKEN, NEITHER = "both inputs", "hidden state alone", "token alone", "neither"
_CUTS = {BOTH: (), HIDDEN: ZEROED["token zeroed"], TOKEN: ZEROED["hidden state zeroed"], NEITHER: ZEROED["both zeroed"]}
_LESSONS, _STEPS, _BATCH, _RATE = 400, 400, 8, 2e-3
_QUICK_LESSONS, _QUICK_STEPS = 12, 3
IGNORED = -100


def run(options: StudyOptions) -> Result:
    """Raises as `open_studied` and `speak_answers`, and ConfigError for a model without blocks of this kind."""
    studied = open_studied(options, blocks=True)
    model: Any = studied.model
    count, steps = (_QUICK_LESSONS, _QUICK_STEPS) if options.quick else (_LESSONS, _STEPS)
    items = [Item(text, "sentence", ANSWER_VOICE) for text in answer_like(count, options.seed)[0]]
    spoken = build_planned(options.folder / "lessons", {"sentences": items}, options.seed)
    lessons = [align(studied.speech_lm, spoken.utterance(i), None, Task.TTS) for i in range(len(spoken))]
    corpus = speak_answers(options.folder / "speech", options.n, options.seed)
    tests = list(aligned_answers(studied, corpus, Task.TTS))
    found = {}
    for name, norms in _CUTS.items():
        student = train_first_block(model, lessons, norms, steps, options.seed)
        with zeroed(student, norms) as cut:
            found[name] = tally(cut, tests, studied.kind, deepest=1)
    return Result(
        "What a first block can learn from its inputs",
        _NOTES,
        _facts(found, options.seed),
        [("Trained alike", ("inputs", *_head()), tuple(_rows(found, options.seed)))],
        about={"steps": steps, "answers_a_step": _BATCH, "lessons": count},
    )


_NOTES = (
    "Held-out sentences, read as in training; right: the likeliest token is the right one; cross-entropy in nats.",
    "One seed and few steps: the order is to be trusted more than the numbers. What both inputs reach is less than "
    "nano's own first block, which was trained longer and with all others.",
    "Brackets are bootstrap 95 % intervals over answers.",
)


def train_first_block(model: Any, lessons: Sequence[AlignedAnswer], norms: Sequence[str], steps: int, seed: int) -> Any:
    """A copy of the model whose first block begins as the last layer of the backbone and learns the answers alone."""
    student, depth = deepcopy(model), model.config.num_backbone_layers
    layers, generator = student.model.layers, torch.Generator().manual_seed(seed)
    layers[depth].load_state_dict(layers[depth - 1].state_dict())
    block = (layers[depth], student.mtp_projs[0], student.mtp_embed_norms[0], student.mtp_hidden_norms[0])
    student.requires_grad_(False)
    with torch.no_grad():
        weight = student.mtp_projs[0].weight  # drawn here, wherever it is: a generator belongs to a device
        weight.copy_(torch.empty(weight.shape).normal_(0, model.config.initializer_range, generator=generator))
        for norm in block[2:]:
            norm.weight.fill_(1.0)
    weights = [weight.requires_grad_(True) for part in block for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, betas=(0.9, 0.95))
    order = torch.randint(len(lessons), (steps, _BATCH), generator=generator).tolist()
    with zeroed(student, norms):
        for step, rows in enumerate(order):
            optimizer.param_groups[0]["lr"] = _RATE * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
            optimizer.zero_grad()
            _loss(student, [lessons[row] for row in rows]).backward()
            optimizer.step()
    return student.requires_grad_(False)


def _loss(student: Any, answers: Sequence[AlignedAnswer]) -> Tensor:
    """Cross-entropy of the first block's guesses at the answers' tokens; short rows are padded behind their end."""
    device = student.device
    ids = pad_sequence([torch.tensor(answer.ids) for answer in answers], batch_first=True).to(device)
    targets = torch.full_like(ids, IGNORED)
    for row, answer in enumerate(answers):
        targets[row, answer.start - 1 : len(answer.ids) - 1] = ids[row, answer.start : len(answer.ids)]
    positions = torch.arange(ids.shape[1], device=device)[None].expand_as(ids)
    with torch.no_grad():
        embeds = student.embed(ids)
        below = student.backbone(embeds, positions)
    hidden = student.block(0, embeds[:, 1:], below[:, :-1], positions[:, 1:])
    asked = targets[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(student.logits(hidden[asked]).float(), targets[:, 1:][asked])


def _head() -> Iterator[str]:
    for kind in KINDS.values():
        yield f"{kind} right, %"
        yield f"{kind}, cross-entropy"


def _rows(found: Mapping[str, Tally], seed: int) -> Iterator[tuple[str, ...]]:
    for name, guesses in found.items():
        cells = [name]
        for kind in KINDS.values():
            cells.append(percent(ratio(*pooled(guesses, kind, 0, [1]), seed)))
            cells.append(interval(ratio(*pooled(guesses, kind, 1, [1]), seed), 1, 2))
        yield tuple(cells)


def _facts(found: Mapping[str, Tally], seed: int) -> Facts:
    facts: Facts = {}
    for kind in KINDS.values():
        right = {name: pooled(guesses, kind, 0, [1]) for name, guesses in found.items()}
        facts |= {f"{kind}.{name}": ratio(*counts, seed) for name, counts in right.items()}
        for name, other in ((BOTH, HIDDEN), (BOTH, TOKEN), (HIDDEN, TOKEN), (HIDDEN, NEITHER), (TOKEN, NEITHER)):
            facts[f"{kind}.{name} minus {kind}.{other}"] = compare(right[other], right[name], seed).difference
    return facts
