"""One answer as it forms: generated tokens in, text and sound out.

Only generated tokens come in here, so the prompt's own audio cannot reach the decoder. Everything that belongs to the
answer lives in the generator's frame: two sessions share nothing, and closing a session drops it all.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from vita_mctp.codecs.base import AudioDecoder
from vita_mctp.codecs.chunker import AudioChunker
from vita_mctp.text.tokenizer import IncrementalDecoder, TextTokenizer
from vita_mctp.timing import Stopwatch
from vita_mctp.types import AudioBlock, Done, Role, StopReason, TextDelta, TokenEvent, TokenKind, Turn, WaveChunk

SessionEvent = TextDelta | WaveChunk | Done


class SoundStream:
    """Codes -> wave chunks: a chunker and a decoder's state, for one answer.

    block_sizes: as the chunker's; none take the decoder's own block size throughout.
    """

    def __init__(self, decoder: AudioDecoder, block_sizes: Sequence[int] = (), seed: int = 0) -> None:
        self._decoder = decoder
        self._chunker = AudioChunker(block_sizes or [decoder.block_size])
        self._state = decoder.start(seed)

    def push(self, code: int, watch: Stopwatch) -> WaveChunk | None:
        block = self._chunker.push(code)
        return None if block is None else self._decode(block, watch)

    def finish(self, watch: Stopwatch) -> WaveChunk:
        return self._decode(self._chunker.finish(), watch)

    def _decode(self, block: AudioBlock, watch: Stopwatch) -> WaveChunk:
        if block.codes:
            watch.mark("first_audio_tokens")
        chunk, self._state = self._decoder.decode_block(block, self._state)
        if len(chunk.samples):
            watch.mark("first_sound")
        return chunk


@dataclass
class _Answer:
    """What `Done` will tell."""

    reason: StopReason = StopReason.LENGTH
    tokens: int = 0
    audio_seconds: float = 0.0
    texts: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    open_end: tuple[int, ...] = ()

    def add_chunk(self, chunk: WaveChunk) -> WaveChunk:
        self.audio_seconds += len(chunk.samples) / chunk.sample_rate
        return chunk

    def add_text(self, text: str, watch: Stopwatch) -> TextDelta:
        watch.mark("first_text")
        self.texts.append(text)
        return TextDelta(text)

    def add_token(self, token: TokenEvent, end_of_audio: int) -> None:
        """Keeps it as content of a later history, where an answer that was cut short has its last segment closed."""
        self.tokens += 1
        if token.kind is TokenKind.STOP:
            self.reason = StopReason.EOS
            return
        self.ids.append(token.id)
        if token.kind in (TokenKind.BEGIN, TokenKind.END):
            self.open_end = (end_of_audio,) if token.kind is TokenKind.BEGIN else ()

    @property
    def turn(self) -> Turn:
        return Turn(Role.ASSISTANT, (*self.ids, *self.open_end))


def stream_session(
    tokens: Iterator[TokenEvent],
    tokenizer: TextTokenizer,
    sound: SoundStream | None,
    mode: str,
    watch: Stopwatch,
    question: Turn | None = None,
) -> Generator[SessionEvent, None, None]:
    """Text as it becomes final, sound as blocks fill, then `Done`.

    tokens: generated ones; closed when this generator ends or is closed, which stops generation.
    sound: None for answers that are text only; otherwise the last chunk comes even when it holds no samples.
    question: what was asked, for `Done.turns`, which is empty without it.
    """
    answer, text, vocabulary = _Answer(), IncrementalDecoder(tokenizer), tokenizer.vocabulary
    try:
        for token in tokens:
            answer.add_token(token, vocabulary.end_of_audio)
            if token.kind is TokenKind.TEXT:
                if piece := text.push([token.id]):
                    yield answer.add_text(piece, watch)
            elif token.kind is TokenKind.AUDIO:
                answer.codes.append(vocabulary.code_of(token.id))
                if sound is not None and (chunk := sound.push(answer.codes[-1], watch)) is not None:
                    yield answer.add_chunk(chunk)
    finally:
        if isinstance(tokens, Generator):
            tokens.close()
    if piece := text.flush():
        yield answer.add_text(piece, watch)
    if sound is not None:
        yield answer.add_chunk(sound.finish(watch))
    timings = watch.timings(answer.tokens, answer.audio_seconds)
    turns = () if question is None else (question, answer.turn)
    yield Done(answer.reason, mode, "".join(answer.texts), timings, tuple(answer.codes), turns)
