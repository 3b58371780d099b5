"""What clients send over HTTP, in the form of OpenAI's API; what a speech model has no use of is left unread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

AudioFormat = Literal["wav", "pcm", "mp3", "opus", "flac", "aac"]
ChatAudioFormat = Literal["wav", "pcm16", "mp3", "opus", "flac", "aac"]
TranscriptFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TokenCount = Annotated[int, Field(ge=1, le=1 << 20)]


class Body(BaseModel):
    """mode, seed: of decoding; clients send `mode` as a field of their own (openai's `extra_body`)."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str
    mode: str | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None


class SpeechBody(Body):
    input: Annotated[str, Field(min_length=1)]
    voice: str | dict[str, str] = "default"
    response_format: AudioFormat = "mp3"
    speed: float = 1.0
    stream_format: Literal["audio", "sse"] = "audio"


class TextPart(BaseModel):
    type: Literal["text", "refusal"]
    text: str = ""


class InputAudio(BaseModel):
    data: str
    format: str = "wav"


class AudioPart(BaseModel):
    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]


class EarlierAudio(BaseModel):
    """An answer that this server gave."""

    id: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    audio: EarlierAudio | None = None


class ChatAudio(BaseModel):
    voice: str | dict[str, str] = "default"
    format: ChatAudioFormat = "wav"


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(Body):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    modalities: list[Literal["text", "audio"]] | None = None
    audio: ChatAudio | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    functions: Annotated[list[Any] | None, Field(max_length=0, alias="tools")] = None
