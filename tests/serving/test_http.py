"""The HTTP endpoints, as the stock openai client and plain HTTP see them."""

import base64
import io
import json
import shutil
import subprocess
import threading
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile
from openai import OpenAI
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.serving.conftest import ANSWER, QUESTION, served
from vita_mctp.audio import read_wave
from vita_mctp.audio.formats import from_pcm16
from vita_mctp.errors import ConfigError
from vita_mctp.serving.options import Limits, ServerOptions
from vita_mctp.serving.service import Service
from vita_mctp.speech_lm import SpeechLM

SAID = "seven plus six is thirteen"
FORMATS = ["wav", "pcm", "mp3", "opus", "flac", "aac"]


def sound_of(data: bytes, form: str) -> tuple[np.ndarray, int]:
    if form == "pcm":
        return from_pcm16(data), 24_000
    if form == "aac":
        command = ["ffmpeg", "-v", "error", "-i", "pipe:0", "-f", "wav", "pipe:1"]
        data = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    return soundfile.read(io.BytesIO(data), dtype="float32")


@pytest.mark.parametrize("form", FORMATS)
def test_speech_in_every_format(client: OpenAI, nano: SpeechLM, form: str) -> None:
    if form == "aac" and not shutil.which("ffmpeg"):
        pytest.skip("aac is ffmpeg's")
    made = client.audio.speech.create(model="tts-1", voice="alloy", input=SAID, response_format=form)
    samples, rate = sound_of(made.content, form)
    expected = nano.say(SAID).wave
    assert abs(len(samples) / rate - expected.seconds) < 0.15
    assert nano.transcribe(read_wave(_wav(samples, rate))) == nano.transcribe(expected)


def _wav(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def test_streamed_speech_is_the_model_s_own(client: OpenAI, nano: SpeechLM) -> None:
    chunks = []
    with client.audio.speech.with_streaming_response.create(
        model="nano", voice="default", input=SAID, response_format="wav"
    ) as response:
        assert response.headers["content-type"] == "audio/wav"
        chunks = list(response.iter_bytes())
    samples, rate = soundfile.read(io.BytesIO(b"".join(chunks)), dtype="float32")
    expected = nano.say(SAID).wave
    assert rate == expected.sample_rate and np.abs(samples - expected.samples).max() < 1e-4


def test_speech_as_events(client: OpenAI, nano: SpeechLM) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="nano", voice="nova", input=SAID, response_format="pcm", stream_format="sse"
    ) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert [event["type"] for event in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1) and len(events) > 2
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["output_tokens"] > 10
    sound = from_pcm16(b"".join(base64.b64decode(event["audio"]) for event in events[:-1]))
    assert len(sound) == pytest.approx(nano.say(SAID).wave.seconds * 24_000, abs=2)


def test_sentences_are_said_one_after_the_other(client: OpenAI, nano: SpeechLM) -> None:
    one, two = "seven plus six is thirteen.", "the capital of france is paris."
    made = client.audio.speech.create(model="nano", voice="alloy", input=f"{one} {two}", response_format="pcm")
    seconds = nano.say(one).wave.seconds + nano.say(two).wave.seconds
    assert len(made.content) / 2 / 24_000 == pytest.approx(seconds, abs=0.01)


def test_transcriptions_in_every_form(client: OpenAI, nano: SpeechLM) -> None:
    text = nano.transcribe(QUESTION)
    with QUESTION.open("rb") as file:
        assert client.audio.transcriptions.create(model="whisper-1", file=file).text == text
    verbose = client.audio.transcriptions.create(model="nano", file=QUESTION, response_format="verbose_json")
    assert verbose.text == text and verbose.segments and verbose.segments[0].text == text
    assert verbose.duration == pytest.approx(read_wave(QUESTION).seconds)
    plain = {
        form: client.audio.transcriptions.create(model="nano", file=QUESTION, response_format=form)  # type: ignore[call-overload]
        for form in ("text", "srt", "vtt")
    }
    assert plain["text"].strip() == text
    assert plain["srt"].startswith("1\n00:00:00,000 --> 00:00:0") and text in plain["srt"]
    assert plain["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> ") and text in plain["vtt"]


