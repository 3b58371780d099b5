"""POST /v1/audio/transcriptions: a recording in, its words out, whole or as they are found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from vita_mctp.audio import read_wave
from vita_mctp.audio.vad import speech_detector
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.endpoint import EndPointer, SpeechStopped, TurnDetection
from vita_mctp.errors import NoSpeechError
from vita_mctp.serving.errors import ApiError
from vita_mctp.serving.schemas import Temperature, TranscriptFormat
from vita_mctp.serving.service import Service, opened, server_sent
from vita_mctp.types import Done, TextDelta, Wave

ENDPOINT = "/v1/audio/transcriptions"
_PAUSE = TurnDetection(silence_ms=400)


@dataclass(frozen=True)
class Segment:
    """What was said from `start` to `end` seconds."""

    start: float
    end: float
    text: str


def transcription_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(ENDPOINT, response_class=Response)
    async def transcriptions(
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()],
        response_format: Annotated[TranscriptFormat, Form()] = "json",
        stream: Annotated[bool, Form()] = False,
        language: Annotated[str, Form(max_length=20)] = "en",
        temperature: Annotated[Temperature | None, Form()] = None,
        timestamp_granularities: Annotated[list[str] | None, Form(alias="timestamp_granularities[]")] = None,
    ) -> Response:
        service.options.check_model(model)
        if "word" in (timestamp_granularities or ()):
            message = "times of words were asked for; this model knows those of segments"
            raise ApiError(400, message, param="timestamp_granularities")
        data = await file.read()
        made = await opened(service.answer(ENDPOINT, lambda cancel: transcribed(service, data, cancel)))
        if stream:
            return StreamingResponse(_as_events(made), media_type="text/event-stream")
        segments = [piece async for piece in made if isinstance(piece, Segment)]
        return _whole(segments, response_format, language)

    return router


def transcribed(service: Service, data: bytes, cancel: Cancel) -> Iterator[TextDelta | Segment | Done]:
    """In a thread: of each segment its text as it forms and then whole, and a `Done`. Raises AudioError."""
    settings = service.replies.speech_lm.settings
    wave = read_wave(data, service.options.limits.seconds, channel=settings.channel)
    said, refused = (
        False,
        NoSpeechError(f"no speech heard in {wave.seconds:.1f} s of sound; send a recording of a voice"),
    )
    heard = 0
    for start, stop in segments_of(wave, settings.max_question_seconds):
        texts: list[str] = []
        try:
            events = service.replies.transcribe(Wave(wave.samples[start:stop], wave.sample_rate), cancel)
        except NoSpeechError as error:  # a noise between the pauses of a long recording
            refused = error
            continue
        heard += 1
        for event in events:
            if isinstance(event, TextDelta):
                text = event.text if texts or not said else f" {event.text.lstrip()}"
                texts.append(text)
                yield TextDelta(text)
            elif isinstance(event, Done):
                said = said or bool(texts)
                yield Segment(start / wave.sample_rate, stop / wave.sample_rate, "".join(texts).strip())
                yield event
    if not heard:
        raise refused


def segments_of(wave: Wave, longest_seconds: float) -> list[tuple[int, int]]:
    """All of a recording that the model can hear at once; of a longer one, what lies between its pauses."""
    if wave.seconds <= longest_seconds:
        return [(0, len(wave.samples))]
    longest = int(longest_seconds * wave.sample_rate)
    pointer = EndPointer(speech_detector(), _PAUSE, wave.sample_rate, longest)
    events = list(pointer.push(wave.samples))
    turns = [(event.start, event.stop) for event in events if isinstance(event, SpeechStopped)]
    if pointer.speaking:
        turns.append((events[-1].start, len(wave.samples)))
    return turns


def _whole(segments: list[Segment], form: TranscriptFormat, language: str) -> Response:
    text = " ".join(segment.text for segment in segments if segment.text)
    duration = segments[-1].end if segments else 0.0
    if form == "json":
        return JSONResponse({"text": text, "usage": _usage(duration)})
    if form == "verbose_json":
        rows = [_verbose(number, segment) for number, segment in enumerate(segments)]
        about = {"task": "transcribe", "language": language, "duration": duration, "usage": _usage(duration)}
        return JSONResponse({**about, "text": text, "segments": rows})
    if form == "text":
        return PlainTextResponse(text + "\n")
    rows_of = enumerate(segments, 1)
    if form == "srt":
        cues = [f"{n}\n{_time(s.start, ',')} --> {_time(s.end, ',')}\n{s.text}\n\n" for n, s in rows_of]
        return PlainTextResponse("".join(cues))
    cues = [f"{_time(s.start, '.')} --> {_time(s.end, '.')}\n{s.text}\n\n" for _, s in rows_of]
    return PlainTextResponse("WEBVTT\n\n" + "".join(cues), media_type="text/vtt")


def _usage(duration: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": duration}


def _verbose(number: int, segment: Segment) -> dict[str, Any]:
    """With what clients look for and this model does not say, as zeros."""
    unknown = {"tokens": [], "temperature": 0.0, "avg_logprob": 0.0, "compression_ratio": 0.0, "no_speech_prob": 0.0}
    return {
        "id": number,
        "seek": 0,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        **unknown,
    }


def _time(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


async def _as_events(made: AsyncIterator[TextDelta | Segment | Done]) -> AsyncIterator[str]:
    texts: list[str] = []
    async for piece in made:
        if isinstance(piece, TextDelta):
            texts.append(piece.text)
            yield server_sent({"type": "transcript.text.delta", "delta": piece.text})
    yield server_sent({"type": "transcript.text.done", "text": "".join(texts).strip()})
    yield "data: [DONE]\n\n"
