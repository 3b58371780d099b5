"""Answers whose words are known in time: flite says when each word of the answer voice sounds.

T positions of a sequence. The sequences are those that a model is trained on: text and codes by the ratio 1,10,4,10.
`teacher_forced_chain` gives every level's logits on one, computed from nothing, with no cache: a level's token depends
only on true tokens, never on its own earlier guesses, so what the engine gets from its caches must equal these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vita_mctp.checkpoints.opening import find_model, open_model
from vita_mctp.codecs.nano import NanoTokenizer
from vita_mctp.codecs.nano.config import pad_to_codes
from vita_mctp.errors import ConfigError
from vita_mctp.models.registry import SpeechModel
from vita_mctp.nano.codec_data import grid_positions, warp_frames
from vita_mctp.nano.corpus import Corpus, Utterance, build_planned
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.voices import ANSWER_VOICE, Item, Sizes, make_plan
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.study import StudyOptions
from vita_mctp.text.interleave import BOOST_RATIO, interleave
from vita_mctp.types import AudioCodes, HeardAudio, Task, TokenKind, Wave

QUESTIONS, ANSWERS, SENTENCES = "eval_questions", "eval_answers", "eval_sentences"
NOTHING = -1


@dataclass(frozen=True, eq=False)
class AlignedAnswer:
    """A prompt with the right answer to it. start: of the answer, whose last id ends it.

    written: (T,) the word that a position's text token belongs to, in the prompt's copy too; spoken: (T,) the word that
    a code says, by its middle. Both count words from 0 and are NOTHING elsewhere: in marks, pauses and the question.
    """

    task: Task
    text: str
    ids: tuple[int, ...]
    start: int
    written: tuple[int, ...]
    spoken: tuple[int, ...]
    codes: AudioCodes
    utterance: Utterance


@dataclass(frozen=True, eq=False)
class Studied:
    """A model opened for a study: its torch modules, which hooks can look into, and the front door on the same."""

    model: SpeechModel
    speech_lm: SpeechLM

    def kind(self, token: int) -> TokenKind:
        return self.speech_lm.tokenizer.vocabulary.kind(token)


def open_studied(options: StudyOptions, *, blocks: bool = False) -> Studied:
    """With attention that is computed step by step. Raises ConfigError for a model that makes no codes of its own, or,
    where `blocks` are wanted, has none of MCTP's kind.
    """
    opened = open_model(options.model)
    model = opened.load_model(dtype=options.dtype, device=options.device, attn="eager")
    speech_lm = SpeechLM.from_opened(opened, device=options.device, model=model)
    if speech_lm.speaking is not None:
        raise ConfigError(
            f"{options.model} speaks by a talker; wanted: a model that writes codes; see study predictors"
        )
    if blocks and not (model.config.num_nextn_predict_layers and hasattr(model, "mtp_hidden_norms")):
        raise ConfigError(f"{options.model} has no MCTP blocks; wanted: a model with some; name another one")
    return Studied(model, speech_lm)


def stage_models(options: StudyOptions) -> Iterator[tuple[str, Path]]:
    """(name, folder) of each finished stage below `options.runs`, with the codec of the model under study."""
    if options.runs is None:
        return
    model, found = find_model(options.model), sorted(options.runs.glob("stage*/final/config.json"))
    if not found:
        raise ConfigError(f"{options.runs} holds no finished stage (stage*/final); name the folder of a training run")
    for config in found:
        name = config.parents[1].name
        folder = options.folder / "stages" / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*config.parent.iterdir(), model / "speech.json", model / "codec"):
            link = folder / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
        yield name, folder


def speak_answers(folder: Path, n: int, seed: int) -> Corpus:
    """n held-out sentences, n held-out questions and the right answers to these, spoken once."""
    plan = make_plan(Sizes(questions=n, answers=0, sentences=0, babble=0), seed)
    right = {qa.question: qa for qa in build_domain().held_out}
    answers = [Item(right[item.text].answer, item.kind, ANSWER_VOICE) for item in plan[QUESTIONS]]
    return build_planned(folder, {QUESTIONS: plan[QUESTIONS], ANSWERS: answers, SENTENCES: plan[SENTENCES]}, seed)


def aligned_answers(studied: Studied, corpus: Corpus, task: Task) -> Iterator[AlignedAnswer]:
    """The corpus's sentences to be said, or its questions with their answers."""
    spoken = [corpus.utterance(i) for i in corpus.indices(SENTENCES if task is Task.TTS else ANSWERS)]
    asked = [corpus.utterance(i) for i in corpus.indices(QUESTIONS)] if task.hears else spoken
    for question, answer in zip(asked, spoken, strict=True):
        yield align(studied.speech_lm, answer, question if task.hears else None, task)


