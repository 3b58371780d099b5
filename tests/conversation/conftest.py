"""A conversation whose threads are run by hand: nothing happens that a test does not do."""

from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import pytest

from vita_mctp.answer import AnswerEvent
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.events import ConversationEvent
from vita_mctp.conversation.items import Item
from vita_mctp.conversation.reply import ReplyOptions
from vita_mctp.conversation.turns import Conversation, ConversationOptions
from vita_mctp.types import Done, FloatArray, Role, StopReason, TextDelta, Timings, Turn, Wave, WaveChunk

RATE = 16_000
LOUD, SILENT = 0.5, 0.0


class LevelDetector:
    """A frame is speech where its mean level is over a half of LOUD."""

    def start(self) -> None:
        return None

    def push(self, frame: FloatArray, state: None) -> tuple[float, None]:
        return float(np.abs(frame).mean() > LOUD / 2), None


class ScriptedReplies:
    """Answers "one two" with two chunks of a second each, of which the test sees every step."""

    sample_rate = RATE
    longest_seconds = 5.0

    def __init__(self) -> None:
        self.asked: list[list[Item]] = []

    def reply(self, items: Sequence[Item], options: ReplyOptions, cancel: Cancel) -> Iterator[AnswerEvent]:
        self.asked.append(list(items))
        for index, word in enumerate(("one", " two")):
            if cancel.is_set:
                break
            yield TextDelta(word)
            if options.speaks:
                yield WaveChunk(np.full(RATE, 0.1, np.float32), RATE, index, index == 1)
        reason = StopReason.CANCELLED if cancel.is_set else StopReason.EOS
        turns = (Turn(Role.USER, (1,)), Turn(Role.ASSISTANT, (2, 3)))
        yield Done(reason, "boost", "one two", Timings(1.0), (), turns)

    def transcribe(self, wave: Wave, cancel: Cancel) -> Iterator[AnswerEvent]:
        yield TextDelta("hello")
        yield Done(StopReason.EOS, "vanilla", "hello", Timings(1.0))


class Stage:
    """A conversation, what it said, its jobs and its clock."""

    def __init__(self, options: ConversationOptions | None = None) -> None:
        self.replies, self.time = ScriptedReplies(), 0.0
        self.events: list[ConversationEvent] = []
        self.jobs: list[Callable[[], None]] = []
        self.conversation = Conversation(
            self.replies,
            self.events.append,
            options,
            RATE,
            detector=LevelDetector(),
            run=self.jobs.append,
            now=lambda: self.time,
        )

    def speak(self, seconds: float = 1.0, level: float = LOUD) -> None:
        self.conversation.append(np.full(int(seconds * RATE), level, np.float32))

    def work(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@pytest.fixture
def stage() -> Generator[Callable[..., Stage], None, None]:
    yield Stage
