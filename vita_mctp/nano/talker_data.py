"""What a nano talker learns from: answers as a frozen thinker wrote them, and the codes in which the answer voice says
them.

The thinker is asked aloud and in writing, and answers rightly; or it is asked to say a sentence, which it then writes
once more. Everything is made once, below one folder: corpus/, and in a folder for this corpus and this thinker
features/, tokens/ and the thinker's states.

n text tokens, H width of the thinker, N codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_mctp.checkpoints.opening import OpenedModel
from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.networks import NanoEncoder
from vita_mctp.environment import weights_hash
from vita_mctp.models.registry import SpeechModel
from vita_mctp.nano.codec_data import CODES_FILE, BatchMaker, open_features, tokenize_corpus
from vita_mctp.nano.corpus import INDEX, Corpus, build_planned
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.samples import CodeStore, NanoSamples
from vita_mctp.nano.voices import Item, Sizes, make_plan
from vita_mctp.text.chat import IGNORED, TTS_INSTRUCTION, ChatFormat, Message, Sample
from vita_mctp.text.interleave import BOOST_RATIO

ASKED, WRITTEN, SENTENCES = "asked", "written", "sentences"
HELD_OUT = "held-out sentences"
_STATES_FILE = "states.safetensors"
_MAX_FRAMES = 8192
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class SpokenText:
    """text: as words. ids (n + 1,): of its tokens and the end of the answer. codes (N,).

    states (n + 1, H): the thinker's hidden states that predicted these, the first one the last prompt position's.
    """

    text: str
    ids: Tensor
    states: Tensor
    codes: Tensor


def make_spoken_texts(
    thinker: OpenedModel,
    folder: Path,
    sizes: Sizes,
    seed: int,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[SpokenText]]:
    """ASKED, WRITTEN, SENTENCES to learn from, HELD_OUT to judge by: sentences of which no sample is trained on.

    Raises MissingExtraError where flite or espeak-ng is not installed and the corpus is yet to be made.
    """
    plan = _plan(sizes, seed)
    corpus = build_planned(folder / "corpus", plan, seed, processes, progress)
    made = folder / key_of((folder / "corpus" / INDEX).read_text(), weights_hash(thinker.folder))
    codec = Path(thinker.speech.audio_tokenizer.folder)
    config = NanoCodecConfig.load(codec)
    if not (made / "tokens" / CODES_FILE).is_file():
        store = open_features(corpus, made / "features", config)
        maker = BatchMaker(store, corpus, config, store.items, _MAX_FRAMES, seed)
        tokenize_corpus(maker, NanoEncoder.from_folder(codec), made / "tokens", 0, seed)
    chat = ChatFormat(thinker.load_tokenizer(config.codebook_size))
    drafts = list(_drafts(corpus, CodeStore.load(made / "tokens"), chat))
    states = _states(thinker, [sample for _, _, sample, _ in drafts], made / _STATES_FILE)
    found: dict[str, list[SpokenText]] = {ASKED: [], WRITTEN: [], SENTENCES: [], HELD_OUT: []}
    for (part, text, sample, codes), predicting in zip(drafts, states, strict=True):
        ids = torch.tensor(_written(sample))
        found[part].append(SpokenText(text, ids, predicting, torch.tensor(codes)))
    return found


def key_of(*parts: str) -> str:
    """A folder's name for what is made of `parts` alone."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def _plan(sizes: Sizes, seed: int) -> Mapping[str, Sequence[Item]]:
    """Answers and sentences by the answer voice, and each question asked once, by a voice that is made fast."""
    plan = make_plan(sizes, seed)
    asked: dict[str, Item] = {}
    for item in plan["questions"]:
        if item.voice.engine == "espeak":
            asked.setdefault(item.text, item)
    answered = {qa.answer for qa in build_domain().train if qa.question in asked}
    return {
        "questions": list(asked.values()),
        "answers": [item for item in plan["answers"] if item.text in answered],
        **{name: plan[name] for name in ("sentences", "eval_sentences")},
    }


def _drafts(corpus: Corpus, store: CodeStore, chat: ChatFormat) -> Iterator[tuple[str, str, Sample, tuple[int, ...]]]:
    """Part, text, the thinker's conversation, and the codes that say the text."""
    conversations = NanoSamples(chat, store, store, {}, (BOOST_RATIO,))
    answer_of = {qa.question: qa.answer for qa in build_domain().train}
    spoken_by = {corpus.utterance(index).text: index for index in corpus.indices("answers")}
    for index in corpus.indices("questions"):
        question = corpus.utterance(index).text
        answer = answer_of[question]
        codes = store.codes(spoken_by[answer], 0)
        yield ASKED, answer, conversations.sqa_text(index, answer, 0), codes
        yield WRITTEN, answer, conversations.text(question, answer), codes
    for part, name in ((SENTENCES, "sentences"), (HELD_OUT, "eval_sentences")):
        for index in corpus.indices(name):
            text = corpus.utterance(index).text
            yield part, text, said(chat, text), store.codes(index, 0)


def said(chat: ChatFormat, text: str) -> Sample:
    """A text to say, and the same text as the answer."""
    return chat.sample([Message("user", f"{TTS_INSTRUCTION}\n{text}"), Message("assistant", "")])


def _written(sample: Sample) -> list[int]:
    """Ids of the answer's tokens and of its end; behind that comes a newline, which nobody speaks."""
    return [label for label in sample.labels if label != IGNORED][:-1]


def _states(thinker: OpenedModel, samples: Sequence[Sample], path: Path) -> list[Tensor]:
    """The thinker's hidden states that predict each sample's answer, computed once."""
    lengths = [len(_written(sample)) for sample in samples]
    if not path.is_file():
        model = thinker.load_model(dtype="float32")
        part = path.with_suffix(".part")
        save_file({"states": torch.cat(list(predicting_states(model, samples))).half()}, part)
        part.replace(path)
    return list(load_file(path)["states"].float().split(lengths))


@torch.inference_mode()
def predicting_states(thinker: SpeechModel, samples: Sequence[Sample]) -> Iterator[Tensor]:
    """Of each sample (n + 1, H), after the final norm."""
    for first in range(0, len(samples), _AT_ONCE):
        several = samples[first : first + _AT_ONCE]
        longest = max(map(len, several))
        ids = torch.tensor([(*each.ids, *[0] * (longest - len(each))) for each in several])
        positions = torch.arange(longest).expand_as(ids)
        hidden: Any = thinker.backbone(thinker.embed(ids), positions)  # causal, so that padding behind harms none
        for states, sample in zip(hidden, several, strict=True):
            end = len(sample) - 2  # of what predicts: the end's own state and the newline's stay out
            yield states[end - len(_written(sample)) : end].clone()
