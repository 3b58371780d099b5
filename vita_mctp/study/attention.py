"""`study attention`: does a code look at the word that it says? VITA-Audio paper, figure 1a.

Right answers are read as in training, and hooks keep the attention of every layer. A code's attention is that of the
position which predicts it. Of what falls on written words (the prompt's copy counts too), how much is on the word
that sounds in the middle of the code's frame? Codes in pauses, and codes of words not written yet, are left out.

T positions, S of these ask (one a code), W words, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vita_mctp.bench import Line, Panel
from vita_mctp.evaluation.metrics import Estimate, compare, ratio
from vita_mctp.evaluation.report import percent
from vita_mctp.study import Facts, Heat, Result, StudyOptions
from vita_mctp.study.samples import (
    NOTHING,
    AlignedAnswer,
    Studied,
    aligned_answers,
    open_studied,
    speak_answers,
    teacher_forced_chain,
)
from vita_mctp.types import Task

Floats = NDArray[np.float64]
TASKS = {"sentences": Task.TTS, "questions": Task.SPEECH_TO_SPEECH}
NUMBERS = ("right", "chance", "another", "on words", "hit", "lucky", "forward")


@dataclass(frozen=True, eq=False)
class Looks:
    """What the codes of one answer look at, by map (backbone layers, then blocks) and head: (maps, H, S, W), each row
    the attention on the written words it can see; and spoken, (S,); tokens, (S, W): how many of each word it can see.
    """

    mass: Floats
    spoken: NDArray[np.int64]
    tokens: Floats


def looks(studied: Studied, answer: AlignedAnswer) -> Looks:
    """Of the codes whose word is written already."""
    with captured_attention(studied.model) as maps:
        teacher_forced_chain(studied.model, answer.ids)
    written, spoken = np.array(answer.written), np.array(answer.spoken)
    of_word = np.equal.outer(written, np.arange(1 + written.max()))  # (T, W)
    asked = [q for q, word in enumerate(spoken) if word != NOTHING and of_word[:q, word].any()]
    depth = studied.model.config.num_backbone_layers
    mass = []
    for number, attention in enumerate(maps):
        level = max(0, number - depth + 1)  # its first position is the level's number
        mass.append(attention[:, [q - 1 - level for q in asked]] @ of_word[level:])
    seen = np.stack([of_word[:q].sum(0) for q in asked]) if asked else np.zeros((0, of_word.shape[1]))
    return Looks(np.stack(mass), spoken[asked], seen.astype(np.float64))


@contextmanager
def captured_attention(model: Any) -> Iterator[list[Floats]]:
    """Gathers (H, queries, keys) of each decoder layer as it runs."""
    maps: list[Floats] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        maps.append(output[1][0].double().cpu().numpy())

    handles = [layer.self_attn.register_forward_hook(keep) for layer in model.model.layers]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def numbers(seen: Looks, other: Sequence[int]) -> dict[str, tuple[Floats, Floats]]:
    """By name: parts and wholes of an answer, (maps, H) each.

    right: of the attention on words, that on the right one; chance: were it spread evenly over the words' tokens that
    can be seen; another: on the word that `other`, another answer's words at the same codes, names. on words: of all
    attention. hit: codes whose most attended word is the right one; lucky: if that were any word. forward: of the steps
    to another most attended word, those to a later one.
    """
    mass, rows = seen.mass, np.arange(len(seen.spoken))
    on_words = mass.sum((2, 3))
    even = seen.tokens / seen.tokens.sum(1, keepdims=True)
    last = (seen.tokens > 0).sum(1) - 1  # words are written in their order
    elsewhere = np.minimum(np.resize(np.array(other), len(rows)), last) if len(other) else last
    most = mass.argmax(-1)
    steps = np.diff(most, axis=-1)
    full = np.full(on_words.shape, float(len(rows)))
    return {
        "right": (mass[:, :, rows, seen.spoken].sum(-1), on_words),
        "chance": ((mass.sum(-1) * even[rows, seen.spoken]).sum(-1), on_words),
        "another": (mass[:, :, rows, elsewhere].sum(-1), on_words),
        "on words": (on_words, full),
        "hit": ((most == seen.spoken).sum(-1).astype(np.float64), full),
        "lucky": (full * float((1 / (last + 1)).mean()) if len(rows) else full, full),
        "forward": ((steps > 0).sum(-1).astype(np.float64), (steps != 0).sum(-1).astype(np.float64)),
    }


def run(options: StudyOptions) -> Result:
    """Raises as `open_studied` and `speak_answers`."""
    studied = open_studied(options)
    depth = studied.model.config.num_backbone_layers
    corpus = speak_answers(options.folder / "speech", options.n, options.seed)
    result = Result("Codes and the words they say", _NOTES)
    for name, task in TASKS.items():
        answers = list(aligned_answers(studied, corpus, task))
        found = [looks(studied, each) for each in answers]
        tally = _Tally.of(found, [[w for w in each.spoken if w != NOTHING] for each in answers])
        result.facts |= {f"{name}.{fact}": value for fact, value in tally.facts(studied, options.seed).items()}
        result.facts[f"{name}.codes before their word"] = _unwritten(answers, found, options.seed)
        result.tables.append((f"Attention of codes to written words: {name}", *tally.table(studied, options.seed)))
        result.pictures[f"-{name}"] = [*tally.panels(studied), *_heats(answers, found, tally, depth, name)]
    return result


_NOTES = (
    "on the right word: of a code's attention to written words, what is on the word that sounds in the middle of the "
    "code's frame, by flite's own times. Codes in pauses and codes whose word is not written yet are left out.",
    "chance: the same, were the attention spread evenly over the words' tokens that the code can see. another answer's "
    "words: the same attention held against the alignment of another answer, which keeps what every answer has in "
    "common, such as that later codes say later words.",
    "most attended is right: codes whose most attended word is the one that sounds; best head: of this layer, chosen "
    "on every second answer and measured on the others. steps forward: of those between most attended words.",
    "Answers are the right ones, read as in training; brackets are bootstrap 95 % intervals over answers.",
)


@dataclass(frozen=True, eq=False)
class _Tally:
    """parts, wholes: by name, (answers, maps, H)."""

    parts: Mapping[str, Floats]
    wholes: Mapping[str, Floats]

    @classmethod
    def of(cls, found: Sequence[Looks], spoken: Sequence[Sequence[int]]) -> _Tally:
        """spoken: of each answer, the words of its codes, to hold another answer's attention against."""
        each = [numbers(seen, spoken[i - 1]) for i, seen in enumerate(found)]
        parts, wholes = ({name: np.stack([n[name][side] for n in each]) for name in NUMBERS} for side in (0, 1))
        return cls(parts, wholes)

    def of_map(self, name: str, number: int, head: int | None = None) -> tuple[list[float], list[float]]:
        """Of each answer, over all heads or of one. Heads are taken as equally many looks, each of one's own weight."""
        chosen = slice(None) if head is None else slice(head, head + 1)
        parts, wholes = (side[name][:, number, chosen].sum(-1).tolist() for side in (self.parts, self.wholes))
        return parts, wholes

    def best_head(self, number: int) -> int:
        return int(self.parts["hit"][::2, number].sum(0).argmax())

    def unseen(self, name: str, number: int) -> tuple[list[float], list[float]]:
        """The best head's, of the answers that it was not chosen on."""
        parts, wholes = self.of_map(name, number, self.best_head(number))
        return parts[1::2], wholes[1::2]

    @property
    def maps(self) -> int:
        return self.parts["right"].shape[1]

    def best_map(self, first: int, end: int) -> int:
        """Of these layers the one whose best head looks best, on the answers that heads are chosen on."""
        return first + int(self.parts["hit"][::2, first:end].sum(0).max(-1).argmax())

    def facts(self, studied: Studied, seed: int) -> Facts:
        depth = studied.model.config.num_backbone_layers
        last, best = depth - 1, self.best_map(0, depth)
        of: dict[str, Callable[[str], tuple[list[float], list[float]]]] = {
            "last layer": lambda name: self.of_map(name, last),
            "best head": lambda name: self.unseen(name, best),
        }
        if self.maps > depth:
            of["block 1"] = lambda name: self.of_map(name, depth)
        facts: Facts = {}
        for where, take in of.items():
            facts |= {f"{where}.{name}": ratio(*take(name), seed) for name in NUMBERS}
            for name, base in (("right", "chance"), ("right", "another"), ("hit", "lucky")):
                facts[f"{where}.{name} above {base}"] = compare(take(base), take(name), seed).difference
        return facts

    def table(self, studied: Studied, seed: int) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        columns = {
            "on words, %": "on words",
            "of that on the right word, %": "right",
            "chance, %": "chance",
            "another answer's words, %": "another",
            "most attended is right, %": "hit",
            "steps forward, %": "forward",
        }
        rows = []
        for number in range(self.maps):
            cells = [percent(ratio(*self.of_map(name, number), seed)) for name in columns.values()]
            best = f"{percent(ratio(*self.unseen('hit', number), seed))}, head {self.best_head(number) + 1}"
            rows.append((layer_name(studied, number), *cells, best))
        return ("layer", *columns, "the same, best head, %"), tuple(rows)

    def panels(self, studied: Studied) -> list[Panel]:
        depth = studied.model.config.num_backbone_layers
        names = [str(n + 1) if n < depth else f"b{n - depth + 1}" for n in range(self.maps)]
        shown = {"on the right word": "right", "chance": "chance", "another answer's words": "another"}
        curves = {label: [ratio(*self.of_map(name, n)) for n in range(self.maps)] for label, name in shown.items()}
        curves["best head: most attended is right"] = [ratio(*self.unseen("hit", n)) for n in range(self.maps)]
        lines = [Line(label, names, [100 * (each.value or 0.0) for each in found]) for label, found in curves.items()]
        return [Panel("Attention on words that is on the word being said", "layers, then blocks", "%", lines)]


