"""`study masking`: which written words does the sound need? VITA-Audio paper, figure 1b.

The words, and where they stand among the codes, are those of the right answer; the backbone chooses the codes alone,
greedily. While it does, positions of sound may attend to all, some or none of the written words, in every layer. Which
word is being spoken is read off the reference's times, so that a masking follows the reference's pace.

Hidden with the words are what stands between a prompt's copy of them and the answer, whose states have seen them.
Positions of text stay as they are: the state of a word knows the words before it, as the paper's does.

T positions, M maskings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from textwrap import fill

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from vita_mctp.bench import Line, Panel
from vita_mctp.evaluation.judges import Transcriber, open_judge
from vita_mctp.evaluation.metrics import compare, ratio
from vita_mctp.evaluation.report import percent
from vita_mctp.evaluation.text_scores import text_rule
from vita_mctp.study import Facts, Result, StudyOptions, Table
from vita_mctp.study.attention import TASKS
from vita_mctp.study.samples import (
    NOTHING,
    AlignedAnswer,
    Studied,
    aligned_answers,
    open_studied,
    pronounced,
    speak_answers,
)
from vita_mctp.types import TokenKind, Wave

_Way = tuple[int, ...]
"""The phones of a word."""

Allowed = Callable[[NDArray[np.int64], int], NDArray[np.bool_]]
"""(the words that positions write, the word being spoken) -> which of them stay visible."""

MASKINGS: Mapping[str, Allowed] = {
    "nothing": lambda written, word: written >= 0,
    "all but the spoken word": lambda written, word: written == word,
    "all but it and the next": lambda written, word: (written == word) | (written == word + 1),
    "all but it and its neighbours": lambda written, word: abs(written - word) <= 1,
    "only the spoken word": lambda written, word: written != word,
    "all words": lambda written, word: written < 0,
    "all but it, for one word": lambda written, word: written == word,
}
ONE_WORD = "all but it, for one word"
"""As the paper does: in force while the middle word of the answer is spoken, and not before or after."""

_CARRIED = ("nothing", "only the spoken word")
"""Where marks that have seen the words stay visible."""

JUDGE = "pocketsphinx-nano"
RECORDING, COPY, UNRELATED = "the recording itself", "its copy through the codec", "unrelated speech"
Counts = tuple[list[float], list[float]]


def masks(answer: AlignedAnswer, sounding: Sequence[bool]) -> NDArray[np.bool_]:
    """(M, T, T), True where a row may attend to a column. sounding: the positions in the answer that are no text."""
    size, written = len(answer.ids), np.array(answer.written)
    causal = np.tri(size, dtype=np.bool_)
    said = _without_pauses(answer.spoken)
    prompt_words = [i for i in range(answer.start) if written[i] != NOTHING]
    carriers = np.zeros(size, np.bool_)
    if prompt_words:
        carriers[prompt_words[0] : answer.start] = written[prompt_words[0] : answer.start] == NOTHING
    found = []
    for name, allowed in MASKINGS.items():
        mask = causal.copy()
        for row in range(answer.start, size - 1):
            if sounding[row] and (name != ONE_WORD or said[row + 1] == middle_word(answer)):
                hidden = (written != NOTHING) & ~allowed(written, said[row + 1])
                mask[row] &= ~(hidden | carriers if name not in _CARRIED else hidden)
        found.append(mask)
    return np.stack(found)


def middle_word(answer: AlignedAnswer) -> int:
    return (max(answer.spoken) + 1) // 2


def _without_pauses(spoken: Sequence[int]) -> list[int]:
    """In a pause and at a mark, the word that comes next; behind the last word, that one."""
    filled, following = [], max(spoken)
    for word in reversed(spoken):
        following = following if word == NOTHING else word
        filled.append(following)
    return filled[::-1]


@torch.inference_mode()
def speak_masked(studied: Studied, answer: AlignedAnswer) -> NDArray[np.int64]:
    """(M, T) ids: those of the answer, its codes replaced by what the backbone chooses under each masking."""
    model, kinds = studied.model, [studied.kind(token) for token in answer.ids]
    device = model.device
    sounding = [kind in (TokenKind.BEGIN, TokenKind.AUDIO, TokenKind.END) for kind in kinds]
    mask = torch.from_numpy(masks(answer, sounding)).to(device)[:, None]
    ids = torch.tensor(answer.ids, device=device).repeat(len(MASKINGS), 1)
    positions = torch.arange(len(answer.ids), device=device)[None].expand_as(ids)
    vocabulary, cache = studied.speech_lm.tokenizer.vocabulary, DynamicCache()
    codes = slice(vocabulary.audio_0, vocabulary.size)
    read = 0
    for position in range(answer.start, len(ids[0])):
        if kinds[position] is not TokenKind.AUDIO:
            continue
        rows = slice(read, position)
        embeds: Tensor = model.embed(ids[:, rows])
        hidden = model.backbone(embeds, positions[:, rows], mask[:, :, rows, :position], cache)
        ids[:, position] = vocabulary.audio_0 + model.logits(hidden[:, -1])[:, codes].argmax(-1)
        read = position
    found: NDArray[np.int64] = ids.cpu().numpy()
    return found


def run(options: StudyOptions) -> Result:
    """Raises as `open_studied` and `speak_answers`, and MissingExtraError without the judge."""
    judge, studied = open_judge(JUDGE, "en"), open_studied(options)
    corpus = speak_answers(options.folder / "speech", options.n, options.seed)
    result = Result("Which written words the sound needs", _NOTES, about={"judge": JUDGE})
    for task, kind in TASKS.items():
        answers = list(aligned_answers(studied, corpus, kind))
        made = [speak_masked(studied, answer) for answer in answers]
        errors, middle = _errors(studied, judge, answers, made)
        same = {name: _same_codes(answers, made, number) for number, name in enumerate(MASKINGS)}
        found = _facts(task, errors, middle, same, options.seed)
        variants = pronunciations(task, answers, made, options.seed)
        result.facts |= found | variants
        result.tables.append(_table(task, errors, found))
        result.tables += [_variant_table(task, variants)] if variants else []
        result.pictures[f"-{task}"] = [_panel(task, found, tuple(errors))]
    return result


_NOTES = (
    "WER: the judge's word errors against the words written. The recording and its copy through the codec are the "
    "floors; unrelated speech is each unmasked answer held against the words of another.",
    "all but it, for one word: only while the middle word of the answer is spoken, as the paper does it. middle word "
    "wrong: answers whose middle word the judge does not hear, by jiwer's alignment.",
    "above nothing: the paired difference to the unmasked answers. same codes: those that the unmasked answer has too.",
    "sentences are said on request and never trained on; the prompt has a copy of the words, masked with the answer's.",
    "questions are spoken and held out; their right answers' sound was trained on, and the question stays audible.",
    "The number of codes is the reference's.",
    "Spelled alike, spoken in two ways: such as `the` before a vowel and before a consonant. The codes are compared "
    "with those of each way in the other references (naive Bayes); the first row says how often that finds the way of "
    "a reference itself.",
    "Brackets are bootstrap 95 % intervals over answers.",
)


def _errors(
    studied: Studied, judge: Transcriber, answers: Sequence[AlignedAnswer], made: Sequence[NDArray[np.int64]]
) -> tuple[dict[str, Counts], dict[str, Counts]]:
    """By what was heard: each answer's word errors and words; whether its middle word was missed, and 1."""
    decoder, vocabulary = studied.speech_lm.audio_decoder, studied.speech_lm.tokenizer.vocabulary
    rule = text_rule("plain")
    found: dict[str, Counts] = {name: ([], []) for name in (RECORDING, COPY, *MASKINGS, UNRELATED)}
    middle: dict[str, Counts] = {name: ([], []) for name in found}

    def count(name: str, answer: AlignedAnswer, heard: str) -> None:
        missed = 1.0 - hears_word(answer.text, heard, middle_word(answer))
        for counts, new in ((found, rule.fraction(rule.score(answer.text, heard))), (middle, (missed, 1.0))):
            for into, value in zip(counts[name], new, strict=True):
                into.append(value)

    unmasked = []
    for answer, ids in zip(answers, made, strict=True):
        recording = Wave(answer.utterance.samples, 16_000)
        count(RECORDING, answer, judge.transcribe(recording))
        for name, row in zip((COPY, *MASKINGS), (np.array(answer.ids), *ids), strict=True):
            codes = np.array([vocabulary.code_of(i) for i in row[answer.start :] if vocabulary.is_audio(i)], np.int64)
            heard = judge.transcribe(decoder.decode(replace(answer.codes, ids=codes)))
            count(name, answer, heard)
            unmasked += [heard] if name == "nothing" else []
    for number, heard in enumerate(unmasked):
        count(UNRELATED, answers[number - 1], heard)
    return found, middle


