"""The words of the Realtime protocol: what a client may send, what a server says, and how a session is set up.

Names are those of openai-python's `types.realtime` (3.57). Fields that this server has no use of are left unread.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from vita_mctp.conversation.endpoint import TurnDetection
from vita_mctp.conversation.reply import ReplyOptions
from vita_mctp.conversation.turns import ConversationOptions


class Say(StrEnum):
    """The `type` of a server's event."""

    CREATED = "session.created"
    UPDATED = "session.updated"
    ERROR = "error"
    SPEECH_STARTED = "input_audio_buffer.speech_started"
    SPEECH_STOPPED = "input_audio_buffer.speech_stopped"
    COMMITTED = "input_audio_buffer.committed"
    CLEARED = "input_audio_buffer.cleared"
    ITEM_ADDED = "conversation.item.added"
    ITEM_DONE = "conversation.item.done"
    ITEM_DELETED = "conversation.item.deleted"
    ITEM_RETRIEVED = "conversation.item.retrieved"
    ITEM_TRUNCATED = "conversation.item.truncated"
    TRANSCRIPT_DELTA = "conversation.item.input_audio_transcription.delta"
    TRANSCRIPT_DONE = "conversation.item.input_audio_transcription.completed"
    TRANSCRIPT_FAILED = "conversation.item.input_audio_transcription.failed"
    RESPONSE_CREATED = "response.created"
    RESPONSE_DONE = "response.done"
    OUTPUT_ADDED = "response.output_item.added"
    OUTPUT_DONE = "response.output_item.done"
    PART_ADDED = "response.content_part.added"
    PART_DONE = "response.content_part.done"
    AUDIO_DELTA = "response.output_audio.delta"
    AUDIO_DONE = "response.output_audio.done"
    AUDIO_TEXT_DELTA = "response.output_audio_transcript.delta"
    AUDIO_TEXT_DONE = "response.output_audio_transcript.done"
    TEXT_DELTA = "response.output_text.delta"
    TEXT_DONE = "response.output_text.done"
    TOKENS = "vita_mctp.response.tokens.delta"
    """No event of OpenAI's: said in sessions alone that ask for `token_events`."""


class Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)]
TokenLimit = Annotated[int, Field(ge=1, le=1 << 20)] | Literal["inf"]
Identifier = Annotated[str, Field(min_length=1, max_length=100)]
Milliseconds = Annotated[int, Field(ge=0, le=1 << 31)]
Instructions = Annotated[str, Field(max_length=65_536)]
NoFunctions = Annotated[list[Any] | None, Field(max_length=0, alias="tools")]


class Format(Wire):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[24000, 8000] | None = None


class VoiceActivity(Wire):
    """Semantic detection is taken for the server's own, which goes by sound alone."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=0, le=10_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True


class Transcription(Wire):
    model: str | None = None
    language: str | None = None


class Input(Wire):
    format: Format = Format()
    transcription: Transcription | None = None
    turn_detection: VoiceActivity | None = VoiceActivity()


class Output(Wire):
    format: Format = Format()
    voice: str | dict[str, str] = "default"
    speed: Annotated[float, Field(ge=1, le=1)] = 1.0


class Audio(Wire):
    input: Input = Input()
    output: Output = Output()


class Config(Wire):
    """What a session is set to. One for transcription writes turns down and answers none.

    Beyond OpenAI's fields: mode, seed and temperature, of decoding, and token_events.
    """

    type: Literal["realtime", "transcription"] = "realtime"
    model: str | None = None
    output_modalities: Modalities = ["audio"]
    instructions: Instructions | None = None
    audio: Audio = Audio()
    max_output_tokens: TokenLimit = "inf"
    functions: NoFunctions = None
    mode: str | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    token_events: bool = False

    def reply_options(self) -> ReplyOptions:
        most = None if self.max_output_tokens == "inf" else self.max_output_tokens
        speaks, system, each = "audio" in self.output_modalities, self.instructions or "", self.token_events
        return ReplyOptions(speaks, self.mode, self.seed, self.temperature, most, each_token=each, instructions=system)

    def conversation_options(self) -> ConversationOptions:
        detected, reply = self.audio.input.turn_detection, self.reply_options()
        answers = self.type == "realtime"
        transcribes = self.audio.input.transcription is not None or not answers
        if detected is None:
            return ConversationOptions(None, transcribes=transcribes, reply=reply)
        detection = TurnDetection(
            detected.threshold, silence_ms=detected.silence_duration_ms, prefix_ms=detected.prefix_padding_ms
        )
        creates, interrupts = detected.create_response and answers, detected.interrupt_response
        return ConversationOptions(detection, creates, interrupts, transcribes, reply)


class Content(Wire):
    type: Literal["input_text", "input_audio", "output_text", "output_audio", "text"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None


class ItemBody(Wire):
    type: Literal["message", "item_reference"] = "message"
    id: Identifier | None = None
    role: Literal["system", "user", "assistant"] = "user"
    content: Annotated[list[Content], Field(max_length=100)] = []


class ResponseOutput(Wire):
    format: Format | None = None
    voice: str | dict[str, str] | None = None


class ResponseAudio(Wire):
    output: ResponseOutput | None = None


class ResponseBody(Wire):
    """What one reply is to be; what is not said is as the session's. mode: of decoding, beyond OpenAI's fields."""

    instructions: Instructions | None = None
    output_modalities: Modalities | None = None
    audio: ResponseAudio | None = None
    conversation: Literal["auto", "none"] = "auto"
    input: Annotated[list[ItemBody], Field(max_length=1000)] | None = None
    max_output_tokens: TokenLimit | None = None
    metadata: dict[str, str] | None = None
    mode: str | None = None
    functions: NoFunctions = None


class ClientEvent(Wire):
    event_id: Annotated[str, Field(max_length=512)] | None = None


class Update(ClientEvent):
    type: Literal["session.update"]
    changes: Annotated[dict[str, Any], Field(alias="session")]


class Append(ClientEvent):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Plain(ClientEvent):
    type: Literal["input_audio_buffer.commit", "input_audio_buffer.clear", "output_audio_buffer.clear"]


class CreateItem(ClientEvent):
    type: Literal["conversation.item.create"]
    item: ItemBody
    previous_item_id: Identifier | None = None


class OfItem(ClientEvent):
    type: Literal["conversation.item.delete", "conversation.item.retrieve"]
    item_id: Identifier


class Truncate(ClientEvent):
    type: Literal["conversation.item.truncate"]
    item_id: Identifier
    content_index: Annotated[int, Field(ge=0, le=0)]
    audio_end_ms: Milliseconds


class CreateResponse(ClientEvent):
    type: Literal["response.create"]
    response: ResponseBody = ResponseBody()


class CancelResponse(ClientEvent):
    type: Literal["response.cancel"]
    response_id: Identifier | None = None


AnyClientEvent = Update | Append | Plain | CreateItem | OfItem | Truncate | CreateResponse | CancelResponse
client_event: TypeAdapter[AnyClientEvent] = TypeAdapter(Annotated[AnyClientEvent, Field(discriminator="type")])


def merged(known: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`known` with the values of `changes`, which may be null, objects within each other."""
    result = dict(known)
    for name, value in changes.items():
        inner = known.get(name)
        result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
