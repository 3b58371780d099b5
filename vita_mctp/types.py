"""The nouns that flow from a question's wave to an answer's wave. All frozen; arrays in them are never written to."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from vita_mctp.errors import AnswerError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Code = int | tuple[int, ...]
"""What stands for one frame of sound: an id, or Q ids of Q codebooks."""

BACKBONE = 0
"""Level of what the backbone makes; MCTP block k - 1 is level k."""

NO_ID = -1
"""Instead of a token's id, of what is in no vocabulary."""


class Task(StrEnum):
    """What an answer is asked to be."""

    SPEECH_TO_SPEECH = "speech_to_speech"
    ASR = "asr"
    TTS = "tts"
    TEXT = "text"

    @property
    def hears(self) -> bool:
        """Whether the question is a recording; otherwise it is a text."""
        return self in (Task.SPEECH_TO_SPEECH, Task.ASR)

    @property
    def speaks(self) -> bool:
        """Whether the answer has sound; otherwise it is text alone."""
        return self in (Task.SPEECH_TO_SPEECH, Task.TTS)


class TokenKind(StrEnum):
    """What a generated token is: text, an audio code, a segment marker, or the end of the answer."""

    TEXT = "text"
    AUDIO = "audio"
    BEGIN = "begin"
    END = "end"
    STOP = "stop"


