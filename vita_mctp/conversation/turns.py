"""A live conversation: sound comes in, turns are found, replies are made, and cut short when the user speaks.

Calls may come from any thread, and so do the events that go to `emit`, one after the other in their order. At most one
reply is made at a time. A reply that is cancelled sends nothing from that moment on, and ends as soon as its last step
of the model is over; what is asked meanwhile waits for that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from vita_mctp.answer import AnswerEvent
from vita_mctp.audio.vad import SpeechDetector, speech_detector
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.endpoint import EndPointer, InputBuffer, SpeechStarted, SpeechStopped, TurnDetection
from vita_mctp.conversation.events import (
    CancelReason,
    Committed,
    ConversationEvent,
    Reply,
    ReplyEnded,
    ReplySound,
    ReplyStarted,
    ReplyText,
    ReplyToken,
    Status,
    Transcribed,
    UserStarted,
    UserStopped,
)
from vita_mctp.conversation.items import ConversationError, History, Item, Playback, new_id
from vita_mctp.conversation.reply import Replies, ReplyOptions
from vita_mctp.errors import NoSpeechError, VitaError
from vita_mctp.types import Done, FloatArray, Role, StopReason, TextDelta, Timings, TokenEvent, Turn, Wave, WaveChunk

logger = logging.getLogger(__name__)

SHORTEST_MS = 100
"""Less sound than this is no turn."""
NOTHING_HEARD = "I did not hear any words. Please say it again."
MOST_WAITING = 16
"""Replies that may wait for the one before; further questions are answered together."""
_LATE_MS = 300
"""How far back a turn's prefix may lie behind the moment when its beginning is known, beside what options add."""


@dataclass(frozen=True)
class ConversationOptions:
    """detection: None where the client says itself when a turn is over. The two after it are of detected turns alone.

    creates_reply: each turn is answered at once. interrupts: the user's voice ends a reply. transcribes: the user's
    turns are written down.
    """

    detection: TurnDetection | None = field(default_factory=TurnDetection)
    creates_reply: bool = True
    interrupts: bool = True
    transcribes: bool = False
    reply: ReplyOptions = field(default_factory=ReplyOptions)


@dataclass(frozen=True)
class _Call:
    """A reply that is called for."""

    items: tuple[Item, ...]
    options: ReplyOptions
    kept: bool
    automatic: bool
    at: float


def start_thread(job: Callable[[], None]) -> None:
    threading.Thread(target=job, name="vita-mctp reply").start()


