"""POST /v1/audio/speech: text in, its sound out as it is made."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from vita_mctp.audio.formats import MEDIA_TYPES, new_encoder
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.reply import ReplyOptions
from vita_mctp.serving.errors import ApiError
from vita_mctp.serving.schemas import SpeechBody
from vita_mctp.serving.service import Service, opened, server_sent
from vita_mctp.types import Done, StopReason, WaveChunk

ENDPOINT = "/v1/audio/speech"
_SENTENCE_END = re.compile(r"(?<=[.!?;。！？；])\s+|\n+")


def speech_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(ENDPOINT, response_class=Response)
    async def speech(body: SpeechBody) -> Response:
        service.options.check_model(body.model)
        voice = service.options.voice(body.voice)
        most = service.options.limits.text_characters
        if len(body.input) > most:
            raise ApiError(400, f"the input has {len(body.input)} characters; wanted at most {most}", param="input")
        if body.speed != 1.0:
            raise ApiError(400, f"speed {body.speed:g} came; this model has one speed: leave it out", param="speed")
        if not (sentences := sentences_of(body.input)):
            raise ApiError(400, "the input has no word; give some text", param="input")
        options = service.reply_options(body, voice=voice)
        made = await opened(service.answer(ENDPOINT, lambda cancel: spoken(service, sentences, options, body, cancel)))
        if body.stream_format == "sse":
            return StreamingResponse(_as_events(made), media_type="text/event-stream")
        return StreamingResponse(_as_bytes(made), media_type=MEDIA_TYPES[body.response_format])

    return router


def sentences_of(text: str) -> list[str]:
    """Pieces to be said one after the other: a model speaks what is as long as what it was trained on."""
    return [piece.strip() for piece in _SENTENCE_END.split(text) if re.search(r"\w", piece)]


def spoken(
    service: Service, sentences: list[str], options: ReplyOptions, body: SpeechBody, cancel: Cancel
) -> Iterator[bytes | Done]:
    """In a thread: encoded pieces, then one `Done` for all sentences, with the times of the first sound."""
    encoder = new_encoder(body.response_format, service.replies.sample_rate)
    total: Done | None = None
    with closing(encoder):
        for sentence in sentences:
            for event in service.replies.say(sentence, options, cancel):
                if isinstance(event, WaveChunk):
                    if data := encoder.push(event.samples):
                        yield data
                elif isinstance(event, Done):
                    total = event if total is None else _sum(total, event)
            if cancel.is_set:
                break
        else:
            yield encoder.finish()
    if total is not None:
        yield total


def _sum(first: Done, second: Done) -> Done:
    a, b = first.timings, second.timings
    times = replace(
        a,
        total=a.total + b.total,
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        tokens=a.tokens + b.tokens,
        audio_seconds=a.audio_seconds + b.audio_seconds,
    )
    return replace(second if second.reason is not StopReason.EOS else first, timings=times)


async def _as_bytes(made: AsyncIterator[bytes | Done]) -> AsyncIterator[bytes]:
    async for piece in made:
        if isinstance(piece, bytes) and piece:
            yield piece


async def _as_events(made: AsyncIterator[bytes | Done]) -> AsyncIterator[str]:
    async for piece in made:
        if isinstance(piece, Done):
            read, generated = piece.timings.prompt_tokens, piece.timings.tokens
            usage = {"input_tokens": read, "output_tokens": generated, "total_tokens": read + generated}
            yield server_sent({"type": "speech.audio.done", "usage": usage})
        elif piece:
            yield server_sent({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
