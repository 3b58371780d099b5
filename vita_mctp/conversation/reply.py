"""What the model says to what was said: items in, the events of one answer out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vita_mctp.answer import AnswerEvent
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.items import ConversationError, Item
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import Done, Role, StopReason, Task, TextDelta, Turn, Wave, WaveChunk


@dataclass(frozen=True)
class ReplyOptions:
    """speaks: whether the answer has sound. voice: a recording to speak in. The rest as for `SpeechLM.stream`.

    each_token: of a written answer that is then read aloud, those of the reading.
    instructions: left out for a model that cannot read them: stock clients send some unasked.
    """

    speaks: bool = True
    mode: str | None = None
    seed: int = 0
    temperature: float | None = None
    max_new_tokens: int | None = None
    voice: Wave | None = None
    each_token: bool = False
    instructions: str = ""


class Replies(Protocol):
    """What a conversation needs of a model. Each call may take long, and is made in a thread of its own."""

    sample_rate: int
    """Of the answers' sound."""
    longest_seconds: float
    """Of a question."""

    def reply(self, items: Sequence[Item], options: ReplyOptions, cancel: Cancel) -> Iterator[AnswerEvent]:
        """The answer to the last thing that the user said. Raises VitaError."""
        ...

    def transcribe(self, wave: Wave, cancel: Cancel) -> Iterator[AnswerEvent]:
        """What somebody said, in text. Raises VitaError."""
        ...


class ModelReplies:
    """The replies of a `SpeechLM`. A model that was trained on single questions is given the last one alone.

    measured: every answer is read through it.
    """

    def __init__(
        self, speech_lm: SpeechLM, measured: Callable[[Iterator[AnswerEvent]], Iterator[AnswerEvent]] = iter
    ) -> None:
        self.speech_lm, self._measured = speech_lm, measured
        self.sample_rate = speech_lm.audio_decoder.sample_rate
        self.longest_seconds = speech_lm.settings.max_question_seconds

    def reply(self, items: Sequence[Item], options: ReplyOptions, cancel: Cancel) -> Iterator[AnswerEvent]:
        """A typed question is answered in text, and the text then spoken: models learn no spoken answer to it.

        What the role of the system says before the question is part of the instructions.
        """
        last = next((i for i in reversed(range(len(items))) if items[i].role is Role.USER), None)
        if last is None:
            raise ConversationError("nothing_to_answer", "nobody has asked anything yet; send a question first")
        question = items[last]
        system = [options.instructions, *(item.text for item in items[:last] if item.role is Role.SYSTEM)]
        options = replace(options, instructions="\n\n".join(text for text in system if text))
        history = self._history([item for item in items[:last] if item.role is not Role.SYSTEM])
        if question.wave is not None:
            events = self._stream(question.wave, Task.SPEECH_TO_SPEECH, options, cancel, history)
            yield from events if options.speaks else (event for event in events if not isinstance(event, WaveChunk))
        elif options.speaks:
            yield from self._spoken(question.text, options, cancel, history)
        else:
            yield from self._stream(question.text, Task.TEXT, options, cancel, history)

    def transcribe(self, wave: Wave, cancel: Cancel) -> Iterator[AnswerEvent]:
        return self._stream(wave, Task.ASR, ReplyOptions(), cancel)

    def say(self, text: str, options: ReplyOptions, cancel: Cancel) -> Iterator[AnswerEvent]:
        """Text read aloud."""
        return self._stream(text, Task.TTS, options, cancel)

    def _spoken(
        self, text: str, options: ReplyOptions, cancel: Cancel, history: tuple[Turn, ...]
    ) -> Iterator[AnswerEvent]:
        for event in self._stream(text, Task.TEXT, replace(options, mode=None, each_token=False), cancel, history):
            if not isinstance(event, Done):
                yield event
                continue
            if event.reason is StopReason.CANCELLED or not event.text.strip():
                yield event
                return
            written = event
        for event in self._stream(written.text.strip(), Task.TTS, options, cancel):
            if isinstance(event, Done):
                timings = event.timings.after(written.timings)
                yield replace(event, text=written.text, turns=written.turns, timings=timings)
            elif not isinstance(event, TextDelta):
                yield event

    def _stream(
        self, question: Wave | str, task: Task, options: ReplyOptions, cancel: Cancel, history: tuple[Turn, ...] = ()
    ) -> Iterator[AnswerEvent]:
        answers = task in (Task.SPEECH_TO_SPEECH, Task.TEXT)
        events = self.speech_lm.stream(
            question,
            task,
            options.mode,
            seed=options.seed,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
            history=history,
            voice_prompt=options.voice if task.speaks else None,
            each_token=options.each_token,
            instructions=options.instructions if answers and self.speech_lm.settings.follows_instructions else "",
            cancel=cancel,
        )
        return self._measured(events)

    def _history(self, items: Sequence[Item]) -> tuple[Turn, ...]:
        if not self.speech_lm.settings.max_history_turns:
            return ()
        return tuple(turn for item in items if (turn := self._turn(item)) is not None and turn.content)

    def _turn(self, item: Item) -> Turn | None:
        if item.turn is None and item.wave is not None:
            item.turn = self.speech_lm.prompt(self.speech_lm.hear(item.wave)).question
        elif item.turn is None and item.text:
            typed = self.speech_lm.prompt(item.text, Task.TEXT).question
            item.turn = None if typed is None else replace(typed, role=item.role)
        return item.heard_turn(self.speech_lm.tokenizer.vocabulary, self.speech_lm.audio_decoder.frame_rate)
