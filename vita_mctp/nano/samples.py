"""The nano model's training samples: the synthetic corpus's sentences, their codes, the prompts used at inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vita_mctp.data.row_stream import Pool
from vita_mctp.errors import ConfigError
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.voices import NATURAL_BABBLE, NATURAL_PART
from vita_mctp.text.chat import (
    ASR_INSTRUCTION,
    SPEECH_TO_SPEECH_SYSTEM,
    TTS_INSTRUCTION,
    ChatFormat,
    Clip,
    Message,
    Sample,
    in_a_rhythm,
)
from vita_mctp.text.interleave import Ratio
from vita_mctp.text.tokenizer import TextTokenizer, train_tokenizer
from vita_mctp.text.vocabulary import AUDIO_TAG
from vita_mctp.types import IntArray

_ANSWER_VARIANT = 0
_TEXT_VOCABULARY = 2048
"""Upper limit: 256 bytes, each word with and without a space before it, and the merges on the way."""


class CodeStore:
    """Codes of a corpus's utterances, each in one or more variants (framing offset, noise).

    On disk `codes.npy`, int16 (N,), all codes end to end, and `index.npy`, (M, 4), rows of utterance, variant, start
    and length.
    """

    def __init__(self, codes: npt.NDArray[np.int16], index: IntArray) -> None:
        self._codes = codes
        self._spans: dict[int, dict[int, tuple[int, int]]] = {}
        for utterance, variant, start, length in index.tolist():
            self._spans.setdefault(utterance, {})[variant] = (start, length)

    @classmethod
    def load(cls, folder: Path) -> CodeStore:
        """Raises ConfigError when the folder holds no codes."""
        try:
            return cls(np.load(folder / "codes.npy"), np.load(folder / "index.npy"))
        except OSError as error:
            raise ConfigError(f"no codes in {folder} ({error.strerror}); tokenise the corpus first") from error

    def __contains__(self, utterance: int) -> bool:
        return utterance in self._spans

    def codes(self, utterance: int, variant: int) -> tuple[int, ...]:
        """Codes of the `variant`-th variant, counted round."""
        variants = self._spans[utterance]
        start, length = variants[sorted(variants)[variant % len(variants)]]
        return tuple(self._codes[start : start + length].tolist())


@dataclass(frozen=True, eq=False)
class NanoSamples:
    """Makes samples; a spoken question has the codes of any of its variants, an answer always the same ones.

    heard, spoken: codes of what asks, and of the answer voice. answers: the utterance in which it says a text. ratios:
    how answers are interleaved, as `in_a_rhythm` chooses.
    """

    chat: ChatFormat
    heard: CodeStore
    spoken: CodeStore
    answers: Mapping[str, int]
    ratios: Sequence[Ratio]

    def asr(self, utterance: int, text: str, variant: int) -> Sample:
        """Speech -> its text."""
        user = Message("user", f"{ASR_INSTRUCTION}\n{AUDIO_TAG}")
        return self.chat.sample([user, Message("assistant", text)], [self._clip(utterance, variant)])

    def tts(self, utterance: int, text: str, _variant: int) -> Sample:
        """Text -> text and speech."""
        messages = [Message("user", f"{TTS_INSTRUCTION}\n{text}"), Message("assistant", AUDIO_TAG)]
        return self.chat.sample(messages, [self._said(utterance)], self.ratios[0])

    def sqa(self, utterance: int, answer: str, variant: int) -> Sample:
        """Spoken question -> answer in text and speech."""
        messages = [
            Message("system", SPEECH_TO_SPEECH_SYSTEM),
            Message("user", self.chat.style.before_speech + AUDIO_TAG),
            Message("assistant", answer + AUDIO_TAG),
        ]
        clips = [self._clip(utterance, variant), self._said(self.answers[answer])]
        rhythmic, ratio = in_a_rhythm(messages, self.ratios, variant)
        return self.chat.sample(rhythmic, clips, ratio)

    def sqa_text(self, utterance: int, answer: str, variant: int) -> Sample:
        """Spoken question -> answer in text alone; without a system text."""
        user = Message("user", self.chat.style.before_speech + AUDIO_TAG)
        return self.chat.sample([user, Message("assistant", answer)], [self._clip(utterance, variant)])

    def text(self, question: str, answer: str) -> Sample:
        """Written question -> written answer."""
        return self.chat.sample([Message("user", question), Message("assistant", answer)])

    def _clip(self, utterance: int, variant: int) -> Clip:
        return Clip(self.heard.codes(utterance, variant))

    def _said(self, utterance: int) -> Clip:
        return Clip(self.spoken.codes(utterance, _ANSWER_VARIANT))


Speech = tuple[Corpus, CodeStore]
"""Utterances, and their codes as a model hears them."""


def nano_pools(
    known: Speech,
    chat: ChatFormat,
    ratios: Sequence[Ratio],
    spoken: CodeStore | None = None,
    natural: Speech | None = None,
) -> dict[str, Pool]:
    """Pools by the names that mixtures use; held-out parts and utterances without codes are in none.

    asr, asr_answers, asr_babble: transcribe questions, the answer voice, random words. tts_answers, tts_sentences:
    speak. sqa, sqa_text: answer a spoken question aloud, in text alone. text: answer a written one. natural_asr,
    natural_sqa, natural_babble: the same of natural voices, where they ask; natural_short_sqa: bare sums, answered.

    spoken: codes that the decoder was trained on, where those that are heard are a later encoder's.
    """
    corpus, store = known
    domain = build_domain()
    answer_of = {qa.question: qa.answer for qa in domain.train}
    questions, answers, sentences, babble = (
        _coded(corpus, store, part) for part in ("questions", "answers", "sentences", "babble")
    )
    spoken_by = {text: utterance for utterance, text in answers}
    asked = [(utterance, answer_of[text]) for utterance, text in questions]
    written = domain.train + domain.text_only
    samples = NanoSamples(chat, store, spoken or store, spoken_by, ratios)
    pools = {
        "asr": _pool(questions, samples.asr),
        "asr_answers": _pool(answers + sentences, samples.asr),
        "asr_babble": _pool(babble, samples.asr),
        "tts_answers": _pool(answers, samples.tts),
        "tts_sentences": _pool(sentences, samples.tts),
        "sqa": _pool([(utterance, answer) for utterance, answer in asked if answer in spoken_by], samples.sqa),
        "sqa_text": _pool(asked, samples.sqa_text),
        "text": Pool(len(written), lambda item, _: samples.text(written[item].question, written[item].answer)),
    }
    if natural is None:
        return pools
    by_nature = replace(samples, heard=natural[1])
    questions = _coded(*natural, NATURAL_PART)
    answered = [(utterance, answer_of[text]) for utterance, text in questions if answer_of[text] in spoken_by]
    babble = _coded(*natural, NATURAL_BABBLE)
    sums = {answer.partition(" is ")[0]: answer for answer in spoken_by}
    return pools | {
        "natural_asr": _pool(questions, by_nature.asr),
        "natural_sqa": _pool(answered, by_nature.sqa),
        "natural_babble": _pool(babble, by_nature.asr),
        "natural_short_sqa": _pool([(said, sums[text]) for said, text in babble if text in sums], by_nature.sqa),
    }


def _pool(items: Sequence[tuple[int, str]], make: Callable[[int, str, int], Sample]) -> Pool:
    return Pool(len(items), lambda item, variant: make(*items[item], variant))


def _coded(corpus: Corpus, store: CodeStore, part: str) -> list[tuple[int, str]]:
    """(utterance, text) of the part's utterances that have codes."""
    if part not in corpus.parts:
        return []
    return [(index, corpus.utterance(index).text) for index in corpus.indices(part) if index in store]


def nano_tokenizer(folder: Path, codebook_size: int) -> TextTokenizer:
    """A word-level tokenizer of the domain and of the prompts around it, written to `folder`."""
    domain = build_domain()
    roles = "system\nuser\nassistant\n"
    texts = [text for qa in domain.questions for text in (qa.question, qa.answer)]
    texts += [f"{ASR_INSTRUCTION}\n", f"{TTS_INSTRUCTION}\n", SPEECH_TO_SPEECH_SYSTEM, roles]
    return train_tokenizer(texts, _TEXT_VOCABULARY, folder, codebook_size)
