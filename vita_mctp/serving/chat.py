"""POST /v1/chat/completions: typed or spoken questions in, text and sound out."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response, StreamingResponse

from vita_mctp.answer import AnswerEvent
from vita_mctp.audio import read_wave
from vita_mctp.audio.formats import encode, new_encoder
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.items import Item, new_id
from vita_mctp.conversation.reply import ReplyOptions
from vita_mctp.serving.errors import ApiError
from vita_mctp.serving.schemas import AudioPart, ChatBody, Message
from vita_mctp.serving.service import Service, opened, server_sent
from vita_mctp.types import Done, Role, StopReason, TextDelta, Wave, WaveChunk

ENDPOINT = "/v1/chat/completions"
_ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT}
_FINISH = {StopReason.EOS: "stop", StopReason.LENGTH: "length", StopReason.CANCELLED: "stop"}

Piece = AnswerEvent | bytes


@dataclass
class Completion:
    """One answer and what its client asked to know of it."""

    model: str
    audio_format: str | None
    with_usage: bool
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    audio_id: str = field(default_factory=lambda: new_id("audio"))
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**about, "choices": choices, **more}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return server_sent(self.body("chat.completion.chunk", [choice]))


def chat_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(ENDPOINT, response_class=Response)
    async def chat(body: ChatBody) -> Response:
        speaks = "audio" in (body.modalities or ())
        voice = service.options.voice(None if body.audio is None else body.audio.voice, "audio.voice")
        form = (body.audio.format if body.audio is not None else "wav").replace("pcm16", "pcm") if speaks else None
        completion = Completion(
            service.options.check_model(body.model),
            form,
            body.stream_options is not None and body.stream_options.include_usage,
        )
        most = body.max_completion_tokens or body.max_tokens
        options = service.reply_options(body, speaks=speaks, max_new_tokens=most, voice=voice)

        def make(cancel: Cancel) -> Iterator[Piece]:
            return replied(service, body, options, completion, cancel)

        made = await opened(service.answer(ENDPOINT, make))
        if body.stream:
            return StreamingResponse(_as_chunks(service, completion, made), media_type="text/event-stream")
        return JSONResponse(_whole(service, completion, [piece async for piece in made]))

    return router


def replied(
    service: Service, body: ChatBody, options: ReplyOptions, completion: Completion, cancel: Cancel
) -> Iterator[Piece]:
    """In a thread: text, sound (encoded where it is streamed), `Done`. Raises ApiError, AudioError."""
    items = [item for message in body.messages for item in _items(service, message)]
    events = service.replies.reply(items, options, cancel)
    if not (body.stream and completion.audio_format):
        yield from events
        return
    with closing(new_encoder(completion.audio_format, service.replies.sample_rate)) as encoder:
        for event in events:
            if isinstance(event, WaveChunk):
                yield encoder.push(event.samples)
            else:
                if isinstance(event, Done):
                    yield encoder.finish()
                yield event


def _items(service: Service, message: Message) -> Iterator[Item]:
    role = _ROLES[message.role]
    if message.audio is not None:
        item = service.answers.get(message.audio.id)
        if item is None:
            raise ApiError(400, "no answer of this server has that audio id now", param="messages", code="no_audio")
        yield item
        return
    content = message.content or ""
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, AudioPart):
            if role is not Role.USER:
                raise ApiError(400, f"sound of the role {message.role} came; users speak", param="messages")
            yield Item(role, wave=_recording(service, part))
        elif text := part if isinstance(part, str) else part.text:
            yield Item(role, text)


def _recording(service: Service, part: AudioPart) -> Wave:
    settings = service.replies.speech_lm.settings
    try:
        data = base64.b64decode(part.input_audio.data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "the input_audio is no base64; encode the bytes of a file", param="messages") from None
    return read_wave(data, settings.max_question_seconds, channel=settings.channel)


def _keep(service: Service, completion: Completion, done: Done) -> int:
    turn = done.turns[1] if len(done.turns) == 2 else None
    return service.answers.keep(completion.audio_id, Item(Role.ASSISTANT, done.text, turn=turn))


def _whole(service: Service, completion: Completion, pieces: list[Piece]) -> dict[str, Any]:
    done = next(piece for piece in pieces if isinstance(piece, Done))
    text = done.text.strip()
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if completion.audio_format:
        chunks = [piece.samples for piece in pieces if isinstance(piece, WaveChunk)]
        sound = Wave(np.concatenate([np.zeros(0, np.float32), *chunks]), service.replies.sample_rate)
        message["content"] = None
        message["audio"] = {
            "id": completion.audio_id,
            "data": base64.b64encode(encode(completion.audio_format, sound)).decode(),
            "expires_at": _keep(service, completion, done),
            "transcript": text,
        }
    choice = {"index": 0, "message": message, "finish_reason": _FINISH[done.reason], "logprobs": None}
    return completion.body("chat.completion", [choice], usage=_usage(done))


async def _as_chunks(service: Service, completion: Completion, made: AsyncIterator[Piece]) -> AsyncIterator[str]:
    audio = {"id": completion.audio_id}
    yield completion.chunk({"role": "assistant", "content": None if completion.audio_format else ""})
    async for piece in made:
        if isinstance(piece, TextDelta):
            heard = {"audio": {**audio, "transcript": piece.text}}
            yield completion.chunk(heard if completion.audio_format else {"content": piece.text})
        elif isinstance(piece, bytes) and piece:
            yield completion.chunk({"audio": {**audio, "data": base64.b64encode(piece).decode()}})
        elif isinstance(piece, Done):
            if completion.audio_format:
                expires = _keep(service, completion, piece)
                yield completion.chunk({"audio": {**audio, "expires_at": expires}})
            yield completion.chunk({}, _FINISH[piece.reason])
            if completion.with_usage:
                yield server_sent(completion.body("chat.completion.chunk", [], usage=_usage(piece)))
    yield "data: [DONE]\n\n"


def _usage(done: Done) -> dict[str, Any]:
    audio, times = len(done.codes), done.timings
    details = {"audio_tokens": audio, "text_tokens": max(0, times.tokens - audio), "reasoning_tokens": 0}
    return {
        "prompt_tokens": times.prompt_tokens,
        "completion_tokens": times.tokens,
        "total_tokens": times.prompt_tokens + times.tokens,
        "completion_tokens_details": details,
    }
