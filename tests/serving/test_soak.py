"""Many come and go, some without a word: nothing is left of them, and the others' answers are those made alone.

Three minutes of eight clients, or as VITA_MCTP_SOAK_SECONDS and VITA_MCTP_SOAK_CLIENTS say; what was seen is printed.
"""

import base64
import io
import json
import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from websockets.sync.client import ClientConnection, connect

from tests.serving.conftest import QUESTION
from tests.serving.realtime_client import SILENCE, SPEECH, talking
from vita_mctp.audio.formats import encode, from_pcm16, pcm16
from vita_mctp.bench.serving import own_server
from vita_mctp.speech_lm import SpeechLM

SECONDS = float(os.environ.get("VITA_MCTP_SOAK_SECONDS", "180"))
CLIENTS = int(os.environ.get("VITA_MCTP_SOAK_CLIENTS", "8"))
SAID = "seven plus six is thirteen"
WINDOW = 10
"""Seconds for which memory is watched, in the middle and at the end."""
KINDS = {"say": 4, "transcribe": 3, "converse": 3, "leave": 1, "vanish": 1, "stall": 1, "babble": 1, "flood": 1}
"""What a client may do, and how often: a third misbehaves."""


class Crowd:
    def __init__(self, address: str, nano: SpeechLM) -> None:
        self.address, self.end = address, time.monotonic() + SECONDS
        said, self.transcript = nano.say(SAID).wave, nano.transcribe(QUESTION)
        self.expected = {form: decoded(form, encode(form, said)) for form in ("pcm", "flac")}
        self.alone = self.answer()
        self.done: dict[str, int] = {}
        self.wrong: list[str] = []

    def live(self, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self.end:
            name = chance.choices(sorted(KINDS), [KINDS[kind] for kind in sorted(KINDS)])[0]
            try:
                getattr(self, name)(chance)
            except Exception as error:  # noqa: BLE001  whatever it is, it is shown
                self.wrong.append(f"{name}: {error!r}")
            self.done[name] = self.done.get(name, 0) + 1

    def say(self, chance: random.Random) -> None:
        form = chance.choice(sorted(self.expected))
        body = {"model": "nano", "input": SAID, "response_format": form}
        made = httpx.post(f"{self.address}/v1/audio/speech", json=body, timeout=120)
        assert made.status_code == 200
        heard = decoded(form, made.content)
        assert len(heard) == len(self.expected[form]) and np.abs(heard - self.expected[form]).max() < 2e-3

    def transcribe(self, _: random.Random) -> None:
        files = {"file": ("question.wav", QUESTION.read_bytes())}
        made = httpx.post(f"{self.address}/v1/audio/transcriptions", data={"model": "nano"}, files=files, timeout=120)
        assert made.json()["text"] == self.transcript

    def converse(self, _: random.Random) -> None:
        assert self.answer() == self.alone

    def answer(self) -> tuple[str, int]:
        """What the question is answered, and the length of its sound."""
        with talking(self.address) as client:
            for sound in (SILENCE, SPEECH, SILENCE):
                client.say(sound, chunk=4800)
            done = client.until("response.done", timeout=120).response
            assert done.status == "completed"
            return done.output[0].content[0].transcript, len(client.sound())

    def leave(self, _: random.Random) -> None:
        body = {"model": "nano", "input": ". ".join([SAID] * 20), "response_format": "pcm"}
        with httpx.stream("POST", f"{self.address}/v1/audio/speech", json=body, timeout=120) as response:
            next(response.iter_bytes())

    def vanish(self, _: random.Random) -> None:
        """In the middle of an answer, without closing."""
        self.ask().socket.close()

    def stall(self, chance: random.Random) -> None:
        """Reads nothing of its answer."""
        with self.ask():
            time.sleep(chance.uniform(0, 2))

    def flood(self, _: random.Random) -> None:
        """Of sound, a minute at once, while another turn is answered."""
        with self.ask() as socket:
            sound = base64.b64encode(bytes(960_000)).decode()
            part = json.dumps({"type": "input_audio_buffer.append", "audio": sound})
            for _ in range(3):
                socket.send(part)

    def ask(self) -> ClientConnection:
        socket = connect(self.address.replace("http", "ws") + "/v1/realtime")
        sound = base64.b64encode(pcm16(SPEECH)).decode()
        for event in (
            {"type": "input_audio_buffer.append", "audio": sound},
            {"type": "input_audio_buffer.commit"},
            {"type": "response.create"},
        ):
            socket.send(json.dumps(event))
        return socket

    def babble(self, chance: random.Random) -> None:
        with connect(self.address.replace("http", "ws") + "/v1/realtime") as socket:
            for _ in range(50):
                socket.send(chance.randbytes(100))
            for _ in range(51):
                assert json.loads(socket.recv(timeout=120))["type"] in ("session.created", "error")


def decoded(form: str, data: bytes) -> np.ndarray:
    return from_pcm16(data) if form == "pcm" else soundfile.read(io.BytesIO(data), dtype="float32")[0]


def gauges(address: str) -> dict[str, float]:
    lines = [line.split() for line in httpx.get(f"{address}/metrics").text.splitlines() if not line.startswith("#")]
    return {words[0]: float(words[1]) for words in lines if len(words) == 2}


def threads_of_servers() -> int:
    """Of the processes that this one started; any other may end while it is looked at."""
    threads = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state = dict(line.split(":\t", 1) for line in path.read_text().splitlines())
            threads += int(state["Threads"]) if int(state["PPid"]) == os.getpid() else 0
    return threads


@pytest.mark.slow
def test_nothing_is_left_of_those_who_came_and_went(nano: SpeechLM) -> None:
    room = ["--max-waiting", "200", "--max-conversations", "200", "--max-real-time-factor", "inf"]
    with own_server(room) as (url, memory):
        crowd = Crowd(url.removesuffix("/v1"), nano)
        threads = [threading.Thread(target=crowd.live, args=(seed,)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        time.sleep(SECONDS / 2 - WINDOW)  # until all sizes of batches have come, and each thread has its memory
        early, before = _watched(memory), threads_of_servers()
        time.sleep(SECONDS / 2 - WINDOW)
        late = _watched(memory)
        for thread in threads:
            thread.join()
        after = threads_of_servers()
        states = ["vita_answers_running", "vita_answers_waiting", "vita_conversations"]
        for _ in range(600):
            if not any(gauges(crowd.address)[name] for name in states):
                break
            time.sleep(0.1)
        assert [gauges(crowd.address)[name] for name in states] == [0, 0, 0]
    seen = {"MiB": [round(early), round(late)], "threads": [before, after], "done": crowd.done}
    print(json.dumps(seen | {"wrong": crowd.wrong[:3]}))
    assert crowd.wrong == [] and len(crowd.done) == len(KINDS)
    assert after <= 1.1 * before
    assert late < 1.05 * early


def _watched(memory: Callable[[], float | None]) -> float:
    """MiB, the mean over `WINDOW` seconds, while the crowd is there."""
    found = []
    for _ in range(WINDOW):
        found.append(memory() or float("nan"))
        time.sleep(1)
    return statistics.fmean(found)
