"""A server of nano on a free port, and stock clients of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from openai import OpenAI

from vita_mctp.serving.app import build_app
from vita_mctp.serving.options import Limits, ServerOptions
from vita_mctp.serving.run import listen, new_server
from vita_mctp.serving.service import Service
from vita_mctp.speech_lm import SpeechLM

QUESTION = Path(__file__).parents[2] / "demo" / "examples" / "question.wav"
ANSWER = "thirteen"
HOWEVER_SLOW = Limits(real_time_factor=float("inf"))


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of a server in this process."""
    with listen("127.0.0.1", 0) as listening:
        server = new_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def served(speech_lm: SpeechLM, options: ServerOptions | None = None) -> Iterator[tuple[str, Service]]:
    """The address of a server of the endpoints, and what it is made of."""
    app = build_app(speech_lm, options or ServerOptions(limits=HOWEVER_SLOW))
    with serving(app) as address:
        yield address, app.state.service


@pytest.fixture(scope="session")
def nano() -> SpeechLM:
    return SpeechLM.from_pretrained("nano")


@pytest.fixture(scope="session")
def server(nano: SpeechLM) -> Iterator[tuple[str, Service]]:
    with served(nano) as running:
        yield running


@pytest.fixture(scope="session")
def address(server: tuple[str, Service]) -> str:
    return server[0]


@pytest.fixture
def client(address: str) -> Iterator[OpenAI]:
    """The stock client: nothing but its base_url is ours."""
    with OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as stock:
        yield stock


@pytest.fixture
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as plain:
        yield plain
