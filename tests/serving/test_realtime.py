"""The Realtime endpoint, held by the stock openai client against nano."""

import base64
import io
import json
import threading

import numpy as np
import pytest
import soundfile
from openai.types import realtime as openai_realtime
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.serving.conftest import served
from tests.serving.realtime_client import RATE, SILENCE, SPEECH, talking
from vita_mctp.audio import wave_from_array
from vita_mctp.audio.formats import from_pcm16
from vita_mctp.serving.options import Limits, ServerOptions
from vita_mctp.serving.realtime.protocol import RealtimeProtocol
from vita_mctp.serving.realtime.sound import SoundIn, SoundOut, decode_g711, encode_g711
from vita_mctp.serving.realtime.wire import Format, Say
from vita_mctp.speech_lm import SpeechLM

MANUAL = {"audio": {"input": {"turn_detection": None}}}


def spoken_text(nano: SpeechLM, sound: bytes) -> str:
    return nano.transcribe(wave_from_array(from_pcm16(sound), RATE))


def test_a_spoken_turn_is_found_and_answered(address: str, nano: SpeechLM) -> None:
    with talking(address, audio={"input": {"transcription": {"model": "whisper-1"}}}) as client:
        client.say(np.concatenate([SILENCE, SPEECH, SILENCE]))
        done = client.until("response.done")
        if "conversation.item.input_audio_transcription.completed" not in client.types():
            client.until("conversation.item.input_audio_transcription.completed")
    types = client.types()
    order = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "response.created",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.done",
    ]
    assert [types.index(kind) for kind in order] == sorted(types.index(kind) for kind in order)
    assert done.response.status == "completed" and done.response.output[0].role == "assistant"
    transcript = done.response.output[0].content[0].transcript
    assert transcript and "twenty" in transcript and "twenty" in spoken_text(nano, client.sound())
    heard = next(event for event in client.events if event.type.endswith("transcription.completed"))
    assert "twelve" in heard.transcript and heard.usage.type == "duration"


def test_an_interruption_and_a_truncation(address: str) -> None:
    with talking(address) as client:
        client.say(np.concatenate([SILENCE, SPEECH, SILENCE]))
        first = client.until("response.output_audio.delta")
        client.say(np.concatenate([SPEECH, SILENCE]))
        client.until("input_audio_buffer.speech_started")
        client.connection.conversation.item.truncate(item_id=first.item_id, content_index=0, audio_end_ms=40)
        cut = client.until("conversation.item.truncated")
        assert cut.audio_end_ms == 40
        statuses = {
            event.response.id: event.response.status for event in client.events if event.type == "response.done"
        }
        while len(statuses) < 2:
            response = client.until("response.done").response
            statuses[response.id] = response.status
        assert list(statuses.values())[1] == "completed"  # the first was done or cancelled, as fast as the machine is
        client.connection.conversation.item.retrieve(item_id=first.item_id)
        item = client.until("conversation.item.retrieved").item
        assert item.content[0].transcript == ""


def test_turns_by_hand_and_typed_items(address: str) -> None:
    with talking(address, **MANUAL) as client:
        client.say(SPEECH)
        client.connection.input_audio_buffer.commit()
        client.until("conversation.item.done")
        assert "response.created" not in client.types()
        client.connection.response.create()
        assert "twenty" in client.until("response.done").response.output[0].content[0].transcript
        item = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "what is two plus three"}],
        }
        client.connection.conversation.item.create(item=item)  # type: ignore[arg-type]
        client.until("conversation.item.done")
        client.connection.response.create(response={"output_modalities": ["text"], "metadata": {"topic": "sums"}})
        response = client.until("response.done").response
        assert "five" in response.output[0].content[0].text and response.metadata == {"topic": "sums"}
        assert "response.output_text.delta" in client.types()
        client.connection.conversation.item.delete(item_id=response.output[0].id)
        assert client.until("conversation.item.deleted").item_id == response.output[0].id
        client.say(SPEECH[:4800])
        client.connection.input_audio_buffer.clear()
        client.until("input_audio_buffer.cleared")
        client.connection.input_audio_buffer.commit()
        assert client.until("error").error.code == "input_audio_buffer_commit_empty"


