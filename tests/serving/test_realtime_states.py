"""No sequence of client events leads to an undefined state, a lost reply, or two replies at once.

Replies are made in threads that take a step when they are told to, so that client events fall between any two steps.
"""

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from openai.types.realtime.realtime_server_event import RealtimeServerEvent

from tests.conversation.conftest import LOUD, LevelDetector, ScriptedReplies
from vita_mctp.answer import AnswerEvent
from vita_mctp.audio.formats import pcm16
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.items import Item
from vita_mctp.conversation.reply import ReplyOptions
from vita_mctp.errors import AudioError
from vita_mctp.serving.metrics import Metrics
from vita_mctp.serving.options import ServerOptions
from vita_mctp.serving.realtime.protocol import RealtimeProtocol
from vita_mctp.types import Wave

KNOWN = {
    literal: model
    for model in get_args(get_args(RealtimeServerEvent)[0])
    for literal in get_args(model.model_fields["type"].annotation)
}
BAD_ITEM = "nobody"


class Puppet:
    """A job in a thread, which goes on to its next step when it is told to."""

    def __init__(self, job: Callable[[], None]) -> None:
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False
        self._job = job
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        PUPPETS[threading.get_ident()] = self
        self._go.acquire()
        self._job()
        self.over = True
        self._stands.release()

    def stand(self) -> None:
        self._stands.release()
        self._go.acquire()

    def step(self) -> None:
        self._go.release()
        assert self._stands.acquire(timeout=10)


PUPPETS: dict[int, Puppet] = {}


class SteppedReplies(ScriptedReplies):
    def reply(self, items: Sequence[Item], options: ReplyOptions, cancel: Cancel) -> Iterator[AnswerEvent]:
        for event in super().reply(items, options, cancel):
            PUPPETS[threading.get_ident()].stand()
            if len(items) % 5 == 4:
                raise AudioError("the recording is silent")
            yield event