def layer_name(studied: Studied, number: int) -> str:
    depth = studied.model.config.num_backbone_layers
    return f"layer {number + 1}" if number < depth else f"block {number - depth + 1}"


def _unwritten(answers: Sequence[AlignedAnswer], found: Sequence[Looks], seed: int) -> Estimate:
    """Of the codes that say a word, those that say it before it is written."""
    says = [sum(word != NOTHING for word in each.spoken) for each in answers]
    return ratio([all_ - len(seen.spoken) for all_, seen in zip(says, found, strict=True)], says, seed)


def _heats(
    answers: Sequence[AlignedAnswer], found: Sequence[Looks], tally: _Tally, depth: int, name: str
) -> list[Heat]:
    """The best heads of backbone and blocks, on the answer with the most words of those they were not chosen on."""
    number = max(range(1, len(answers), 2), key=lambda i: len(answers[i].text.split()), default=0)
    seen, heats = found[number], []
    for first, end in ((0, depth), (depth, tally.maps)):
        if first < end:
            layer = tally.best_map(first, end)
            head = tally.best_head(layer)
            mass = seen.mass[layer, head]
            values = (mass / np.maximum(mass.sum(-1, keepdims=True), 1e-12)).T
            where = f"layer {layer + 1}" if layer < depth else f"block {layer - depth + 1}"
            title = f"{name}: {where}, head {head + 1}; outlined, the word that sounds"
            heats.append(Heat(title, "codes", "", answers[number].text.split(), values, seen.spoken.tolist()))
    return heats