class Conversation:
    """emit: takes the events, quickly. sample_rate: of what is appended. run: starts a job beside the caller."""

    def __init__(
        self,
        replies: Replies,
        emit: Callable[[ConversationEvent], None],
        options: ConversationOptions | None = None,
        sample_rate: int = 24_000,
        *,
        detector: SpeechDetector | None = None,
        run: Callable[[Callable[[], None]], object] = start_thread,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.history = History()
        self.sample_rate = sample_rate
        self._replies, self._emit, self._run, self._now = replies, emit, run, now
        self._detector = detector or speech_detector()
        self._lock = threading.RLock()
        self._buffer = InputBuffer()
        self._longest = int(replies.longest_seconds * sample_rate)
        self._reply: Reply | None = None
        self._waiting: deque[_Call] = deque()
        self._closed = Cancel()
        self._user_item = new_id("item")
        self.options = ConversationOptions()
        self._end_pointer: EndPointer | None = None
        self.configure(options or ConversationOptions())

    @property
    def lock(self) -> threading.RLock:
        """Held while an event is emitted: whoever takes it sees no half of a change."""
        return self._lock

    def configure(self, options: ConversationOptions) -> None:
        with self._lock:
            if self._end_pointer is None or options.detection != self.options.detection:
                self._end_pointer = self._new_end_pointer(options)
            self.options = options

    def append(self, samples: FloatArray) -> None:
        """Sound of the user's. Raises ConversationError where turns are committed by hand and this one is too long."""
        with self._lock:
            if self._end_pointer is None:
                if self._buffer.end - self._buffer.start + len(samples) > self._longest:
                    limit = f"{self._longest / self.sample_rate:g} s"
                    raise ConversationError("input_audio_buffer_full", f"more than {limit} came; commit or clear first")
                self._buffer.append(samples)
                return
            self._buffer.append(samples)
            for event in self._end_pointer.push(samples):
                if isinstance(event, SpeechStarted):
                    self._user_started(event)
                else:
                    self._user_stopped(event)
            if not self._end_pointer.speaking:
                options = self._end_pointer.options
                late = (options.prefix_ms + options.speech_ms + _LATE_MS) * self.sample_rate // 1000
                self._buffer.forget(self._buffer.end - late)

    def commit(self) -> None:
        """Takes what was appended as the user's turn; it is not answered until `respond`.

        Raises ConversationError where that is next to nothing.
        """
        with self._lock:
            ms = (self._buffer.end - self._buffer.start) * 1000 // self.sample_rate
            if ms < SHORTEST_MS:
                code = "input_audio_buffer_commit_empty"
                raise ConversationError(code, f"{ms} ms of sound to commit; wanted at least {SHORTEST_MS} ms")
            self._commit(self._buffer.start, self._buffer.end)

    def clear(self) -> None:
        with self._lock:
            self._forget_input(self._buffer.end)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts something typed, or a recording, into the history; gives back the id of the item before it."""
        with self._lock:
            return self.history.add(item, after)

    def respond(
        self, options: ReplyOptions | None = None, items: Sequence[Item] | None = None, kept: bool = True
    ) -> None:
        """Calls for a reply, to other items than the history's if they are given.

        Raises ConversationError while another reply is made that is not cancelled.
        """
        with self._lock:
            if self._waiting or (self._reply is not None and not self._reply.cancel.is_set):
                code = "conversation_already_has_active_response"
                raise ConversationError(code, "a reply is being made; wait for its end or cancel it first")
            said = tuple(self.history if items is None else items)
            if not any(item.role is Role.USER for item in said):
                raise ConversationError("nothing_to_answer", "nobody has asked anything yet; send a question first")
            self._call(_Call(said, options or self.options.reply, kept, False, self._now()))

    def cancel(self, reply_id: str | None = None) -> None:
        """Ends the reply that is being made. Raises ConversationError if there is none, or another one."""
        with self._lock:
            reply = self._reply
            if reply is None or reply.cancel.is_set or reply_id not in (None, reply.id):
                raise ConversationError("response_cancel_not_active", "no such reply is being made; nothing to cancel")
            self._cancel(reply, "client_cancelled")

    def truncate(self, item_id: str, audio_end_ms: int) -> None:
        """The client says how much of an answer was played. Raises ConversationError if it was not sent that much."""
        with self._lock:
            item = self.history.get(item_id)
            if item.playback is None:
                raise ConversationError("invalid_item", f"the item {item_id[:60]} has no sound of ours; nothing to cut")
            heard = audio_end_ms * item.playback.sample_rate // 1000
            if heard > item.playback.sent:
                sent = item.playback.sent * 1000 // item.playback.sample_rate
                raise ConversationError("invalid_value", f"audio_end_ms is {audio_end_ms}; only {sent} ms were sent")
            item.heard = heard

    def close(self) -> None:
        """Stops everything; nothing is emitted any more."""
        with self._lock:
            self._closed.set()
            self._waiting.clear()
            if self._reply is not None:
                self._reply.cancel.set()

    def _new_end_pointer(self, options: ConversationOptions) -> EndPointer | None:
        """Its stream begins now, with nothing in the buffer."""
        self._buffer = InputBuffer(self._buffer.end)
        if options.detection is None:
            return None
        return EndPointer(self._detector, options.detection, self.sample_rate, self._longest, self._buffer.end)

    def _send(self, event: ConversationEvent) -> None:
        with self._lock:
            if not self._closed.is_set:
                self._emit(event)

    def _user_started(self, event: SpeechStarted) -> None:
        self._user_item = new_id("item")
        interrupts = self.options.interrupts
        self._send(UserStarted(self._user_item, event.start, interrupts))
        if not interrupts:
            return
        last = self.history.last_spoken
        if last is not None and last.playback is not None and last.heard is None:
            played = last.playback.played
            last.heard = played if played < last.playback.sent or not last.finished else None
        if self._reply is not None and not self._reply.cancel.is_set:
            self._cancel(self._reply, "turn_detected")

    def _user_stopped(self, event: SpeechStopped) -> None:
        self._send(UserStopped(self._user_item, event.stop))
        self._commit(event.start, event.stop)
        if self.options.creates_reply:
            self._call(_Call(tuple(self.history), self.options.reply, True, True, self._now()))

    def _commit(self, start: int, stop: int) -> None:
        wave = Wave(self._buffer.take(start, stop), self.sample_rate)
        item = Item(Role.USER, wave=wave, id=self._user_item)
        self._forget_input(stop)
        self._send(Committed(item, self.history.add(item)))
        if self.options.transcribes:
            self._run(partial(self._transcribe, item, wave))

    def _forget_input(self, before: int) -> None:
        self._buffer.forget(before)
        self._user_item = new_id("item")
        if self._end_pointer is not None:
            self._end_pointer.end_turn(before)

    def _call(self, call: _Call) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.pop()  # the new one has its question among its items
        self._waiting.append(call)
        self._start_next()

    def _start_next(self) -> None:
        while self._reply is None and self._waiting and not self._closed.is_set:
            call = self._waiting.popleft()
            playback = Playback(self._replies.sample_rate, self._now) if call.options.speaks else None
            item = Item(Role.ASSISTANT, playback=playback, finished=False)
            reply = self._reply = Reply(item, call.options, call.kept, call.at)
            self._send(ReplyStarted(reply, self.history.add(item) if call.kept else None))
            speaking = self._end_pointer is not None and self._end_pointer.speaking
            if call.automatic and speaking and self.options.interrupts:  # who asked this goes on speaking
                reply.cancelled = "turn_detected"
                self._end(reply, "cancelled")
            else:
                self._run(partial(self._answer, reply, call.items))

    def _cancel(self, reply: Reply, reason: CancelReason) -> None:
        reply.cancelled = reason
        reply.cancel.set()

    def _answer(self, reply: Reply, items: Sequence[Item]) -> None:
        """In a thread of its own."""
        try:
            for event in self._replies.reply(items, reply.options, reply.cancel):
                self._take(reply, items, event)
        except NoSpeechError:  # a cough, a door: the detector took it for a voice
            for event in _nothing_heard():
                self._take(reply, items, event)
        except VitaError as error:
            self._end(reply, "failed", error=error)
        except Exception:  # whatever it is, nobody may wait for this reply for ever
            logger.exception("a reply failed")
            self._end(reply, "failed", error=VitaError("the reply failed inside the server; try again"))

    def _take(self, reply: Reply, items: Sequence[Item], event: AnswerEvent) -> None:
        with self._lock:
            item = reply.item
            if isinstance(event, Done):
                if len(event.turns) == 2:
                    question = next(said for said in reversed(items) if said.role is Role.USER)
                    question.turn, item.turn = event.turns
                item.finished = event.reason is StopReason.EOS
                if reply.cancelled and item.heard is None and item.playback is not None:
                    item.heard = item.playback.sent  # not what was made and not sent
                status: Status = "completed" if item.finished else "incomplete"
                self._end(reply, "cancelled" if reply.cancelled else status, event)
            elif reply.cancel.is_set:
                return
            elif isinstance(event, TokenEvent):
                self._send(ReplyToken(reply, event))
            elif isinstance(event, TextDelta):
                item.text += event.text
                self._send(ReplyText(reply, event.text))
            elif isinstance(event, WaveChunk) and len(event.samples) and item.playback is not None:
                if reply.first_sound is None:
                    reply.first_sound = self._now() - reply.asked_at
                item.playback.send(len(event.samples))
                self._send(ReplySound(reply, event))

    def _end(self, reply: Reply, status: Status, done: Done | None = None, error: VitaError | None = None) -> None:
        with self._lock:
            if self._reply is not reply:
                return
            self._send(ReplyEnded(reply, status, done, error))
            self._reply = None
            self._start_next()

    def _transcribe(self, item: Item, wave: Wave) -> None:
        """In a thread of its own."""
        try:
            for event in self._replies.transcribe(wave, self._closed):
                with self._lock:
                    if isinstance(event, TextDelta):
                        self._send(Transcribed(item, delta=event.text))
                    elif isinstance(event, Done):
                        item.text = event.text.strip()
                        self._send(Transcribed(item, done=event))
        except NoSpeechError:
            self._send(Transcribed(item, done=_nothing_heard()[1]))
        except VitaError as error:
            self._send(Transcribed(item, error=error))
        except Exception:  # whatever it is, the client is to know that no transcript comes
            logger.exception("a transcript failed")
            self._send(Transcribed(item, error=VitaError("the transcript failed inside the server; try again")))


def _nothing_heard() -> tuple[TextDelta, Done]:
    """The answer, in writing, to a turn in which nobody speaks; the model is never shown either of them."""
    turns = Turn(Role.USER, ()), Turn(Role.ASSISTANT, ())
    return TextDelta(NOTHING_HEARD), Done(StopReason.EOS, "", NOTHING_HEARD, Timings(total=0.0), turns=turns)