class Session(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.puppets: list[Puppet] = []
        self.silenced: set[str] = set()  # replies that were cancelled
        self.items: list[str] = [BAD_ITEM]
        self.time = 0.0

    @initialize()
    def open(self) -> None:
        self.protocol = RealtimeProtocol(
            SteppedReplies(),
            ServerOptions(),
            Metrics(),
            self.take,
            detector=LevelDetector(),
            run=lambda job: self.puppets.append(Puppet(job)),
            now=lambda: self.time,
        )

    def take(self, event: dict[str, Any]) -> None:
        KNOWN[event["type"]].model_validate(event)
        self.events.append(event)
        match event["type"]:
            case "conversation.item.added":
                self.items.append(event["item"]["id"])
            case "response.output_audio.delta":
                assert event["response_id"] in self.running() - self.silenced
            case "input_audio_buffer.speech_started":
                detected = self.protocol.config.audio.input.turn_detection
                if detected is not None and detected.interrupt_response:
                    self.silenced |= self.running()

    def running(self) -> set[str]:
        ids = {
            kind: {e["response"]["id"] for e in self.events if e["type"] == kind}
            for kind in ("response.created", "response.done")
        }
        return ids["response.created"] - ids["response.done"]

    def send(self, kind: str, **body: Any) -> list[dict[str, Any]]:
        before = len(self.events)
        self.protocol.receive(json.dumps({"type": kind, **body}))
        return self.events[before:]

    @rule(loud=st.booleans(), ms=st.sampled_from([20, 200, 700]))
    def speak(self, loud: bool, ms: int) -> None:
        samples = np.full(24 * ms, LOUD if loud else 0.0, np.float32)
        self.send("input_audio_buffer.append", audio=base64.b64encode(pcm16(samples)).decode())

    @rule(kind=st.sampled_from(["commit", "clear"]))
    def buffer(self, kind: str) -> None:
        assert self.send(f"input_audio_buffer.{kind}")

    @rule(role=st.sampled_from(["user", "assistant", "system"]), text=st.sampled_from(["", "hello"]))
    def write(self, role: str, text: str) -> None:
        part = "output_text" if role == "assistant" else "input_text"
        assert self.send("conversation.item.create", item={"role": role, "content": [{"type": part, "text": text}]})

    @rule(data=st.data(), kind=st.sampled_from(["delete", "retrieve", "truncate"]), ms=st.integers(0, 3000))
    def touch(self, data: st.DataObject, kind: str, ms: int) -> None:
        item = data.draw(st.sampled_from(self.items))
        cut = {"content_index": 0, "audio_end_ms": ms} if kind == "truncate" else {}
        assert self.send(f"conversation.item.{kind}", item_id=item, **cut)

    @rule(apart=st.booleans(), speaks=st.booleans())
    def ask(self, apart: bool, speaks: bool) -> None:
        busy = bool(self.running() - self.silenced)
        body: dict[str, Any] = {"output_modalities": ["audio" if speaks else "text"]}
        if apart:
            said = {"role": "user", "content": [{"type": "input_text", "text": "hello"}]}
            body |= {"conversation": "none", "input": [said]}
        new = self.send("response.create", response=body)
        if busy:
            assert [event["type"] for event in new] == ["error"]

    @rule()
    def cancel(self) -> None:
        running = self.running()
        new = self.send("response.cancel")
        if not [event for event in new if event["type"] == "error"]:
            self.silenced |= running

    @rule(interrupts=st.booleans(), creates=st.booleans(), detects=st.booleans(), written=st.booleans())
    def configure(self, interrupts: bool, creates: bool, detects: bool, written: bool) -> None:
        detection = {"type": "server_vad", "interrupt_response": interrupts, "create_response": creates}
        audio = {"turn_detection": detection if detects else None, "transcription": {"model": "x"} if written else None}
        new = self.send("session.update", session={"audio": {"input": audio}})
        assert [event["type"] for event in new] == ["session.updated"]

    @rule(garbage=st.sampled_from(["", "{", "[]", "null", '{"type": 3}', '{"type": "session.update", "session": 1}']))
    def babble(self, garbage: str) -> None:
        before = len(self.events)
        self.protocol.receive(garbage)
        assert [event["type"] for event in self.events[before:]] == ["error"]

    @precondition(lambda self: self.puppets)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.3, 2.0]))
    def work(self, data: st.DataObject, seconds: float) -> None:
        self.time += seconds
        puppet = data.draw(st.sampled_from(self.puppets))
        puppet.step()
        if puppet.over:
            self.puppets.remove(puppet)

    @invariant()
    def one_reply_at_most(self) -> None:
        assert len(self.running()) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "protocol"):
            return
        while self.puppets:
            self.puppets[0].step()
            if self.puppets[0].over:
                self.puppets.pop(0)
        assert not self.running()
        assert self.protocol.conversation._reply is None and not self.protocol.conversation._waiting
        statuses = {e["response"]["id"]: e["response"]["status"] for e in self.events if e["type"] == "response.done"}
        assert all(statuses[reply] in ("cancelled", "failed") for reply in self.silenced)
        self.protocol.close()


Session.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSession = Session.TestCase


def test_a_response_s_own_instructions_and_voice_go_first() -> None:
    asked: list[ReplyOptions] = []

    class Noting(ScriptedReplies):
        def reply(self, items: Sequence[Item], options: ReplyOptions, cancel: Cancel) -> Iterator[AnswerEvent]:
            asked.append(options)
            return super().reply(items, options, cancel)

    voices = {name: Wave(np.zeros(160, np.float32), 16_000) for name in ("anna", "berta")}
    said: list[dict[str, Any]] = []
    protocol = RealtimeProtocol(
        Noting(), ServerOptions(voices=voices), Metrics(), said.append, run=lambda job: job(), detector=LevelDetector()
    )
    session = {"instructions": "be kind", "audio": {"output": {"voice": "anna"}}}
    typed = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
    own = {"instructions": "be short", "audio": {"output": {"voice": "Berta"}}}
    for event in (
        {"type": "session.update", "session": session},
        {"type": "conversation.item.create", "item": typed},
        {"type": "response.create"},
        {"type": "response.create", "response": own},
        {"type": "response.create", "response": {"audio": {"output": {"voice": "nobody"}}}},
    ):
        protocol.receive(json.dumps(event))
    assert [(each.instructions, each.voice) for each in asked] == [
        ("be kind", voices["anna"]),
        ("be short", voices["berta"]),
    ]
    assert said[-1]["error"]["code"] == "invalid_voice"
