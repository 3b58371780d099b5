"""The prompts of `bench verified`: nano's held-out questions and sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vita_mctp.bench.verified import Asked, Spelling
from vita_mctp.decoding.request import Request
from vita_mctp.nano.corpus import build_planned
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.voices import Sizes, make_plan
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import Task, Wave

_PARTS = {
    "questions": "eval_questions",
    "answers never spoken in training": "eval_text_only",
    "sentences never trained on": "eval_sentences",
}
_SEED = 0
"""The shipped training corpus's."""


def draft_sets(
    speech_lm: SpeechLM, folder: Path, *, questions: int, sentences: int, temperature: float, seed: int
) -> tuple[dict[str, list[Asked]], Spelling]:
    """Requests by set, speech made in `folder` where it is not there; the questions once more, sampled.

    questions: of each kind, as far as there are so many. Raises MissingExtraError without a synthesiser.
    """
    plan = make_plan(Sizes(questions=max(questions, sentences), answers=0, sentences=0, babble=0), _SEED)
    chosen = {name: plan[part][: sentences if part == "eval_sentences" else questions] for name, part in _PARTS.items()}
    corpus = build_planned(folder, {_PARTS[name]: items for name, items in chosen.items()}, _SEED)
    answers = {qa.question: qa.answer for qa in build_domain().questions}
    sets: dict[str, list[Asked]] = {}
    for name, part in _PARTS.items():
        asked = []
        for index in corpus.indices(part):
            spoken = corpus.utterance(index)
            task = Task.TTS if part == "eval_sentences" else Task.SPEECH_TO_SPEECH
            heard = spoken.text if task is Task.TTS else speech_lm.hear(Wave(spoken.samples, SAMPLE_RATE))
            decoding = speech_lm.decoding(task, "vanilla", seed=seed, temperature=0.0)
            prompt = speech_lm.prompt(heard, task)
            limit, eos_ids = decoding.max_new_tokens, speech_lm.defaults.eos_ids
            request = Request(prompt.ids, decoding.mode, limit, decoding.sampling, eos_ids, str(index))
            asked.append(Asked(request, answers.get(spoken.text)))
        sets[name] = asked
    sets[f"questions, temperature {temperature:g}"] = [
        replace(each, request=replace(each.request, sampling=replace(each.request.sampling, temperature=temperature)))
        for each in sets["questions"]
    ]
    decoder, tokenizer = speech_lm.audio_decoder, speech_lm.tokenizer
    first_block = (*speech_lm.settings.block_sizes, decoder.block_size)[0]
    return sets, Spelling(tokenizer.vocabulary.kind, tokenizer.decode, first_block)
