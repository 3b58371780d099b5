"""What all endpoints of one server have in common: the model, who is let in, and what is counted."""

from __future__ import annotations

import ctypes
import json
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TypeVar

import numpy as np

from vita_mctp.cancel import Cancel
from vita_mctp.conversation.items import Item
from vita_mctp.conversation.reply import ModelReplies, ReplyOptions
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.errors import ConfigError, VitaError
from vita_mctp.serving.answers import Gate, in_thread
from vita_mctp.serving.errors import as_api_error
from vita_mctp.serving.load import Load
from vita_mctp.serving.metrics import Metrics
from vita_mctp.serving.options import ServerOptions
from vita_mctp.serving.schemas import Body
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import Done, Task, Wave, WaveChunk

T = TypeVar("T")
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of glibc's malloc.h
KEPT_SECONDS = 3600
_KEPT_ANSWERS = 1000
_SAID, _WARM = "one two three four five six seven eight nine ten", 40
"""Tokens of an answer that nobody asked for."""


class Service:
    def __init__(self, speech_lm: SpeechLM, options: ServerOptions) -> None:
        if options.voices and not speech_lm.settings.voice_prompts:
            raise ConfigError("voices came for a model that was not trained with voice prompts; leave them out")
        self.options, self.metrics = options, Metrics()
        self.load = Load()
        self.replies = ModelReplies(speech_lm, self.load.measured)
        self.gate = Gate(options.limits, self.metrics, self.load)
        self.metrics.real_time_factor.set_function(lambda: self.load.factor(self.gate.running))
        self.answers = EarlierAnswers()
        # Threads that are used again keep their memory, new ones take more; a conversation may reply and transcribe.
        most = options.limits.running + options.limits.waiting + 2 * options.limits.conversations
        self.pool = ThreadPoolExecutor(max(1, most), thread_name_prefix="vita-mctp answer")

    def warm_up(self) -> None:
        """Makes some answers at once, by all numbers up to `running`: nobody's first waits for what first use makes.

        Then by some numbers again, the most first, to measure what they cost.
        """
        replies, rate, most = self.replies, self.replies.sample_rate, self.options.limits.running
        replies.speech_lm.hear(Wave(np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32), rate))
        for doublings in range(most.bit_length()):
            _at_once(1 << doublings, lambda: replies.speech_lm.stream(_SAID, Task.TTS, max_new_tokens=_WARM))
        for count in (most, 1 + most // 4, 1, 1):
            _at_once(count, lambda: replies.say(_SAID, ReplyOptions(max_new_tokens=_WARM), Cancel()))

    def reply_options(
        self, body: Body, *, speaks: bool = True, max_new_tokens: int | None = None, voice: Wave | None = None
    ) -> ReplyOptions:
        """Raises ConfigError for a mode that is none."""
        if body.mode is not None:
            parse_mode(body.mode, num_blocks=0)
        return ReplyOptions(speaks, body.mode, body.seed or 0, body.temperature, max_new_tokens, voice)

    async def answer(self, endpoint: str, make: Callable[[Cancel], Iterator[T]]) -> AsyncGenerator[T, None]:
        """What an answer gives, made in a thread once there is room for it. Raises ApiError."""
        asked, first_sound = time.monotonic(), None
        async with self.gate.answer(), aclosing(in_thread(make, self.pool)) as events:
            try:
                async for event in events:
                    if first_sound is None and isinstance(event, bytes | WaveChunk):
                        first_sound = time.monotonic() - asked
                    if isinstance(event, Done):
                        self.metrics.answered(endpoint, event, first_sound)
                    yield event
            except VitaError as error:
                raise as_api_error(error) from None


def _at_once(count: int, make: Callable[[], Iterator[object]]) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda _: list(make()), range(count)))


def keep_memory_flat() -> None:
    """Where glibc allocates: freed blocks of a megabyte go back at once, and all threads share four arenas.

    By itself it keeps blocks up to the largest that was freed, in arenas for many threads, which a busy server fills.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    mallopt(_M_ARENA_MAX, 4)


class EarlierAnswers:
    """Spoken answers that a client may refer to by their ids, for an hour."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._answers: OrderedDict[str, tuple[int, Item]] = OrderedDict()
        self._now = now

    def keep(self, audio_id: str, item: Item) -> int:
        """Gives back when it will be forgotten, in seconds since 1970."""
        expires = int(self._now()) + KEPT_SECONDS
        self._answers[audio_id] = (expires, item)
        while len(self._answers) > _KEPT_ANSWERS:
            self._answers.popitem(last=False)
        return expires

    def get(self, audio_id: str) -> Item | None:
        expires, item = self._answers.get(audio_id, (0, None))
        return item if expires > self._now() else None


async def opened(events: AsyncGenerator[T, None]) -> AsyncIterator[T]:
    """The same, once its first value is there: what is wrong until then is an error, not half an answer."""
    first = [await anext(events)]

    async def rest() -> AsyncIterator[T]:
        async with aclosing(events):
            for event in first:
                yield event
            async for event in events:
                yield event

    return rest()


def server_sent(values: object) -> str:
    """One event of a text/event-stream."""
    return f"data: {json.dumps(values)}\n\n"
