"""Whatever is sent, an answer comes or an error in OpenAI's form: no 500, no hang, no file or address opened."""

import base64
import copy
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from tests.serving.conftest import QUESTION

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LOCATORS = [
    "/etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/",
    "https://example.org/a.wav",
    "concat:/etc/passwd",
]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/audio/speech": {
        "model": "nano",
        "input": "hi",
        "voice": "alloy",
        "response_format": "pcm",
        "stream_format": "audio",
    },
    "/v1/chat/completions": {
        "model": "nano",
        "max_tokens": 1,
        "modalities": ["text"],
        "audio": {"voice": "alloy", "format": "pcm16"},
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]},
        ],
    },
}
EVENTS: list[dict[str, Any]] = [
    {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}},
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(960)).decode()},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {"type": "output_audio_buffer.clear"},
    {"type": "conversation.item.create", "item": {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}},
    {"type": "conversation.item.delete", "item_id": "x"},
    {"type": "conversation.item.retrieve", "item_id": "x"},
    {"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 5},
    {"type": "response.create", "response": {"output_modalities": ["text"], "max_output_tokens": 1}},
    {"type": "response.cancel"},
]
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, each in inner for spot in spots(each, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, values: list[dict[str, Any]]) -> dict[str, Any]:
    """A right one with one thing in it replaced."""
    value = copy.deepcopy(draw(st.sampled_from(values)))
    path = draw(st.sampled_from(spots(value)[1:]))
    target = value
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = draw(JSON | st.sampled_from(LOCATORS))
    return value


def is_an_answer(response: httpx.Response) -> bool:
    if response.status_code == 200:
        return True
    error = response.json()["error"]
    return 400 <= response.status_code < 500 and error.keys() == {"message", "type", "param", "code"}


@relaxed
@given(data=st.data(), path=st.sampled_from(list(BODIES)))
def test_bodies(address: str, data: st.DataObject, path: str) -> None:
    body = data.draw(damaged([BODIES[path]]))
    sent = json.dumps(body).encode()  # Infinity and NaN too, which httpx's own writer refuses
    headers = {"content-type": "application/json"}
    assert is_an_answer(httpx.post(f"{address}{path}", content=sent, headers=headers, timeout=60)), body


@relaxed
@given(
    body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
    path=st.sampled_from(list(BODIES)),
)
def test_bytes(address: str, body: bytes, path: str) -> None:
    response = httpx.post(f"{address}{path}", content=body, headers={"content-type": "application/json"}, timeout=60)
    assert 400 <= response.status_code < 500 and is_an_answer(response)


@relaxed
@given(data=st.data())
def test_recordings(address: str, data: st.DataObject) -> None:
    whole = bytearray(QUESTION.read_bytes()[: 44 + 8_000])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 43))] = data.draw(st.integers(0, 255))
    form = data.draw(
        st.dictionaries(st.sampled_from(["response_format", "temperature", "language", "stream"]), st.text(max_size=5))
    )
    files = {"file": (data.draw(st.sampled_from(["a.wav", "../../a", "http://a/b.m3u8"])), bytes(whole))}
    response = httpx.post(f"{address}/v1/audio/transcriptions", data={"model": "nano", **form}, files=files, timeout=60)
    assert is_an_answer(response)


@pytest.mark.parametrize("locator", LOCATORS)
def test_a_path_or_an_address_is_no_recording(address: str, locator: str) -> None:
    for name, content in (("a.wav", locator.encode()), (locator, b"x"), ("a.m3u8", f"#EXTM3U\n{locator}\n".encode())):
        files = {"file": (name, content)}
        response = httpx.post(f"{address}/v1/audio/transcriptions", data={"model": "nano"}, files=files, timeout=60)
        assert response.status_code == 400 and "root:" not in response.text


@settings(relaxed, max_examples=15)
@given(
    frames=st.lists(damaged(EVENTS) | st.sampled_from(EVENTS), min_size=60, max_size=70), noise=st.binary(max_size=50)
)
def test_frames(address: str, frames: list[dict[str, Any]], noise: bytes) -> None:
    with connect(address.replace("http", "ws") + "/v1/realtime") as socket:
        socket.send(noise)
        for frame in frames:
            socket.send(json.dumps(frame))
        socket.send('{"type": "conversation.item.delete", "item_id": "nobody", "event_id": "the last"}')
        while True:
            event = json.loads(socket.recv(timeout=60))
            if event["type"] == "error" and event["error"]["event_id"] == "the last":
                break
            assert event["event_id"]
