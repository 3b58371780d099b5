"""Headless Chromium whose microphone plays a file, driven over its own debugging protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream",
    "--remote-debugging-port=0",
]  # fmt: skip


class Page:
    def __init__(self, socket: Any) -> None:
        self._socket, self._ids = socket, itertools.count()
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, code: str) -> Any:
        """The value of an expression, awaited; the browser takes it for something that the visitor pressed."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        result = self.call("Runtime.evaluate", expression=code, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, condition: str, seconds: float = 60.0) -> Any:
        """The expression's value, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(condition)):
            assert time.monotonic() < end, f"never: {condition}; the page says: {self.run('document.body.innerText')}"
            time.sleep(0.1)
        return value

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(address: str, profile: Path, microphone: Path | None, *more: str) -> Iterator[Page]:
    """A page at this address. microphone: the file that it hears, again and again; None: the visitor is not asked."""
    assert BINARY is not None
    heard = [] if microphone is None else [
        "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"
    ]  # fmt: skip
    command = [BINARY, *FLAGS, f"--user-data-dir={profile}", *heard, *more, "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_target(profile), max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.call("Page.navigate", url=address)
            page.until("document.querySelector('#mode')?.options.length > 0")
            yield page
    finally:
        process.terminate()
        process.wait(20)


def _target(profile: Path, seconds: float = 60.0) -> str:
    end, port_file = time.monotonic() + seconds, profile / "DevToolsActivePort"
    while time.monotonic() < end:
        if port_file.exists() and (lines := port_file.read_text().split()):
            found = httpx.get(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10).json()
            pages = [target["webSocketDebuggerUrl"] for target in found if target["type"] == "page"]
            if pages:
                return str(pages[0])
        time.sleep(0.1)
    raise AssertionError("chromium did not start")
