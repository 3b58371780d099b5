"""The configuration of docs/serving.md, run by Ray Serve: two replicas, stock clients, conversations that stay.

Wants the extra `cluster`; takes half a minute, and no other Ray on this machine.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from openai import OpenAI
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.serving.realtime_client import SPEECH, talking

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of what `serve run` serves."""
    pytest.importorskip("ray")
    config = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = config["http_options"]["port"] = free.getsockname()[1]
    config["applications"][0]["args"]["limits"] = {"conversations": 1}
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # of a short name: sockets lie in it
    (folder / "speech.yaml").write_text(yaml.safe_dump(config))
    ours = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    paths = {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    command = [Path(sys.executable).with_name("serve"), "run", folder / "speech.yaml"]
    with (folder / "log").open("w") as log:
        serve = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | ours | paths,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while not _serves(address):
            assert serve.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        serve.send_signal(signal.SIGINT)
        serve.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _serves(address: str) -> bool:
    try:
        return httpx.get(f"{address}/v1/models", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_two_replicas_serve_and_who_converses_stays_with_one(cluster: str) -> None:
    chat = {"model": "nano", "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    asked = {"role": "user", "content": "what is two plus three"}

    def ask(session: str, *earlier: dict[str, object]) -> str:
        with OpenAI(base_url=f"{cluster}/v1", api_key="any", max_retries=0) as client:
            made = client.chat.completions.create(
                **chat, messages=[*earlier, asked], extra_headers={"x-session-id": session}
            )
        answer = made.choices[0].message.audio
        assert answer is not None and "five" in answer.transcript
        return answer.id

    def elsewhere() -> int:
        """Of 16 sessions, those whose replica does not know what anna was answered."""
        unknown = 0
        for number in range(16):
            try:
                ask(f"session {number}", before)
            except openai.BadRequestError as error:
                assert error.code == "no_audio"
                unknown += 1
        return unknown

    before, end = {"role": "assistant", "audio": {"id": ask("anna")}}, time.monotonic() + 120
    while not elsewhere():  # the first replica serves before the second is up
        assert time.monotonic() < end
        time.sleep(1)
    before = {"role": "assistant", "audio": {"id": ask("anna")}}
    for _ in range(3):
        ask("anna", before)
    assert 0 < elsewhere() < 16

    with talking(cluster, audio={"input": {"turn_detection": None}}) as client:
        items = []
        for _ in range(2):
            client.say(SPEECH)
            client.connection.input_audio_buffer.commit()
            client.connection.response.create()
            done = client.until("response.done").response
            assert done.status == "completed" and len(client.sound()) > 24_000
            items.append(done.output[0].id)
        client.connection.conversation.item.retrieve(item_id=items[0])
        assert client.until("conversation.item.retrieved").item.id == items[0]
        refused = _refused(cluster)
    assert refused.response.status_code == 429 and refused.response.headers["Retry-After"]


def _refused(address: str) -> InvalidStatus:
    """Why no more conversations than the replicas hold are opened; a new one may meet a full replica first."""
    refusals = []
    with ExitStack() as held:
        for _ in range(20):
            try:
                held.enter_context(connect(f"{address.replace('http', 'ws')}/v1/realtime"))
            except InvalidStatus as error:
                refusals.append(error)
    assert len(refusals) >= 19, "one conversation of two is open before"
    return refusals[0]
