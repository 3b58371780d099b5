"""Training samples of the nano model: the synthetic corpus's sentences, its tokens, and the prompts used at inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vita_mctp.data.synthetic.corpus import Corpus
from vita_mctp.data.synthetic.domain import QA, build_domain
from vita_mctp.errors import ConfigError
from vita_mctp.text.chat import ASR_INSTRUCTION, SPEECH_TO_SPEECH_SYSTEM, TTS_INSTRUCTION, ChatFormat, Clip, Message, Sample
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.tokenizer_training import train_tokenizer
from vita_mctp.training.batches import Pool
from vita_mctp.types import IntArray

POOLS = ("asr", "asr_answers", "asr_babble", "tts_answers", "tts_sentences", "sqa", "sqa_text", "text")
"""What a mixture may name: transcribing questions, the answer voice, babble; speaking answers, sentences; answering a spoken
question aloud, in text; answering a written one."""

_ANSWER_VARIANT = 0
_SPOKEN = "<|audio|>"


class TokenStore:
    """Codes of a corpus's utterances, each in one or more variants (framing offset, noise).

    On disk `codes.npy`, int16 (N,), all codes end to end, and `index.npy`, int64 (M, 4), rows of utterance, variant, start, length.
    """

    def __init__(self, codes: npt.NDArray[np.int16], index: IntArray) -> None:
        self._codes = codes
        self._places: dict[int, dict[int, tuple[int, int]]] = {}
        for utterance, variant, start, length in index.tolist():
            self._places.setdefault(utterance, {})[variant] = (start, length)

    @classmethod
    def load(cls, folder: Path) -> TokenStore:
        """Raises ConfigError when the folder holds no tokens."""
        try:
            return cls(np.load(folder / "codes.npy"), np.load(folder / "index.npy"))
        except OSError as error:
            raise ConfigError(f"no tokens in {folder} ({error.strerror}); tokenise the corpus first") from error

    def __contains__(self, utterance: int) -> bool:
        return utterance in self._places

    def codes(self, utterance: int, variant: int) -> tuple[int, ...]:
        """Codes of the `variant`-th variant, counted round."""
        variants = self._places[utterance]
        start, length = variants[sorted(variants)[variant % len(variants)]]
        return tuple(self._codes[start : start + length].tolist())


@dataclass(frozen=True)
class _ListPool:
    """Items and what makes a sample of one."""

    items: Sequence[tuple[int, str]]
    make: Callable[[int, str, int], Sample]

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, item: int, epoch: int) -> Sample:
        utterance, text = self.items[item]
        # Not the same variant for all items of an epoch, so that each chunk holds all of them.
        return self.make(utterance, text, item + epoch)


class NanoSamples:
    """Makes samples; a spoken question has the codes of one of its variants, the answer always the same ones."""

    def __init__(self, chat: ChatFormat, tokens: TokenStore, answers: Mapping[str, int], ratio: Sequence[int]) -> None:
        self._chat, self._tokens, self._answers, self._ratio = chat, tokens, answers, tuple(ratio)

    def asr(self, utterance: int, text: str, variant: int) -> Sample:
        user = Message("user", f"{ASR_INSTRUCTION}\n{_SPOKEN}")
        return self._chat.sample([user, Message("assistant", text)], [self._clip(utterance, variant)])

    def tts(self, utterance: int, text: str, variant: int) -> Sample:
        messages = [Message("user", f"{TTS_INSTRUCTION}\n{text}"), Message("assistant", _SPOKEN)]
        return self._chat.sample(messages, [self._clip(utterance, _ANSWER_VARIANT)], self._ratio)

    def sqa(self, utterance: int, answer: str, variant: int) -> Sample:
        messages = [
            Message("system", SPEECH_TO_SPEECH_SYSTEM),
            Message("user", self._chat.style.before_speech + _SPOKEN),
            Message("assistant", answer + _SPOKEN),
        ]
        clips = [self._clip(utterance, variant), self._clip(self._answers[answer], _ANSWER_VARIANT)]
        return self._chat.sample(messages, clips, self._ratio)

    def sqa_text(self, utterance: int, answer: str, variant: int) -> Sample:
        user = Message("user", self._chat.style.before_speech + _SPOKEN)
        return self._chat.sample([user, Message("assistant", answer)], [self._clip(utterance, variant)])

    def text(self, question: str, answer: str) -> Sample:
        return self._chat.sample([Message("user", question), Message("assistant", answer)])

    def _clip(self, utterance: int, variant: int) -> Clip:
        return Clip(self._tokens.codes(utterance, variant))


@dataclass(frozen=True)
class _TextPool:
    samples: NanoSamples
    items: Sequence[QA]

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, item: int, epoch: int) -> Sample:
        return self.samples.text(self.items[item].question, self.items[item].answer)


def nano_pools(corpus: Corpus, tokens: TokenStore, chat: ChatFormat, ratio: Sequence[int]) -> dict[str, Pool]:
    """Every pool of `POOLS` that corpus and tokens can fill; utterances without tokens and held-out parts are left out."""
    domain = build_domain()
    answer_of = {qa.question: qa.answer for qa in domain.train}
    spoken = {part: _spoken_items(corpus, tokens, part) for part in ("questions", "answers", "sentences", "babble")}
    answers = {text: utterance for utterance, text in spoken["answers"]}
    samples = NanoSamples(chat, tokens, answers, ratio)
    asked = [(utterance, answer_of[text]) for utterance, text in spoken["questions"]]
    asked_aloud = [(utterance, answer) for utterance, answer in asked if answer in answers]
    return {
        "asr": _ListPool(spoken["questions"], samples.asr),
        "asr_answers": _ListPool(spoken["answers"] + spoken["sentences"], samples.asr),
        "asr_babble": _ListPool(spoken["babble"], samples.asr),
        "tts_answers": _ListPool(spoken["answers"], samples.tts),
        "tts_sentences": _ListPool(spoken["sentences"], samples.tts),
        "sqa": _ListPool(asked_aloud, samples.sqa),
        "sqa_text": _ListPool(asked, samples.sqa_text),
        "text": _TextPool(samples, domain.train + domain.text_only),
    }


def _spoken_items(corpus: Corpus, tokens: TokenStore, part: str) -> list[tuple[int, str]]:
    if part not in corpus.parts:
        return []
    return [(index, corpus.utterance(index).text) for index in corpus.indices(part) if index in tokens]


def nano_tokenizer(folder: Path, codebook_size: int) -> TextTokenizer:
    """A word-level tokenizer of the domain and the prompts around it, written to `folder`."""
    domain = build_domain()
    roles = "system\nuser\nassistant\n"
    texts = [text for qa in domain.questions for text in (qa.question, qa.answer)]
    texts += [f"{ASR_INSTRUCTION}\n", f"{TTS_INSTRUCTION}\n", SPEECH_TO_SPEECH_SYSTEM, roles]
    return train_tokenizer(texts, _TEXT_VOCABULARY, folder, codebook_size)


_TEXT_VOCABULARY = 2048
"""Upper limit: 256 bytes, each word with and without a space, and the merges on the way."""