def test_a_reply_apart_from_the_conversation(address: str) -> None:
    with talking(address, **MANUAL) as client:
        said = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "what is two plus three"}],
        }
        client.connection.response.create(
            response={"conversation": "none", "input": [said], "output_modalities": ["text"]}  # type: ignore[typeddict-item]
        )
        response = client.until("response.done").response
        assert "five" in response.output[0].content[0].text
        assert "conversation.item.added" not in client.types()
        client.connection.conversation.item.retrieve(item_id=response.output[0].id)
        assert client.until("error").error.code == "item_not_found"


def test_tokens_are_told_as_they_form_to_who_asks_for_them(address: str) -> None:
    told = {"mode": "boost", "token_events": True}
    for options in ({}, told):
        with talking(address, **MANUAL, **options) as client:
            client.say(SPEECH)
            client.connection.input_audio_buffer.commit()
            client.connection.response.create(response={"mode": "turbo"} if options else {})  # type: ignore[typeddict-item]
            metrics = client.until("response.done").response.metrics
            tokens = [event for event in client.events if event.type == Say.TOKENS]
            assert metrics["mode"] == ("turbo" if options else "verified") and bool(tokens) == bool(options)
    assert [kind for event in tokens for kind in event.kinds] == metrics["kinds"]
    assert [level for event in tokens for level in event.levels] == metrics["levels"]
    assert all(0 not in event.levels[1:] for event in tokens)  # a cycle at a time
    first_sound = client.types().index("response.output_audio.delta")
    assert Say.TOKENS in client.types()[:first_sound] and Say.TOKENS in client.types()[first_sound:]


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_telephone_sound(address: str, kind: str, subtype: str) -> None:
    form = {"type": kind}
    audio = {"input": {"format": form, "turn_detection": None}, "output": {"format": form}}
    with talking(address, audio=audio) as client:
        out = SoundOut(Format(type=kind), RATE)  # type: ignore[arg-type]
        data = out.push(SPEECH) + out.finish()
        client.connection.input_audio_buffer.append(audio=base64.b64encode(data).decode())
        client.connection.input_audio_buffer.commit()
        client.connection.response.create()
        client.until("response.done")
    law = {"audio/pcmu": "u", "audio/pcma": "A"}[kind]
    samples = decode_g711(client.sound(), law)
    assert len(samples) > 4_000 and np.abs(samples).max() > 0.1  # nano does not understand telephones, but answers
    file = io.BytesIO()
    soundfile.write(file, samples, 8_000, format="RAW", subtype=subtype)
    assert np.array_equal(decode_g711(file.getvalue(), law), samples)  # libsndfile's G.711 is ours


def test_sound_is_the_same_however_it_is_cut() -> None:
    data = from_pcm16(bytes(range(256)) * 40)
    for form in (Format(), Format(type="audio/pcmu"), Format(type="audio/pcma")):
        whole = SoundIn(form).push(bytes(range(256)) * 40)
        cut = SoundIn(form)
        pieces = [cut.push((bytes(range(256)) * 40)[begin : begin + 7]) for begin in range(0, 10_240, 7)]
        joined = np.concatenate(pieces)
        assert np.allclose(joined, whole[: len(joined)], atol=1e-5) and len(joined) > 4_000
    assert np.array_equal(SoundIn(Format()).push(bytes(range(256)) * 40), data)
    assert encode_g711(np.zeros(1, np.float32), "u") == b"\xff" and encode_g711(np.zeros(1, np.float32), "A") == b"\xd5"