@dataclass(frozen=True, eq=False)
class Wave:
    """Mono float32 samples in [-1, 1], shape (T,), at `sample_rate` Hz."""

    samples: FloatArray
    sample_rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise ValueError(f"Wave wants float32 of shape (T,), got {self.samples.dtype} of {self.samples.shape}")
        if self.sample_rate <= 0:
            raise ValueError(f"Wave wants a positive sample rate, got {self.sample_rate}")

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes wav, flac, ogg or mp3, as the path ends. Raises AnswerError without samples, OutputError."""
        from vita_mctp.audio.io import write_wave

        if not self.samples.size:
            raise AnswerError(f"the wave has no samples to write to {path}; ask otherwise, or in another mode")
        write_wave(path, self)

    def _repr_html_(self) -> str:
        """A player, for notebooks."""
        from vita_mctp.audio.io import wav_bytes

        data = base64.b64encode(wav_bytes(self)).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>' if self.samples.size else "(no sound)"


@dataclass(frozen=True, eq=False)
class AudioCodes:
    """int64 ids of shape (N,), or (N, Q) with Q codebooks; 0 <= id < codebook_size, N / frame_rate seconds (exact)."""

    ids: IntArray
    codebook_size: int
    """Of each codebook."""
    frame_rate: Fraction
    codec: str

    def __post_init__(self) -> None:
        if self.ids.ndim not in (1, 2) or self.ids.dtype != np.int64 or not self.num_codebooks:
            raise ValueError(f"AudioCodes wants int64 (N,) or (N, Q), got {self.ids.dtype} of {self.ids.shape}")
        if self.ids.size and not (int(self.ids.min()) >= 0 and int(self.ids.max()) < self.codebook_size):
            raise ValueError(
                f"AudioCodes wants ids in [0, {self.codebook_size}), got {self.ids.min()}..{self.ids.max()}"
            )

    @property
    def num_codebooks(self) -> int:
        return 1 if self.ids.ndim == 1 else self.ids.shape[1]

    def as_block(self) -> AudioBlock:
        """All of them as a stream of one block."""
        codes = self.ids.tolist()
        return AudioBlock(tuple(codes if self.ids.ndim == 1 else map(tuple, codes)), 0, is_last=True)


@dataclass(frozen=True, eq=False)
class AudioFeatures:
    """What a model hears instead of codes: float32 frames of shape (T, D), T >= 1, for its audio encoder.

    positions: of a prompt, that the encoded recording takes; the feature extractor knows.
    """

    frames: FloatArray
    positions: int

    def __post_init__(self) -> None:
        if self.frames.ndim != 2 or not len(self.frames) or self.frames.dtype != np.float32:
            raise ValueError(
                f"AudioFeatures wants float32 of shape (T, D), got {self.frames.dtype} of {self.frames.shape}"
            )
        if self.positions < 1:
            raise ValueError(f"AudioFeatures wants at least one position, got {self.positions}")


@dataclass(frozen=True)
class HeardAudio:
    """A recording that, encoded, overwrites the embeddings at positions [start, end) of the ids it belongs to."""

    features: AudioFeatures
    start: int

    @property
    def end(self) -> int:
        return self.start + self.features.positions

    def moved(self, by: int) -> HeardAudio:
        return HeardAudio(self.features, self.start + by)


@dataclass(frozen=True)
class Prompt:
    """Token ids of everything before the answer; no strings after this point.

    question: the turn that asks, for the history of the next question.
    """

    ids: tuple[int, ...]
    task: Task
    heard: tuple[HeardAudio, ...] = ()
    question: Turn | None = None


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Turn:
    """One finished turn of a dialogue as content ids, e.g. an answer just as the model generated it."""

    role: Role
    content: tuple[int, ...]
    heard: tuple[HeardAudio, ...] = ()


@dataclass(frozen=True)
class TokenEvent:
    """One generated token, number `index` of the answer; `level` is 0 for the backbone and k for block k - 1.

    code: what a talker says, which no language model reads: its id is NO_ID.
    ends: why the answer ends with this token; None on every other.
    hidden: for a talker, the hidden state (H,) that predicted it, where the request asks for it.
    """

    index: int
    id: int
    kind: TokenKind
    level: int
    ends: StopReason | None = None
    code: Code | None = None
    hidden: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class TextDelta:
    """Newly final text; never splits a character."""

    text: str


@dataclass(frozen=True)
class Heard:
    """What a spoken question says, written down by the model that answered it."""

    text: str


@dataclass(frozen=True)
class AudioBlock:
    """Codes ready for the audio decoder. A block with is_last is always sent, even when it is empty."""

    codes: tuple[Code, ...]
    index: int
    is_last: bool


@dataclass(frozen=True, eq=False)
class WaveChunk:
    """Decoded samples; the total over an answer depends only on the total number of codes, not on the cuts."""

    samples: FloatArray
    sample_rate: int
    index: int
    is_last: bool


class StopReason(StrEnum):
    """Why an answer ended."""

    EOS = "eos"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Timings:
    """Seconds since the question was handed over, unless said otherwise. None: it never happened.

    heard: the recording was encoded, for tasks that hear one. first_token: the prompt was read.
    cut: seconds of the recording that were left out before and after its speech. prompt_tokens: what was read, the
    question's codes included; tokens: what was generated.
    """

    total: float
    heard: float | None = None
    first_token: float | None = None
    first_text: float | None = None
    first_audio_tokens: float | None = None
    first_sound: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    audio_seconds: float = 0.0
    cut: tuple[float, float] = (0.0, 0.0)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.total if self.total > 0 else 0.0

    @property
    def real_time_factor(self) -> float | None:
        """Computing seconds per second of answer audio; None when the answer has no audio."""
        return self.total / self.audio_seconds if self.audio_seconds > 0 else None

    def after(self, written: Timings) -> Timings:
        """Of an answer that was written first, as `written` tells, and then spoken, as this tells."""
        codes, sound = self.first_audio_tokens, self.first_sound
        return replace(
            written,
            total=written.total + self.total,
            first_audio_tokens=None if codes is None else written.total + codes,
            first_sound=None if sound is None else written.total + sound,
            prompt_tokens=written.prompt_tokens + self.prompt_tokens,
            tokens=written.tokens + self.tokens,
            audio_seconds=self.audio_seconds,
        )


@dataclass(frozen=True)
class Done:
    """The end of an answer. turns: the question and this answer, to stand in the history of the next question.

    kinds, levels: of each generated token, what it is and which level made it.
    """

    reason: StopReason
    mode: str
    text: str
    timings: Timings
    codes: tuple[Code, ...] = ()
    turns: tuple[Turn, ...] = ()
    kinds: tuple[TokenKind, ...] = ()
    levels: tuple[int, ...] = ()