def hears_word(text: str, heard: str, index: int) -> bool:
    """Whether word `index` of a text is among what was heard, where the fewest edits align the two."""
    import jiwer

    [parts] = jiwer.process_words(text, heard).alignments
    return any(part.type == "equal" and part.ref_start_idx <= index < part.ref_end_idx for part in parts)


def _same_codes(answers: Sequence[AlignedAnswer], made: Sequence[NDArray[np.int64]], number: int) -> Counts:
    says = [[i for i, word in enumerate(answer.spoken) if word != NOTHING] for answer in answers]
    equal = [float((ids[number, at] == ids[0, at]).sum()) for ids, at in zip(made, says, strict=True)]
    return equal, [float(len(at)) for at in says]


def _facts(
    task: str, errors: Mapping[str, Counts], middle: Mapping[str, Counts], same: Mapping[str, Counts], seed: int
) -> Facts:
    facts = {f"{task}.{name}.wer": ratio(*counts, seed) for name, counts in errors.items()}
    facts |= {f"{task}.{name}.middle word wrong": ratio(*counts, seed) for name, counts in middle.items()}
    facts[f"{task}.middle word lost"] = compare(middle["nothing"], middle[ONE_WORD], seed).difference
    facts |= {f"{task}.{name}.same codes": ratio(*counts, seed) for name, counts in same.items()}
    for name in list(MASKINGS)[1:]:
        facts[f"{task}.{name}.above nothing"] = compare(errors["nothing"], errors[name], seed).difference
    facts[f"{task}.all words.below unrelated"] = compare(errors["all words"], errors[UNRELATED], seed).difference
    return facts


