"""Every block of docs/serving.md does what it shows."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from vita_mctp.cli import parse
from vita_mctp.cli.serve import _named
from vita_mctp.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
COMMANDS = [line.strip() for line in re.findall(r"^    (vita-mctp .*)$", PAGE, re.MULTILINE)]


def test_the_clients_code_runs(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        code = block.replace("http://127.0.0.1:8000", address).replace("speech.wav", str(tmp_path / "speech.wav"))
        exec(compile(code, "serving.md", "exec"), names)
    assert (tmp_path / "speech.wav").stat().st_size > 10_000
    printed = capsys.readouterr().out
    heard, asked, live = printed.strip().split("\n")
    assert heard == "what is eight plus twelve" and "twenty" in asked and "twenty" in live


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_known(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "vita-mctp" and parse(arguments)


def test_voices_are_named() -> None:
    assert not parse(["serve"]).params["voice"]
    assert parse(["serve", "--voice", "anna=a.wav", "Ben=b.wav"]).params["voice"] == ["anna=a.wav", "Ben=b.wav"]
    assert [*_named(["Ben=b=c.wav"])] == [("ben", "b=c.wav")]
    with pytest.raises(ConfigError, match="NAME=FILE"):
        list(_named(["anna"]))


def test_served_nano_answers_logs_no_content_and_ends_when_told() -> None:
    command = [sys.executable, "-m", "vita_mctp.cli", "serve", "--port", "0"]
    environment = {**os.environ, "VITA_MCTP_API_KEY": "key"}
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    assert server.stdout is not None
    shown = server.stdout.readline()
    address = shown.partition("at ")[2].partition(";")[0]
    try:
        assert httpx.get(f"{address}/models").status_code == 401
        model = httpx.get(f"{address}/models", headers={"Authorization": "Bearer key"}).json()["data"][0]
        assert model["id"] == "nano"
        secret = "a text that is nobody's business"
        body = {"model": model["id"], "input": secret}
        made = httpx.post(f"{address}/audio/speech", json=body, headers={"Authorization": "Bearer key"}, timeout=60)
        assert made.status_code == 200
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0
    assert '"endpoint": "/v1/audio/speech"' in log
    assert not any(word in log for word in ("nobody", "business", "Bearer"))
