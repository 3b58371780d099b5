"""Many come and go, some without a word: nothing is left of them, and the others' answers are those made alone."""

import base64
import json
import os
import random
import threading
import time

import httpx
import pytest
from websockets.sync.client import connect

from tests.serving.conftest import QUESTION
from tests.serving.realtime_client import SILENCE, SPEECH, talking
from vita_mctp.audio.formats import encode, pcm16
from vita_mctp.bench.serving import own_server
from vita_mctp.speech_lm import SpeechLM

SECONDS = float(os.environ.get("VITA_MCTP_SOAK_SECONDS", "180"))
CLIENTS = 8
SAID = "seven plus six is thirteen"


class Crowd:
    def __init__(self, address: str, nano: SpeechLM) -> None:
        self.address, self.end = address, time.monotonic() + SECONDS
        self.expected = {form: encode(form, nano.say(SAID).wave) for form in ("pcm", "flac")}
        self.transcript = nano.transcribe(QUESTION)
        self.done: dict[str, int] = {}
        self.wrong: list[str] = []

    def live(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.end:
            name = chance.choice(["say", "transcribe", "converse", "leave", "vanish", "babble"])
            try:
                getattr(self, name)(chance)
            except Exception as error:  # noqa: BLE001  whatever it is, it is shown
                self.wrong.append(f"{name}: {error!r}")
            self.done[name] = self.done.get(name, 0) + 1

    def say(self, chance: random.Random) -> None:
        form = chance.choice(sorted(self.expected))
        body = {"model": "nano", "input": SAID, "response_format": form}
        made = httpx.post(f"{self.address}/v1/audio/speech", json=body, timeout=120)
        assert made.status_code == 200 and len(made.content) == len(self.expected[form])

    def transcribe(self, _: random.Random) -> None:
        files = {"file": ("question.wav", QUESTION.read_bytes())}
        made = httpx.post(f"{self.address}/v1/audio/transcriptions", data={"model": "nano"}, files=files, timeout=120)
        assert made.json()["text"] == self.transcript

    def converse(self, _: random.Random) -> None:
        with talking(self.address) as client:
            for sound in (SILENCE, SPEECH, SILENCE):
                client.say(sound, chunk=4800)
            assert client.until("response.done", timeout=120).response.status == "completed"

    def leave(self, _: random.Random) -> None:
        body = {"model": "nano", "input": ". ".join([SAID] * 20), "response_format": "pcm"}
        with httpx.stream("POST", f"{self.address}/v1/audio/speech", json=body, timeout=120) as response:
            next(response.iter_bytes())

    def vanish(self, _: random.Random) -> None:
        """In the middle of an answer, without closing."""
        socket = connect(self.address.replace("http", "ws") + "/v1/realtime")
        sound = base64.b64encode(pcm16(SPEECH)).decode()
        for event in (
            {"type": "input_audio_buffer.append", "audio": sound},
            {"type": "input_audio_buffer.commit"},
            {"type": "response.create"},
        ):
            socket.send(json.dumps(event))
        socket.socket.close()

    def babble(self, chance: random.Random) -> None:
        with connect(self.address.replace("http", "ws") + "/v1/realtime") as socket:
            for _ in range(50):
                socket.send(chance.randbytes(100))
            for _ in range(51):
                assert json.loads(socket.recv(timeout=120))["type"] in ("session.created", "error")


def gauges(address: str) -> dict[str, float]:
    lines = [line.split() for line in httpx.get(f"{address}/metrics").text.splitlines() if not line.startswith("#")]
    return {words[0]: float(words[1]) for words in lines if len(words) == 2}


@pytest.mark.slow
def test_nothing_is_left_of_those_who_came_and_went(nano: SpeechLM) -> None:
    with own_server(["--max-waiting", "100"]) as (url, memory):
        crowd = Crowd(url.removesuffix("/v1"), nano)
        threads = [threading.Thread(target=crowd.live, args=(seed,)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 2)  # until all sizes of batches have come, and each thread has its memory
        early = memory()
        for thread in threads:
            thread.join()
        late = memory()
        states = ["vita_answers_running", "vita_answers_waiting", "vita_conversations"]
        for _ in range(100):
            if not any(gauges(crowd.address)[name] for name in states):
                break
            time.sleep(0.1)
        assert [gauges(crowd.address)[name] for name in states] == [0, 0, 0]
    assert crowd.wrong == [] and len(crowd.done) == 6
    assert early is not None and late is not None and late < early * 1.05