BROKEN = [
    ("no json", "invalid_json"),
    ("[1, 2]", "invalid_event"),
    ('{"type": "response.audio.delta"}', "invalid_event"),
    ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_audio"),
    ('{"type": "response.cancel"}', "response_cancel_not_active"),
    ('{"type": "response.create"}', "nothing_to_answer"),
    ('{"type": "output_audio_buffer.clear"}', "unsupported"),
    ('{"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 1}', "item_not_found"),
    (
        '{"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"threshold": 7}}}}}',
        "invalid_event",
    ),
    ('{"type": "session.update", "session": {"audio": {"output": {"voice": "luke"}}}}', "invalid_voice"),
    ('{"type": "session.update", "session": {"tools": [{}]}}', "invalid_event"),
    ('{"type": "conversation.item.create", "item": {"role": "user", "content": []}}', "invalid_item"),
]


@pytest.mark.parametrize(("text", "code"), BROKEN)
def test_a_wrong_event_is_an_error_and_the_session_goes_on(address: str, text: str, code: str) -> None:
    with talking(address) as client:
        client.connection.send_raw(text)
        error = client.until("error").error
        assert error.code == code and error.type == "invalid_request_error"
        client.update(output_modalities=["text"])


def test_an_error_names_the_event_that_caused_it(address: str) -> None:
    with talking(address) as client:
        client.connection.send_raw('{"type": "response.cancel", "event_id": "mine"}')
        assert client.until("error").error.event_id == "mine"


def test_strangers_and_crowds_are_turned_away(nano: SpeechLM) -> None:
    options = ServerOptions(api_keys=("right",), limits=Limits(conversations=1))
    with served(nano, options) as (address, service):
        url = address.replace("http", "ws") + "/v1/realtime?model=nano"
        right = {"Authorization": "Bearer right"}
        with pytest.raises(InvalidStatus) as refused:
            connect(url)
        assert refused.value.response.status_code == 401
        with connect(url, additional_headers=right) as first:
            assert json.loads(first.recv())["type"] == "session.created"
            with pytest.raises(InvalidStatus) as refused:
                connect(url, additional_headers=right)
            assert refused.value.response.status_code == 429 and refused.value.response.headers["retry-after"]
        while service.gate.conversations:
            pass
        browser = ["realtime", "openai-insecure-api-key.right"]
        with connect(url, subprotocols=browser) as again:  # type: ignore[arg-type]
            assert again.subprotocol == "realtime" and json.loads(again.recv())["type"] == "session.created"


def test_pings_are_answered_while_much_is_handled(nano: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(RealtimeProtocol, "receive", lambda *_: go_on.wait(60))
    with served(nano) as (address, _), connect(address.replace("http", "ws") + "/v1/realtime") as socket:
        for _ in range(3):
            socket.send("{}")
        assert socket.ping().wait(30)
        go_on.set()


def test_a_session_for_transcription_writes_down_and_answers_nothing(address: str) -> None:
    with talking(address, type="transcription") as client:
        assert client.events[-1].session.type == "transcription"
        client.say(np.concatenate([SILENCE, SPEECH, SILENCE]))
        heard = client.until("conversation.item.input_audio_transcription.completed")
        assert "twelve" in heard.transcript
        client.connection.response.create()
        assert client.until("error").error.code == "unsupported"
        assert "response.created" not in client.types()


def test_silence_for_long_ends_a_session(nano: SpeechLM) -> None:
    with served(nano, ServerOptions(limits=Limits(idle_seconds=0.2))) as (address, _):
        socket = connect(address.replace("http", "ws") + "/v1/realtime")
        assert json.loads(socket.recv())["type"] == "session.created"
        with pytest.raises(ConnectionClosed, match="1001"):
            socket.recv(timeout=10)


def test_the_client_knows_every_event_that_we_say() -> None:
    known = set()
    for name in dir(openai_realtime):
        fields = getattr(getattr(openai_realtime, name), "model_fields", {})
        if "type" in fields and "event_id" in fields:
            known |= set(getattr(fields["type"].annotation, "__args__", ()))
    known |= {"conversation.item.retrieved"}  # defined inside the union's own module
    assert {kind.value for kind in Say} - {Say.TOKENS} <= known
