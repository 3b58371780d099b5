"""A stock Realtime client of openai's, which keeps what it received, and the sound of questions."""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from openai import OpenAI

from tests.serving.conftest import QUESTION
from vita_mctp.audio import read_wave, resample
from vita_mctp.audio.formats import pcm16

RATE = 24_000
SPEECH = resample(read_wave(QUESTION), RATE).samples
SILENCE = np.random.default_rng(0).normal(0, 1e-4, RATE).astype(np.float32)


class Client:
    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[Any] = []

    def until(self, kind: str, timeout: float = 60.0) -> Any:
        """Reads up to an event of this type, which is given back."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            event = self.connection.recv()
            self.events.append(event)
            if event.type == kind:
                return event
            assert event.type != "error" or kind == "error", event
        raise AssertionError(f"no {kind} came: {self.types()}")

    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def sound(self) -> bytes:
        return b"".join(base64.b64decode(e.delta) for e in self.events if e.type == "response.output_audio.delta")

    def say(self, samples: np.ndarray, chunk: int = 480) -> None:
        """As fast as it goes."""
        for begin in range(0, len(samples), chunk):
            data = base64.b64encode(pcm16(samples[begin : begin + chunk])).decode()
            self.connection.input_audio_buffer.append(audio=data)

    def update(self, **changes: Any) -> Any:
        self.connection.session.update(session={"type": "realtime", **changes})
        return self.until("session.updated")


@contextmanager
def talking(address: str, **changes: Any) -> Iterator[Client]:
    """A session, set as told."""
    stock = OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    with stock, stock.realtime.connect(model="nano") as connection:
        client = Client(connection)
        client.until("session.created")
        if changes:
            client.update(**changes)
        yield client