def align(speech_lm: SpeechLM, answer: Utterance, question: Utterance | None, task: Task) -> AlignedAnswer:
    """Raises ConfigError for a model that hears features, which has no codes of a recording."""
    vocabulary, tokenizer = speech_lm.tokenizer.vocabulary, speech_lm.tokenizer
    codes, frames = _answer_codes(speech_lm, answer)
    prompt = list(speech_lm.prompt(answer.text if question is None else _codes(speech_lm, question), task).ids)
    text = tokenizer.encode(answer.text)
    marked = [vocabulary.begin_of_audio, *map(vocabulary.audio_id, codes.ids.tolist()), vocabulary.end_of_audio]
    ids = [*prompt, *interleave([*text, *marked], BOOST_RATIO, marked[0], marked[-1]), vocabulary.im_end]
    words = _word_of_tokens([tokenizer.decode([token]) for token in text])
    written, spoken = [NOTHING] * len(ids), [NOTHING] * len(ids)
    if question is None:
        said = tokenizer.encode_ordinary(answer.text)
        written[(first := _find(prompt, said)) : first + len(said)] = words
    next_word, next_frame = iter(words), iter(frames)
    for position in range(len(prompt), len(ids)):
        kind = vocabulary.kind(ids[position])
        if kind is TokenKind.TEXT:
            written[position] = next(next_word)
        elif kind is TokenKind.AUDIO:
            spoken[position] = next(next_frame)
    return AlignedAnswer(task, answer.text, tuple(ids), len(prompt), tuple(written), tuple(spoken), codes, answer)


def pronounced(utterance: Utterance) -> list[tuple[int, ...]]:
    """The phones of each word."""
    ends = utterance.phone_ends or ()
    middles = [(a + b) / 2 for a, b in zip((0, *ends), ends, strict=False)]
    spans = zip(utterance.word_starts or (), utterance.word_ends or (), strict=True)
    return [
        tuple(phone for phone, at in zip(utterance.phones, middles, strict=True) if first <= at < last)
        for first, last in spans
    ]


def _answer_codes(speech_lm: SpeechLM, answer: Utterance) -> tuple[AudioCodes, list[int]]:
    """As the model is trained to say it, and the word in the middle of each frame; nano's are on its word grid."""
    starts, ends = np.array(answer.word_starts), np.array(answer.word_ends)
    frontend = speech_lm.audio_frontend
    if not isinstance(frontend, NanoTokenizer):
        codes = _codes(speech_lm, answer)
        bounds = np.stack([starts, ends], 1) / SAMPLE_RATE * float(codes.frame_rate)
    else:
        config = frontend.config
        step, hop = config.frames_per_code, config.hop_length
        sources, targets = grid_positions((starts / hop).astype(np.float32), float(ends[-1] / hop), step)
        frames = frontend.features(pad_to_codes(answer.samples, config))
        codes = frontend.encode_frames(warp_frames(frames, sources, targets))
        bounds = np.stack([targets[1:-2], targets[2:-1]], 1) / step
    middles = np.arange(len(codes.ids)) + 0.5
    inside = (bounds[:, :1] <= middles) & (middles < bounds[:, 1:])
    return codes, [int(column.argmax()) if column.any() else NOTHING for column in inside.T]


def _codes(speech_lm: SpeechLM, utterance: Utterance) -> AudioCodes:
    heard = speech_lm.hear(Wave(utterance.samples, SAMPLE_RATE))
    if not isinstance(heard, AudioCodes):
        raise ConfigError(
            f"{speech_lm.audio_frontend.name} gives features; wanted: codes; name a model that hears codes"
        )
    return heard


def _word_of_tokens(pieces: Sequence[str]) -> list[int]:
    """A piece that begins with a blank begins a word."""
    words, word = [], 0
    for number, piece in enumerate(pieces):
        word += number > 0 and piece.startswith(" ")
        words.append(word)
    return words


def _find(ids: Sequence[int], part: Sequence[int]) -> int:
    return next(i for i in range(len(ids)) if list(ids[i : i + len(part)]) == list(part))


@torch.inference_mode()
def teacher_forced_chain(
    model: SpeechModel, ids: Sequence[int], deepest: int | None = None, heard: Sequence[HeardAudio] = ()
) -> list[Tensor]:
    """Logits of levels 0..deepest (default: all that `ids` are long enough for).

    Entry 0 is the backbone's (T, V), row p predicting token p + 1. Entry k is level k's (T-k, V): it starts at position
    k, reading token p and the hidden state of level k - 1 at p - 1.
    """
    device = next(model.parameters()).device
    length = len(ids)
    embeds = model.embed(torch.tensor([list(ids)], device=device))
    positions = torch.arange(length, device=device)[None]
    hidden = model.backbone(model.listen(embeds, [heard]), positions, attention_mask=_causal_mask(embeds))
    chain = [model.logits(hidden)[0]]
    deepest = model.config.num_nextn_predict_layers if deepest is None else deepest
    for level in range(1, min(deepest, length - 1) + 1):
        seen = embeds[:, level:]
        hidden = model.block(level - 1, seen, hidden[:, :-1], positions[:, level:], attention_mask=_causal_mask(seen))
        chain.append(model.logits(hidden)[0])
    return chain


def _causal_mask(embeds: Tensor) -> Tensor:
    """Additive causal mask (1, 1, T, T) for embeds (1, T, H)."""
    length = embeds.shape[1]
    mask = torch.full((length, length), torch.finfo(embeds.dtype).min, dtype=embeds.dtype, device=embeds.device)
    return mask.triu(1)[None, None]