_SHOWN = ("wer", "above nothing", "middle word wrong", "same codes")


def _table(task: str, errors: Mapping[str, Counts], facts: Facts) -> Table:
    head, rows = ("masked words", "WER, %", "above nothing", "middle word wrong, %", "same codes, %"), []
    for name in errors:
        cells = [facts.get(f"{task}.{name}.{what}") for what in _SHOWN]
        rows.append((name, *("-" if cell is None else percent(cell) for cell in cells)))
    return f"Masked, {task}", head, tuple(rows)


def _panel(task: str, facts: Facts, names: tuple[str, ...]) -> Panel:
    values = [facts[f"{task}.{name}.wer"] for name in names]
    spread = [(100 * (each.low or 0.0), 100 * (each.high or 0.0)) for each in values]
    labels = [fill(name, 10) for name in names]
    line = Line("WER", labels, [100 * (each.value or 0.0) for each in values], "bars", spread)
    return Panel(f"Word errors of the sound, {task}", "masked", "%", [line])


def pronunciations(task: str, answers: Sequence[AlignedAnswer], made: Sequence[NDArray[np.int64]], seed: int) -> Facts:
    """Of words that the references speak in several ways: how often the codes under a masking are of the right one."""
    said = [list(zip(each.text.split(), pronounced(each.utterance), strict=True)) for each in answers]
    ways: dict[str, Counter[_Way]] = {}
    for word, way in (pair for pairs in said for pair in pairs):
        ways.setdefault(word, Counter())[way] += 1
    several = {word for word, found in ways.items() if len(found) > 1 and min(found.values()) > 1}
    asked = [
        [(i, word, way) for i, (word, way) in enumerate(pairs) if word in several and i in answer.spoken]
        for answer, pairs in zip(answers, said, strict=True)
    ]
    own: list[dict[tuple[str, _Way], Counter[int]]] = [{} for _ in answers]
    for found, answer, words in zip(own, answers, asked, strict=True):
        for i, word, way in words:
            found.setdefault((word, way), Counter()).update(_codes_of(answer.spoken, i, answer.ids))
    rows = {"the references": [np.array(answer.ids) for answer in answers]}
    rows |= {name: [ids[number] for ids in made] for number, name in enumerate(MASKINGS)}
    facts = {}
    unmasked: Counts | None = None
    for name, ids in rows.items():
        hits = [
            [_likeliest(own, n, word, _codes_of(answers[n].spoken, i, ids[n])) == way for i, word, way in words]
            for n, words in enumerate(asked)
        ]
        if any(hits):
            counts = [float(sum(each)) for each in hits], [float(len(each)) for each in hits]
            unmasked = counts if name == "nothing" else unmasked
            facts[f"{task}.{name}.right pronunciation"] = ratio(*counts, seed)
            if unmasked is not None and name != "nothing":
                facts[f"{task}.{name}.pronunciation lost"] = compare(counts, unmasked, seed).difference
    return facts


def _codes_of(spoken: Sequence[int], word: int, ids: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Of a word, with the code behind it, whose sound begins in it."""
    first = spoken.index(word)
    last = len(spoken) - 1 - list(reversed(spoken)).index(word)
    return [int(ids[i]) for i in range(first, min(last + 2, len(ids)))]


def _likeliest(
    own: Sequence[Mapping[tuple[str, _Way], Counter[int]]], answer: int, word: str, codes: Sequence[int]
) -> _Way:
    """The way in which a word was said that had these codes, by the other references. own: each one's codes."""
    others: dict[_Way, Counter[int]] = {}
    for number, found in enumerate(own):
        for (spelled, way), counts in found.items():
            if number != answer and spelled == word:
                others.setdefault(way, Counter()).update(counts)

    def likelihood(way: _Way) -> float:
        counts = others[way]
        return sum(log((counts[code] + 0.5) / (counts.total() + 500)) for code in codes)

    return max(others, key=likelihood)


def _variant_table(task: str, facts: Facts) -> Table:
    found = {name.split(".")[1]: fact for name, fact in facts.items() if name.endswith("right pronunciation")}
    rows = [(name, percent(fact), str(fact.n)) for name, fact in found.items()]
    head = ("masked words", "right pronunciation, %", "answers")
    return f"Spelled alike, spoken in two ways, {task}", head, tuple(rows)
