"""The nano model's training samples: the synthetic corpus's sentences, their codes, the prompts used at inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vita_mctp.data.row_stream import Pool
from vita_mctp.errors import ConfigError
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.domain import build_domain
from vita_mctp.text.chat import (
    ASR_INSTRUCTION,
    SPEECH_TO_SPEECH_SYSTEM,
    TTS_INSTRUCTION,
    ChatFormat,
    Clip,
    Message,
    Sample,
)
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


class NanoSamples:
    """Makes samples; a spoken question has the codes of any of its variants, an answer always the same ones."""

    def __init__(self, chat: ChatFormat, store: CodeStore, answers: Mapping[str, int], ratio: Sequence[int]) -> None:
        """answers: the utterance in which the answer voice says a text. ratio: how answers are interleaved."""
        self._chat, self._store, self._answers, self._ratio = chat, store, answers, tuple(ratio)

    def asr(self, utterance: int, text: str, variant: int) -> Sample:
        """Speech -> its text."""
        user = Message("user", f"{ASR_INSTRUCTION}\n{AUDIO_TAG}")
        return self._chat.sample([user, Message("assistant", text)], [self._clip(utterance, variant)])

    def tts(self, utterance: int, text: str, _variant: int) -> Sample:
        """Text -> text and speech."""
        messages = [Message("user", f"{TTS_INSTRUCTION}\n{text}"), Message("assistant", AUDIO_TAG)]
        return self._chat.sample(messages, [self._clip(utterance, _ANSWER_VARIANT)], self._ratio)

    def sqa(self, utterance: int, answer: str, variant: int) -> Sample:
        """Spoken question -> answer in text and speech."""
        messages = [
            Message("system", SPEECH_TO_SPEECH_SYSTEM),
            Message("user", self._chat.style.before_speech + AUDIO_TAG),
            Message("assistant", answer + AUDIO_TAG),
        ]
        clips = [self._clip(utterance, variant), self._clip(self._answers[answer], _ANSWER_VARIANT)]
        return self._chat.sample(messages, clips, self._ratio)

    def sqa_text(self, utterance: int, answer: str, variant: int) -> Sample:
        """Spoken question -> answer in text alone; without a system text."""
        user = Message("user", self._chat.style.before_speech + AUDIO_TAG)
        return self._chat.sample([user, Message("assistant", answer)], [self._clip(utterance, variant)])

    def text(self, question: str, answer: str) -> Sample:
        """Written question -> written answer."""
        return self._chat.sample([Message("user", question), Message("assistant", answer)])

    def _clip(self, utterance: int, variant: int) -> Clip:
        return Clip(self._store.codes(utterance, variant))


def nano_pools(corpus: Corpus, store: CodeStore, chat: ChatFormat, ratio: Sequence[int]) -> dict[str, Pool]:
    """Pools by the names that mixtures use; held-out parts and utterances without codes are in none.

    asr, asr_answers, asr_babble: transcribe questions, the answer voice, random words. tts_answers, tts_sentences:
    speak. sqa, sqa_text: answer a spoken question aloud, in text alone. text: answer a written one.
    """
    domain = build_domain()
    answer_of = {qa.question: qa.answer for qa in domain.train}
    questions, answers, sentences, babble = (
        _coded(corpus, store, part) for part in ("questions", "answers", "sentences", "babble")
    )
    spoken_by = {text: utterance for utterance, text in answers}
    asked = [(utterance, answer_of[text]) for utterance, text in questions]
    written = domain.train + domain.text_only
    samples = NanoSamples(chat, store, spoken_by, ratio)
    return {
        "asr": _pool(questions, samples.asr),
        "asr_answers": _pool(answers + sentences, samples.asr),
        "asr_babble": _pool(babble, samples.asr),
        "tts_answers": _pool(answers, samples.tts),
        "tts_sentences": _pool(sentences, samples.tts),
        "sqa": _pool([(utterance, answer) for utterance, answer in asked if answer in spoken_by], samples.sqa),
        "sqa_text": _pool(asked, samples.sqa_text),
        "text": Pool(len(written), lambda item, _: samples.text(written[item].question, written[item].answer)),
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