def test_transcriptions_stream(client: OpenAI, nano: SpeechLM) -> None:
    events = list(client.audio.transcriptions.create(model="nano", file=QUESTION, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert events[-1].text == nano.transcribe(QUESTION) == "".join(event.delta for event in events[:-1]).strip()


def test_a_recording_longer_than_the_model_hears_is_cut_at_its_pauses(client: OpenAI, nano: SpeechLM) -> None:
    wave = read_wave(QUESTION)
    pause = np.zeros(wave.sample_rate, np.float32)
    samples = np.concatenate([np.concatenate([pause, wave.samples, pause]) for _ in range(5)])
    made = client.audio.transcriptions.create(
        model="nano", file=("long.wav", _wav(samples, wave.sample_rate)), response_format="verbose_json"
    )
    assert made.segments is not None and len(made.segments) == 5
    each = 2 + wave.seconds
    assert [segment.start // each for segment in made.segments] == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="these are ffmpeg's")
@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("mp3", "libmp3lame")])
def test_uploads_of_other_formats(client: OpenAI, tmp_path, suffix: str, codec: str) -> None:
    path = tmp_path / f"question.{suffix}"
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(QUESTION), "-c:a", codec, str(path)], check=True)
    assert "eight" in client.audio.transcriptions.create(model="nano", file=path).text


def question_audio(**changes: str) -> list[dict[str, object]]:
    audio = {"data": base64.b64encode(QUESTION.read_bytes()).decode(), "format": "wav", **changes}
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}]


def test_a_body_that_does_not_say_what_it_is(http: httpx.Client) -> None:
    refused = http.post("/v1/audio/speech", content=b'{"input": "hello"}')
    assert refused.status_code == 400 and "application/json" in refused.json()["error"]["message"]


def test_chat_with_audio_in_and_out(client: OpenAI, nano: SpeechLM) -> None:
    made = client.chat.completions.create(
        model="gpt-4o-audio-preview",
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
        messages=question_audio(),  # type: ignore[arg-type]
    )
    expected = nano.ask(QUESTION)
    message = made.choices[0].message
    assert message.audio is not None and message.audio.transcript == expected.text
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)), dtype="float32")
    assert np.abs(samples - expected.wave.samples).max() < 1e-4
    assert made.choices[0].finish_reason == "stop" and made.usage is not None and made.usage.completion_tokens > 10
    question = nano.prompt(nano.hear(QUESTION))
    assert made.usage.prompt_tokens == len(question.ids), "the question's codes included"


def test_chat_streams_text_and_sound(client: OpenAI, nano: SpeechLM) -> None:
    stream = client.chat.completions.create(
        model="nano",
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "pcm16"},
        messages=question_audio(),  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    audio = [delta.audio for delta in deltas if getattr(delta, "audio", None)]
    expected = nano.ask(QUESTION)
    assert "".join(part.transcript or "" for part in audio).strip() == expected.text
    sound = b"".join(base64.b64decode(part.data) for part in audio if part.data)
    assert len(sound) / 2 / 24_000 == pytest.approx(expected.wave.seconds, abs=0.001)
    assert len({part.id for part in audio}) == 1 and any(part.expires_at for part in audio)
    assert chunks[-1].usage is not None and chunks[-2].choices[0].finish_reason == "stop"


def test_chat_in_writing(client: OpenAI, nano: SpeechLM) -> None:
    messages = [{"role": "user", "content": "what is seven plus six"}]
    made = client.chat.completions.create(model="nano", messages=messages)  # type: ignore[arg-type]
    assert made.choices[0].message.content == nano.chat("what is seven plus six")
    stream = client.chat.completions.create(model="nano", messages=messages, stream=True)  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text.strip() == made.choices[0].message.content and ANSWER in text


def test_a_typed_question_is_answered_aloud(client: OpenAI, nano: SpeechLM) -> None:
    made = client.chat.completions.create(
        model="nano",
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "mp3"},
        messages=[{"role": "user", "content": "what is seven plus six"}],
    )
    audio = made.choices[0].message.audio
    assert audio is not None and ANSWER in audio.transcript
    assert ANSWER in nano.transcribe(base64.b64decode(audio.data))
    follow_up = [
        {"role": "assistant", "audio": {"id": audio.id}},
        {"role": "user", "content": "what is two plus three"},
    ]
    made = client.chat.completions.create(model="nano", messages=follow_up)  # type: ignore[arg-type]
    assert "five" in (made.choices[0].message.content or "")


