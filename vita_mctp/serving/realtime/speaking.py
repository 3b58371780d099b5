"""What happens in a conversation, said in server events."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from vita_mctp.conversation.events import (
    Committed,
    ConversationEvent,
    Reply,
    ReplyEnded,
    ReplySound,
    ReplyStarted,
    ReplyText,
    ReplyToken,
    Transcribed,
    UserStarted,
    UserStopped,
)
from vita_mctp.conversation.items import Item
from vita_mctp.serving.metrics import Metrics
from vita_mctp.serving.realtime.sound import RATE, SoundOut
from vita_mctp.serving.realtime.wire import Config, ResponseBody, Say
from vita_mctp.types import BACKBONE, Done, Role, TokenEvent

ENDPOINT = "/v1/realtime"


class Speaking:
    """say: sends one event. config: the session's, as it is now. asked: what the next reply was called for by."""

    def __init__(
        self, say: Callable[..., None], config: Callable[[], Config], sample_rate: int, metrics: Metrics
    ) -> None:
        self.asked = ResponseBody()
        self._say, self._config, self._rate, self._metrics = say, config, sample_rate, metrics
        self._bodies: dict[str, ResponseBody] = {}
        self._sounds: dict[str, SoundOut] = {}
        self._tokens: list[TokenEvent] = []  # made and not told

    def __call__(self, event: ConversationEvent) -> None:
        match event:
            case UserStarted():
                self._say(Say.SPEECH_STARTED, item_id=event.item_id, audio_start_ms=event.start * 1000 // RATE)
            case UserStopped():
                self._say(Say.SPEECH_STOPPED, item_id=event.item_id, audio_end_ms=event.stop * 1000 // RATE)
            case Committed():
                self._say(Say.COMMITTED, item_id=event.item.id, previous_item_id=event.before)
                body = {"item": item_body(event.item), "previous_item_id": event.before}
                self._say(Say.ITEM_ADDED, **body)
                self._say(Say.ITEM_DONE, **body)
            case Transcribed():
                self._transcribed(event)
            case ReplyStarted():
                self._started(event)
            case ReplyToken():
                if event.token.level == BACKBONE:  # a cycle at a time
                    self._tell_tokens(event.reply)
                self._tokens.append(event.token)
            case ReplyText():
                self._tell_tokens(event.reply)
                spoken = event.reply.options.speaks
                self._say(
                    Say.AUDIO_TEXT_DELTA if spoken else Say.TEXT_DELTA, delta=event.text, **_position(event.reply)
                )
            case ReplySound():
                self._tell_tokens(event.reply)
                self._sound(event.reply, self._sounds[event.reply.id].push(event.chunk.samples))
            case ReplyEnded():
                self._ended(event)

    def _transcribed(self, event: Transcribed) -> None:
        where = {"item_id": event.item.id, "content_index": 0}
        if event.error is not None:
            error = {"type": "transcription_error", "code": "failed", "message": str(event.error), "param": None}
            self._say(Say.TRANSCRIPT_FAILED, **where, error=error)
        elif event.done is not None:
            seconds = event.item.wave.seconds if event.item.wave is not None else 0.0
            usage = {"type": "duration", "seconds": seconds}
            self._say(Say.TRANSCRIPT_DONE, **where, transcript=event.item.text, usage=usage)
        else:
            self._say(Say.TRANSCRIPT_DELTA, **where, delta=event.delta)

    def _started(self, event: ReplyStarted) -> None:
        reply, body = event.reply, self.asked
        self._bodies[reply.id] = body
        output = body.audio.output if body.audio is not None else None
        form = output.format if output is not None else None
        self._sounds[reply.id] = SoundOut(form or self._config().audio.output.format, self._rate)
        item = item_body(reply.item, "in_progress") | {"content": []}
        self._say(Say.RESPONSE_CREATED, response=self._response(reply, "in_progress", []))
        self._say(Say.OUTPUT_ADDED, response_id=reply.id, output_index=0, item=item)
        if reply.kept:
            self._say(Say.ITEM_ADDED, item=item, previous_item_id=event.before)
        self._say(Say.PART_ADDED, part=_part(reply, ""), **_position(reply))

    def _tell_tokens(self, reply: Reply) -> None:
        if made := self._tokens:
            self._tokens = []
            kinds, levels = [token.kind.value for token in made], [token.level for token in made]
            self._say(Say.TOKENS, **_position(reply), kinds=kinds, levels=levels)

    def _sound(self, reply: Reply, data: bytes) -> None:
        if data:
            self._say(Say.AUDIO_DELTA, delta=base64.b64encode(data).decode(), **_position(reply))

    def _ended(self, event: ReplyEnded) -> None:
        reply = event.reply
        self._tell_tokens(reply)
        where, text = _position(reply), reply.item.text
        sound = self._sounds.pop(reply.id)
        if reply.options.speaks:
            if event.status != "cancelled":
                self._sound(reply, sound.finish())
            self._say(Say.AUDIO_DONE, **where)
            self._say(Say.AUDIO_TEXT_DONE, transcript=text, **where)
        else:
            self._say(Say.TEXT_DONE, text=text, **where)
        item = item_body(reply.item, "completed" if event.status == "completed" else "incomplete")
        self._say(Say.PART_DONE, part=_part(reply, text), **where)
        self._say(Say.OUTPUT_DONE, response_id=reply.id, output_index=0, item=item)
        if reply.kept:
            self._say(Say.ITEM_DONE, item=item)
        self._say(Say.RESPONSE_DONE, response=self._response(reply, event.status, [item], event))
        del self._bodies[reply.id]
        if event.done is not None:
            self._metrics.answered(ENDPOINT, event.done, reply.first_sound)

    def _response(
        self, reply: Reply, status: str, output: list[dict[str, Any]], ended: ReplyEnded | None = None
    ) -> dict[str, Any]:
        details: dict[str, Any] | None = None
        if ended is not None:
            reason = {"cancelled": reply.cancelled, "incomplete": "max_output_tokens"}.get(status)
            details = {"type": status}
            details |= {"reason": reason} if reason else {}
            if ended.error is not None:
                details["error"] = {"type": "server_error", "code": "failed", "message": str(ended.error)}
        return {
            "id": reply.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": output,
            "output_modalities": ["audio" if reply.options.speaks else "text"],
            "metadata": self._bodies[reply.id].metadata,
            "usage": None if ended is None or ended.done is None else _usage(ended.done),
            "metrics": None if ended is None or ended.done is None else _metrics(ended.done),
        }


def item_body(item: Item, status: str | None = None, sound: str | None = None) -> dict[str, Any]:
    """An item as clients see it. sound: of the user's, in base64."""
    content: dict[str, Any]
    if item.wave is not None or (item.role is Role.USER and not item.text):
        content = {"type": "input_audio", "transcript": item.text or None}
        content |= {} if sound is None else {"audio": sound}
    elif item.role is not Role.ASSISTANT:
        content = {"type": "input_text", "text": item.text}
    elif item.playback is not None:
        content = {"type": "output_audio", "transcript": item.heard_text}
    else:
        content = {"type": "output_text", "text": item.text}
    status = status or ("completed" if item.finished else "incomplete")
    about = {"id": item.id, "object": "realtime.item", "type": "message", "status": status}
    return {**about, "role": item.role.value, "content": [content]}


def _part(reply: Reply, text: str) -> dict[str, Any]:
    return {"type": "audio", "transcript": text} if reply.options.speaks else {"type": "text", "text": text}


def _position(reply: Reply) -> dict[str, Any]:
    return {"response_id": reply.id, "item_id": reply.item.id, "output_index": 0, "content_index": 0}


def _usage(done: Done) -> dict[str, Any]:
    audio, read, tokens = len(done.codes), done.timings.prompt_tokens, done.timings.tokens
    details = {"text_tokens": max(0, tokens - audio), "audio_tokens": audio}
    return {
        "total_tokens": read + tokens,
        "input_tokens": read,
        "output_tokens": tokens,
        "output_token_details": details,
    }


def _metrics(done: Done) -> dict[str, Any]:
    """Beyond OpenAI's fields: how fast the answer was made, and of each token its kind and the level that made it."""
    return {
        "mode": done.mode,
        "tokens_per_second": done.timings.tokens_per_second,
        "real_time_factor": done.timings.real_time_factor,
        "kinds": [kind.value for kind in done.kinds],
        "levels": list(done.levels),
    }
