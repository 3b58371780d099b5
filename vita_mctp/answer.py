"""One answer as it forms: generated tokens in, text and sound out.

Only generated tokens come in here, so the prompt's own audio cannot reach the decoder. Everything that belongs to the
answer lives in the generator's frame: two answers share nothing, and closing the generator drops it all.
"""

from __future__ import annotations

import html
import os
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vita_mctp.cancel import Cancel
from vita_mctp.codecs.base import AudioChunker, AudioDecoder
from vita_mctp.text.tokenizer import IncrementalDecoder, TextTokenizer
from vita_mctp.types import (
    AudioBlock,
    Code,
    Done,
    Heard,
    Role,
    StopReason,
    TextDelta,
    Timings,
    TokenEvent,
    TokenKind,
    Turn,
    Wave,
    WaveChunk,
)

AnswerEvent = TokenEvent | TextDelta | WaveChunk | Heard | Done


@dataclass(frozen=True, eq=False)
class Answer:
    """A finished answer. wave: without samples when the answer has no sound. heard: the question, where asked for."""

    text: str
    wave: Wave
    done: Done
    heard: str | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The question and this answer: `history=(*history, *answer.turns)` goes on from here."""
        return self.done.turns

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the wave. Raises as `Wave.save`."""
        self.wave.save(path)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.text)}</p>{self.wave._repr_html_()}"


class Clock:
    """Notes when each part of an answer came for the first time, in seconds since it was made.

    cut: seconds of the recording that were left out before and after its speech. prompt_tokens: how many were read.
    """

    def __init__(self, cut: tuple[float, float] = (0.0, 0.0)) -> None:
        self._start, self._cut, self.prompt_tokens = time.perf_counter(), cut, 0
        self._marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Notes the moment under the name of a field of `Timings`, if nothing was noted there before."""
        self._marks.setdefault(name, time.perf_counter() - self._start)

    def timings(self, tokens: int, audio_seconds: float) -> Timings:
        """tokens: generated ones, markers and the end included; audio_seconds: length of the answer's wave."""
        total = time.perf_counter() - self._start
        return Timings(
            total=total,
            prompt_tokens=self.prompt_tokens,
            tokens=tokens,
            audio_seconds=audio_seconds,
            cut=self._cut,
            **self._marks,
        )


class SoundStream:
    """Codes -> wave chunks: a chunker and a decoder's state, for one answer.

    block_sizes: as the chunker's; none take the decoder's own block size throughout.
    """

    def __init__(self, decoder: AudioDecoder, block_sizes: Sequence[int] = (), seed: int = 0) -> None:
        self._decoder = decoder
        self._chunker = AudioChunker(block_sizes or [decoder.block_size])
        self._state = decoder.start(seed)

    def push(self, code: Code, clock: Clock) -> WaveChunk | None:
        block = self._chunker.push(code)
        return None if block is None else self._decode(block, clock)

    def finish(self, clock: Clock) -> WaveChunk:
        return self._decode(self._chunker.finish(), clock)

    def _decode(self, block: AudioBlock, clock: Clock) -> WaveChunk:
        if block.codes:
            clock.mark("first_audio_tokens")
        chunk, self._state = self._decoder.decode_block(block, self._state)
        if len(chunk.samples):
            clock.mark("first_sound")
        return chunk


@dataclass
class _Draft:
    """What `Done` will say."""

    reason: StopReason = StopReason.CANCELLED
    kinds: list[TokenKind] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    audio_seconds: float = 0.0
    texts: list[str] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    open_end: tuple[int, ...] = ()

    def add_chunk(self, chunk: WaveChunk) -> WaveChunk:
        self.audio_seconds += len(chunk.samples) / chunk.sample_rate
        return chunk

    def add_text(self, text: str, clock: Clock) -> TextDelta:
        clock.mark("first_text")
        self.texts.append(text)
        return TextDelta(text)

    def add_token(self, token: TokenEvent, end_of_audio: int, clock: Clock) -> None:
        """Keeps it as content of a later history, where an answer that was cut short has its last segment closed.

        What a talker says is no part of it.
        """
        clock.mark("first_token")
        self.kinds.append(token.kind)
        self.levels.append(token.level)
        self.reason = token.ends or self.reason
        if token.kind is TokenKind.STOP or token.code is not None:
            return
        self.ids.append(token.id)
        if token.kind in (TokenKind.BEGIN, TokenKind.END):
            self.open_end = (end_of_audio,) if token.kind is TokenKind.BEGIN else ()

    @property
    def turn(self) -> Turn:
        return Turn(Role.ASSISTANT, (*self.ids, *self.open_end))


def stream_answer(
    tokens: Iterable[TokenEvent],
    tokenizer: TextTokenizer,
    sound: SoundStream | None,
    mode: str,
    clock: Clock,
    question: Turn | None = None,
    cancel: Cancel | None = None,
    each_token: bool = False,
) -> Generator[AnswerEvent, None, None]:
    """Text as it becomes final, sound as blocks fill, then `Done`.

    tokens: generated ones; a generator is closed when this one ends or is closed, which stops generation.
    sound: None for answers that are text only; otherwise the last chunk comes even when it holds no samples.
    question: what was asked, for `Done.turns`, which is empty without it.
    cancel: once it is set, nothing comes but `Done`, with the turn as far as it was generated.
    each_token: every token comes as well, before the text or sound that it completes.
    """
    cancel = cancel or Cancel()
    draft, text, vocabulary = _Draft(), IncrementalDecoder(tokenizer), tokenizer.vocabulary
    try:
        for token in tokens:
            if cancel.is_set:
                break
            draft.add_token(token, vocabulary.end_of_audio, clock)
            if each_token:
                yield token
            if token.kind is TokenKind.TEXT:
                if piece := text.push([token.id]):
                    yield draft.add_text(piece, clock)
            elif token.kind is TokenKind.AUDIO:
                draft.codes.append(vocabulary.code_of(token.id) if token.code is None else token.code)
                if sound is not None and (chunk := sound.push(draft.codes[-1], clock)) is not None:
                    yield draft.add_chunk(chunk)
    finally:
        if isinstance(tokens, Generator):
            tokens.close()
    if cancel.is_set:
        draft.reason, sound = StopReason.CANCELLED, None
    elif piece := text.flush():
        yield draft.add_text(piece, clock)
    if sound is not None:
        yield draft.add_chunk(sound.finish(clock))
    timings = clock.timings(len(draft.levels), draft.audio_seconds)
    turns = () if question is None else (question, draft.turn)
    made = tuple(draft.kinds), tuple(draft.levels)
    yield Done(draft.reason, mode, "".join(draft.texts), timings, tuple(draft.codes), turns, *made)


def collect(events: Iterable[AnswerEvent]) -> Answer:
    """A whole answer out of its events."""
    chunks: list[WaveChunk] = []
    heard = None
    for event in events:
        if isinstance(event, WaveChunk):
            chunks.append(event)
        elif isinstance(event, Heard):
            heard = event.text
        elif isinstance(event, Done):
            return Answer(event.text.strip(), join_chunks(chunks), event, heard)
    raise ValueError("the events end without Done")


def join_chunks(chunks: Sequence[WaveChunk]) -> Wave:
    """The wave of an answer; without chunks, one without samples."""
    rate = chunks[0].sample_rate if chunks else 1
    return Wave(np.concatenate([np.zeros(0, np.float32), *(chunk.samples for chunk in chunks)]), rate)