def test_models_and_states(client: OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").id == "nano"
    assert http.get("/health").json() == {"status": "ok"} and http.get("/ready").status_code == 200
    counted = http.get("/metrics").text
    assert (
        'vita_requests_total{endpoint="/v1/models",status="200"}' in counted and "vita_first_sound_seconds" in counted
    )


REFUSED = [
    ("/v1/audio/speech", {"model": "nano", "input": SAID, "voice": "luke"}, "voice"),
    ("/v1/audio/speech", {"model": "nano", "input": SAID, "speed": 2}, "speed"),
    ("/v1/audio/speech", {"model": "nano", "input": "..."}, "input"),
    ("/v1/audio/speech", {"model": "nano", "input": "x" * 5000}, "input"),
    ("/v1/audio/speech", {"model": "nano", "input": SAID, "mode": "warp"}, None),
    ("/v1/audio/speech", {"model": "other", "input": SAID}, "model"),
    ("/v1/audio/speech", {"input": SAID}, "model"),
    ("/v1/chat/completions", {"model": "nano", "messages": []}, "messages"),
    ("/v1/chat/completions", {"model": "nano", "messages": [{"role": "assistant", "content": "hi"}]}, None),
    ("/v1/chat/completions", {"model": "nano", "messages": question_audio(data="no base64!")}, "messages"),
    ("/v1/chat/completions", {"model": "nano", "messages": question_audio(data="AAAA")}, None),
    ("/v1/chat/completions", {"model": "nano", "messages": [{"role": "user", "content": "hi"}], "n": 2}, "n"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
def test_what_is_wrong_is_said_in_openai_s_form(
    http: httpx.Client, path: str, body: dict[str, object], param: str
) -> None:
    response = http.post(path, json=body)
    assert response.status_code in (400, 404)
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param and "\n" not in error["message"]


def test_unknown_paths_and_broken_bodies(http: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/audio/speech", 405),
        ("PUT", "/v1/models", 405),
    ):
        refused = http.request(method, path)
        assert refused.status_code == status and refused.json()["error"]["type"] == "invalid_request_error"
    assert http.head("/v1/audio/speech").status_code == 405
    for body in (b"{", b"[]", b"\xff\xfe", b'{"model": NaN}'):
        response = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400 and "error" in response.json()


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/hostname\n"]
)
def test_uploads_that_are_no_recording_are_refused(client: OpenAI, data: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="wanted"):
        client.audio.transcriptions.create(model="nano", file=("question.wav", data))


def test_a_recording_without_speech_is_refused_and_a_noise_in_a_long_one_left_out(client: OpenAI) -> None:
    wave = read_wave(QUESTION)
    hum = (0.1 * np.sin(np.arange(16 * wave.sample_rate) / 9)).astype(np.float32)
    for seconds in (2, 16):  # heard at once, and cut at its pauses
        with pytest.raises(openai.BadRequestError, match="no speech"):
            quiet = _wav(hum[: seconds * wave.sample_rate], wave.sample_rate)
            client.audio.transcriptions.create(model="nano", file=("hum.wav", quiet))
    mixed = _wav(np.concatenate([hum, 0 * hum[: wave.sample_rate], wave.samples]), wave.sample_rate)
    assert "eight" in client.audio.transcriptions.create(model="nano", file=("mixed.wav", mixed)).text


def test_voices_are_recordings_that_the_model_speaks_in(tiny_speech_folder: Path, nano: SpeechLM) -> None:
    speech_lm, voice = SpeechLM.from_pretrained(tiny_speech_folder), read_wave(QUESTION)
    options = ServerOptions("tiny", voices={"anna": voice})
    with served(speech_lm, options) as (address, _), OpenAI(base_url=f"{address}/v1", api_key="any") as client:
        said = {}
        for name in ("Anna", "alloy"):
            made = client.audio.speech.create(
                model="tiny", voice=name, input="two plus three", response_format="wav", extra_body={"temperature": 0}
            )
            said[name], _ = sound_of(made.content, "wav")
        for name, prompt in (("Anna", voice), ("alloy", None)):
            wanted = speech_lm.say("two plus three", temperature=0, voice_prompt=prompt).wave.samples
            assert len(said[name]) == len(wanted)
            np.testing.assert_allclose(said[name], wanted, atol=1e-4)
        assert not np.array_equal(said["Anna"], said["alloy"])
        with pytest.raises(openai.BadRequestError, match="anna"):
            client.audio.speech.create(model="tiny", voice="berta", input="two")
    with pytest.raises(ConfigError, match="voice prompts"):
        Service(nano, options)


def test_keys_are_asked_for(nano: SpeechLM) -> None:
    with served(nano, ServerOptions(api_keys=("first", "second"))) as (address, _):
        for key in ("first", "second"):
            assert [m.id for m in OpenAI(base_url=f"{address}/v1", api_key=key).models.list()] == ["nano"]
        with pytest.raises(openai.AuthenticationError, match="Bearer"):
            OpenAI(base_url=f"{address}/v1", api_key="third", max_retries=0).models.list()
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200


def test_a_page_of_another_origin_wants_a_key(nano: SpeechLM) -> None:
    with served(nano, ServerOptions()) as (address, _):
        own, foreign = {"origin": address}, {"origin": "https://elsewhere.example"}
        assert httpx.get(f"{address}/v1/models", headers=own).status_code == 200
        refused = httpx.get(f"{address}/v1/models", headers=foreign)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "foreign_origin"
        with pytest.raises(InvalidStatus) as met:
            connect(f"{address.replace('http', 'ws')}/v1/realtime", additional_headers=foreign)
        assert met.value.response.status_code == 403
    with served(nano, ServerOptions(api_keys=("first",))) as (address, _):
        keyed = {**foreign, "authorization": "Bearer first"}
        answered = httpx.get(f"{address}/v1/models", headers=keyed)
        assert answered.status_code == 200 and answered.headers["access-control-allow-origin"] == "*"
        asks = {**foreign, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        assert httpx.options(f"{address}/v1/audio/speech", headers=asks).status_code == 200


def test_what_is_too_much_is_refused(nano: SpeechLM) -> None:
    limits = Limits(running=1, waiting=0, body_bytes=100_000)
    with served(nano, ServerOptions(limits=limits)) as (address, service):
        large = {"model": "nano", "input": "x" * 200_000}
        assert httpx.post(f"{address}/v1/audio/speech", json=large).status_code == 413
        chunked = httpx.post(f"{address}/v1/audio/speech", content=(b"x" * 1000 for _ in range(200)))
        assert chunked.status_code == 413
        codes: list[int] = []
        retry: list[str | None] = []

        def ask() -> None:
            response = httpx.post(f"{address}/v1/audio/speech", json={"model": "nano", "input": SAID}, timeout=60)
            codes.append(response.status_code)
            retry.append(response.headers.get("retry-after"))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) == {200, 429} and all(retry[i] for i in range(6) if codes[i] == 429)
        assert (service.gate.running, service.gate.waiting) == (0, 0)


def test_a_client_that_leaves_frees_its_slot(server: tuple[str, Service], nano: SpeechLM) -> None:
    address, service = server
    body = {"model": "nano", "input": ". ".join([SAID] * 150), "response_format": "pcm"}
    finished = service.metrics.tokens._value.get()
    with httpx.stream("POST", f"{address}/v1/audio/speech", json=body, timeout=60) as response:
        next(response.iter_bytes())
    for _ in range(500):
        if service.gate.running == 0 and not nano.worker._outboxes:
            break
        threading.Event().wait(0.02)
    assert service.gate.running == 0 and not nano.worker._outboxes
    assert service.metrics.tokens._value.get() == finished  # it was not made to its end


def test_answers_made_together_are_those_made_alone(client: OpenAI, nano: SpeechLM) -> None:
    texts = [f"{one} plus {two}" for one, two in [("two", "six"), ("three", "seven"), ("five", "eight")]]
    questions = [f"what is {text}" for text in texts]
    made: dict[str, bytes] = {}

    def say(text: str) -> None:
        made[text] = client.audio.speech.create(model="nano", voice="alloy", input=text, response_format="wav").content

    threads = [threading.Thread(target=say, args=(text,)) for text in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text in questions:
        samples, _ = soundfile.read(io.BytesIO(made[text]), dtype="float32")
        expected = nano.say(text).wave.samples
        assert len(samples) == len(expected) and np.abs(samples - expected).max() < 1e-3
