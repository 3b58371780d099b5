"""One object that knows every id: ChatML markers, audio markers and the audio codes behind the text.

Layout of a VITA-Audio vocabulary: the text tokenizer's own ids, the additions of `released_additions`, then one id for
each audio code, the last ids of the vocabulary. Embedding tables are padded to a multiple of 8 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from vita_mctp.errors import ConfigError
from vita_mctp.types import TokenKind

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
BEGIN_OF_AUDIO = "<|begin_of_audio|>"
END_OF_AUDIO = "<|end_of_audio|>"
CONTEXT_OF_AUDIO = "<|context_of_audio|>"
AUDIO_TAG = "<|audio|>"

RELEASED_CODES = 16384
"""Size of GLM-4-Voice's codebook, hence of the released models' audio vocabulary."""

PADDING_MULTIPLE = 8

_VISION = tuple(
    f"<|{what}_of_{media}|>" for media in ("image", "video", "patch") for what in ("begin", "end", "context")
)
_GROUNDING = tuple(f"<|{what}_of_{mark}|>" for mark in ("quad", "ref", "box") for what in ("begin", "end"))
_TAGS = ("<|image|>", "<|video|>", AUDIO_TAG)


class VocabularyKind(StrEnum):
    """How a user's speech enters: as discrete codes (VITA-Audio), or as encoder features (VITA-Audio-Plus)."""

    DISCRETE = "glm4voice"
    CONTINUOUS = "sensevoice_glm4voice"


def audio_token(code: int) -> str:
    """The written form of one audio code."""
    return f"<|audio_{code}|>"


def released_additions(kind: VocabularyKind) -> tuple[str, ...]:
    """Special tokens put behind Qwen2.5's own, in the released order: 20, or 21 with the continuous kind."""
    context = (CONTEXT_OF_AUDIO,) if kind is VocabularyKind.CONTINUOUS else ()
    return (*_VISION, BEGIN_OF_AUDIO, END_OF_AUDIO, *context, *_GROUNDING, *_TAGS)


@dataclass(frozen=True)
class Vocabulary:
    """Ids by name. Audio code c has id `audio_0 + c`; no id lies behind the last audio code."""

    im_start: int
    im_end: int
    endoftext: int
    begin_of_audio: int
    end_of_audio: int
    audio_tag: int
    context_of_audio: int | None
    audio_0: int
    num_audio: int

    def __post_init__(self) -> None:
        if self.num_audio < 1:
            raise ConfigError(f"a vocabulary wants at least one audio code, got {self.num_audio}")
        named = [self.im_start, self.im_end, self.endoftext, self.begin_of_audio, self.end_of_audio, self.audio_tag]
        named += [] if self.context_of_audio is None else [self.context_of_audio]
        if len(set(named)) != len(named) or not all(0 <= token < self.audio_0 for token in named):
            raise ConfigError(f"got the special ids {named}; wanted different ones in [0, {self.audio_0})")

    @classmethod
    def from_lookup(cls, token_to_id: Callable[[str], int | None], num_audio: int) -> Vocabulary:
        """The vocabulary of a tokenizer whose `token_to_id` answers None for a token that it lacks."""

        def required(token: str) -> int:
            found = token_to_id(token)
            if found is None:
                raise ConfigError(f"the tokenizer lacks {token}; wanted Qwen2.5's with the VITA-Audio additions")
            return found

        audio_0 = required(audio_token(0))
        if required(audio_token(num_audio - 1)) != audio_0 + num_audio - 1:
            raise ConfigError(f"the {num_audio} audio tokens must have consecutive ids from {audio_0} on")
        return cls(
            im_start=required(IM_START),
            im_end=required(IM_END),
            endoftext=required(END_OF_TEXT),
            begin_of_audio=required(BEGIN_OF_AUDIO),
            end_of_audio=required(END_OF_AUDIO),
            audio_tag=required(AUDIO_TAG),
            context_of_audio=token_to_id(CONTEXT_OF_AUDIO),
            audio_0=audio_0,
            num_audio=num_audio,
        )

    @property
    def input_kind(self) -> VocabularyKind:
        return VocabularyKind.DISCRETE if self.context_of_audio is None else VocabularyKind.CONTINUOUS

    @property
    def size(self) -> int:
        return self.audio_0 + self.num_audio

    @property
    def padded_size(self) -> int:
        """Rows of the embedding table: `size` rounded up to a multiple of 8."""
        return -(-self.size // PADDING_MULTIPLE) * PADDING_MULTIPLE

    @property
    def pad(self) -> int:
        return self.endoftext

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return (self.im_end, self.endoftext)

    def is_audio(self, token: int) -> bool:
        return self.audio_0 <= token < self.size

    def code_of(self, token: int) -> int:
        """The audio code of an id; ValueError if the id is none."""
        if not self.is_audio(token):
            raise ValueError(f"id {token} is no audio code; those are {self.audio_0}..{self.size - 1}")
        return token - self.audio_0

    def audio_id(self, code: int) -> int:
        """The id of an audio code; ValueError if the codebook lacks it."""
        if not 0 <= code < self.num_audio:
            raise ValueError(f"audio code {code} is outside the codebook [0, {self.num_audio})")
        return self.audio_0 + code

    def kind(self, token: int) -> TokenKind:
        if self.is_audio(token):
            return TokenKind.AUDIO
        if token == self.begin_of_audio:
            return TokenKind.BEGIN
        if token == self.end_of_audio:
            return TokenKind.END
        return TokenKind.STOP if token in self.eos_ids else TokenKind.TEXT
