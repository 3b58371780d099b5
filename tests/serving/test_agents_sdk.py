"""OpenAI's Agents SDK for JavaScript, unchanged, converses with nano over a WebSocket, as docs/serving.md shows too.

Wants Node and `npm install -g @openai/agents-realtime`.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.serving.realtime_client import SILENCE, SPEECH
from vita_mctp.audio.formats import pcm16

SCRIPT = Path(__file__).with_name("agents_realtime.mjs")
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
PACKAGE = "@openai/agents-realtime"


@pytest.fixture(scope="module")
def node_path() -> str:
    """Where npm keeps packages that are installed for all."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no Node here; get Debian's nodejs and npm")
    folder = (
        os.environ.get("NODE_PATH")
        or subprocess.run(["npm", "root", "-g"], capture_output=True, text=True, check=True).stdout.strip()
    )
    if not (Path(folder) / PACKAGE).is_dir():
        pytest.skip(f"{PACKAGE} is not in {folder}; get it with: npm install -g {PACKAGE}")
    return folder


def test_the_agents_sdk_converses_is_interrupted_and_truncates(address: str, node_path: str, tmp_path: Path) -> None:
    (tmp_path / "question.pcm").write_bytes(pcm16(SPEECH))
    url = f"{address.replace('http', 'ws', 1)}/v1/realtime?model=nano"
    command = ["node", str(SCRIPT), url, str(tmp_path / "question.pcm")]
    made = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "NODE_PATH": node_path}
    )
    assert made.returncode == 0, made.stderr
    seen = json.loads(made.stdout)
    assert seen["errors"] == []
    assert seen["first"] > 24_000 and seen["audio"] > seen["first"]
    assert seen["interrupted"] >= 1 and seen["truncated"] >= 1
    assert seen["statuses"][0] == seen["statuses"][2] == "completed"
    assert seen["texts"][0][0] == "user" and "eight" in seen["texts"][1][1]  # as far as it was played


def test_the_page_s_javascript_runs(address: str, node_path: str, tmp_path: Path) -> None:
    """With a player that counts, and a question as the samples."""
    (tmp_path / "node_modules").symlink_to(node_path)
    (tmp_path / "question.pcm").write_bytes(pcm16(np.concatenate([SPEECH, SILENCE])))
    block = re.findall(r"^```js\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    block = block.replace("ws://127.0.0.1:8000", address.replace("http", "ws", 1))
    before = """import { readFileSync } from 'node:fs';
let played = 0;
const player = { push: (data) => { played += data.byteLength; }, clear: () => {} };
const samples = new Uint8Array(readFileSync('question.pcm')).buffer;
"""
    after = """transport.on('*', (event) => {
  if (event.type !== 'response.done') return;
  console.log(JSON.stringify({ played, status: event.response.status }));
  process.exit(0);
});
"""
    (tmp_path / "page.mjs").write_text(before + block + after)
    made = subprocess.run(["node", "page.mjs"], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == {"played": pytest.approx(2 * 24_000 * 1.5, rel=0.6), "status": "completed"}
