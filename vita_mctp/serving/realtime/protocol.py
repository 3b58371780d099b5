"""One Realtime session: client events in, server events out, with a conversation in between. No socket, no loop.

Server events are said under the conversation's lock, so that their order is that of what happened, whichever thread it
happened in.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from vita_mctp.audio.formats import pcm16
from vita_mctp.conversation.items import ConversationError, Item, new_id
from vita_mctp.conversation.reply import Replies
from vita_mctp.conversation.turns import Conversation, ConversationOptions
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.errors import VitaError
from vita_mctp.serving.metrics import Metrics
from vita_mctp.serving.options import ServerOptions
from vita_mctp.serving.realtime.sound import RATE, SoundIn
from vita_mctp.serving.realtime.speaking import Speaking, item_body
from vita_mctp.serving.realtime.wire import (
    Append,
    CancelResponse,
    Config,
    CreateItem,
    CreateResponse,
    ItemBody,
    OfItem,
    Plain,
    ResponseBody,
    Say,
    Truncate,
    Update,
    client_event,
    merged,
)
from vita_mctp.types import Role, Wave

LONGEST_SECONDS = 3600


class RealtimeProtocol:
    """send: takes each server event, from any thread. conversation_options: as `Conversation`'s, for tests."""

    def __init__(
        self,
        replies: Replies,
        options: ServerOptions,
        metrics: Metrics,
        send: Callable[[dict[str, Any]], None],
        **conversation_options: Any,
    ) -> None:
        self._options, self._send = options, send
        self._longest = replies.longest_seconds
        self._expires = int(time.time()) + LONGEST_SECONDS
        self.id = new_id("sess")
        self.config = Config(model=options.model)
        self._in = SoundIn(self.config.audio.input.format)
        self._speaking = Speaking(self.say, lambda: self.config, replies.sample_rate, metrics)
        self.conversation = Conversation(
            replies, self._speaking, self._conversation_options(self.config), RATE, **conversation_options
        )
        self.say(Say.CREATED, session=self._about())

    def receive(self, message: str | bytes) -> None:
        """One client event. Whatever is wrong with it is said as an `error`; nothing is raised."""
        given: str | None = None
        try:
            event = json.loads(message)
            given = event.get("event_id") if isinstance(event, dict) else None
            self._handle(event)
        except (ValueError, RecursionError) as wrong:  # pydantic's are ValueErrors too
            self._refuse(wrong, given)
        except VitaError as wrong:
            self._refuse(wrong, given)

    def close(self) -> None:
        self.conversation.close()

    def say(self, kind: Say, **body: Any) -> None:
        self._send({"type": kind.value, "event_id": new_id("event"), **body})

    def _handle(self, values: Any) -> None:
        event = client_event.validate_python(values)
        conversation = self.conversation
        match event:
            case Append():
                conversation.append(self._in.push(_bytes(event.audio)))
            case Update():
                self._update(event)
            case Plain(type="input_audio_buffer.commit"):
                conversation.commit()
            case Plain(type="input_audio_buffer.clear"):
                with conversation.lock:
                    conversation.clear()
                    self.say(Say.CLEARED)
            case Plain():
                raise ConversationError("unsupported", "the player is yours on a WebSocket: empty it, then truncate")
            case CreateItem():
                self._create(event)
            case OfItem(type="conversation.item.delete"):
                with conversation.lock:
                    conversation.history.delete(event.item_id)
                    self.say(Say.ITEM_DELETED, item_id=event.item_id)
            case OfItem():
                with conversation.lock:
                    item = conversation.history.get(event.item_id)
                    self.say(Say.ITEM_RETRIEVED, item=item_body(item, sound=_recording(item)))
            case Truncate():
                with conversation.lock:
                    conversation.truncate(event.item_id, event.audio_end_ms)
                    where = {"item_id": event.item_id, "content_index": 0}
                    self.say(Say.ITEM_TRUNCATED, **where, audio_end_ms=event.audio_end_ms)
            case CreateResponse():
                if self.config.type == "transcription":
                    raise ConversationError("unsupported", "a session for transcription answers nothing")
                self._respond(event.response)
            case CancelResponse():
                conversation.cancel(event.response_id)

    def _update(self, event: Update) -> None:
        known = self.config.model_dump(by_alias=True)
        config = Config.model_validate(merged(known, event.changes))
        self._options.check_model(config.model)
        options = self._conversation_options(config)
        if config.mode is not None:
            parse_mode(config.mode, num_blocks=0)
        with self.conversation.lock:
            if config.audio.input.format != self.config.audio.input.format:
                self._in = SoundIn(config.audio.input.format)
            self.config = config
            self.conversation.configure(options)
            self.say(Say.UPDATED, session=self._about())

    def _conversation_options(self, config: Config) -> ConversationOptions:
        """With the voice that the session names. Raises ApiError."""
        options = config.conversation_options()
        voice = self._options.voice(config.audio.output.voice, "session.audio.output.voice")
        return replace(options, reply=replace(options.reply, voice=voice))

    def _create(self, event: CreateItem) -> None:
        item = self._item(event.item)
        with self.conversation.lock:
            before = self.conversation.add(item, event.previous_item_id)
            body = {"item": item_body(item), "previous_item_id": before}
            self.say(Say.ITEM_ADDED, **body)
            self.say(Say.ITEM_DONE, **body)

    def _respond(self, body: ResponseBody) -> None:
        options = self.conversation.options.reply
        if body.output_modalities is not None:
            options = replace(options, speaks="audio" in body.output_modalities)
        if body.max_output_tokens is not None:
            most = None if body.max_output_tokens == "inf" else body.max_output_tokens
            options = replace(options, max_new_tokens=most)
        if body.mode is not None:
            parse_mode(body.mode, num_blocks=0)
            options = replace(options, mode=body.mode)
        if body.instructions is not None:
            options = replace(options, instructions=body.instructions)
        if body.audio is not None and body.audio.output is not None and body.audio.output.voice is not None:
            voice = self._options.voice(body.audio.output.voice, "response.audio.output.voice")
            options = replace(options, voice=voice)
        items = None if body.input is None else [self._referred(item) for item in body.input]
        with self.conversation.lock:
            self._speaking.asked = body
            try:
                self.conversation.respond(options, items, kept=body.conversation == "auto")
            finally:
                self._speaking.asked = ResponseBody()

    def _referred(self, body: ItemBody) -> Item:
        return self.conversation.history.get(body.id or "") if body.type == "item_reference" else self._item(body)

    def _item(self, body: ItemBody) -> Item:
        """Raises ConversationError for an item without content, or of more than one recording."""
        role = Role(body.role)
        recordings = [part.audio for part in body.content if part.audio]
        if role is Role.USER and recordings:
            if len(recordings) > 1 or len(body.content) > 1:
                raise ConversationError("invalid_item", "a recording came with more beside it; wanted an item for each")
            wave = Wave(SoundIn(self.config.audio.input.format).push(_bytes(recordings[0])), RATE)
            if not 0.1 <= wave.seconds <= self._longest:
                limit = f"0.1 to {self._longest:g} s"
                raise ConversationError("invalid_item", f"a recording of {wave.seconds:.1f} s came; wanted {limit}")
            item = Item(role, body.content[0].transcript or "", wave=wave)
        else:
            text = " ".join(part.text or part.transcript or "" for part in body.content).strip()
            most = self._options.limits.text_characters
            if not 0 < len(text) <= most:
                raise ConversationError("invalid_item", f"{len(text)} characters came; wanted 1 to {most}")
            item = Item(role, text)
        item.id = body.id or item.id
        return item

    def _about(self) -> dict[str, Any]:
        about = {"id": self.id, "object": "realtime.session", "expires_at": self._expires}
        unused: dict[str, Any] = {
            "tools": [],
            "tool_choice": "auto",
            "tracing": None,
            "truncation": "auto",
            "include": None,
        }
        if self.config.type == "transcription":
            heard = {"object": "realtime.transcription_session", "include": None, "type": "transcription"}
            return about | heard | {"audio": {"input": self.config.audio.input.model_dump()}}
        return about | self.config.model_dump(exclude={"functions"}) | unused

    def _refuse(self, wrong: Exception, event_id: Any) -> None:
        code, message, param = getattr(wrong, "code", None), str(wrong), getattr(wrong, "param", None)
        if isinstance(wrong, ValidationError):
            first = wrong.errors(include_url=False, include_input=False)[0]
            param = ".".join(str(part) for part in first["loc"][1:]) or None
            code, message = "invalid_event", f"{param or 'the event'}: {first['msg']}"[:500]
        elif not isinstance(wrong, VitaError):
            code, message = "invalid_json", "what came is no JSON object; send one event as text"
        known = event_id if isinstance(event_id, str) else None
        about = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
        self.say(Say.ERROR, error={**about, "event_id": known})


def _bytes(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ConversationError("invalid_audio", "the audio is no base64; encode the samples") from None


def _recording(item: Item) -> str | None:
    return None if item.wave is None else base64.b64encode(pcm16(item.wave.samples)).decode()
