"""A server in this process, from its socket to its last answer."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from vita_mctp.errors import ConfigError
from vita_mctp.serving.service import Service

_BACKLOG = 512
_FRAME_BYTES = 4 << 20
"""Of one WebSocket message."""


_INTERRUPTED_SECONDS = 1


class DrainingServer(uvicorn.Server):
    """At the first signal nobody new is let in, and answers are finished; the second one ends it.

    Ctrl-C gives them a second: somebody waits for the prompt.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or self._service.gate.draining:
            super().handle_exit(sig, frame)
        else:
            self._service.gate.draining = True
            if sig == signal.SIGINT:
                self.config.timeout_graceful_shutdown = _INTERRUPTED_SECONDS
            seconds = _INTERRUPTED_SECONDS if sig == signal.SIGINT else self._service.options.limits.drain_seconds
            self._loop.call_soon_threadsafe(self._start_drain, seconds)

    def _start_drain(self, seconds: float) -> None:
        self._drain = asyncio.ensure_future(self._end(seconds))

    async def _end(self, seconds: float) -> None:
        await self._service.gate.drain(seconds)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError when it cannot listen there. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}; give another --port") from None


def new_server(app: FastAPI, certificate: str | None = None, key: str | None = None) -> DrainingServer:
    """certificate, key: PEM files, for https and wss."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=_FRAME_BYTES,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=5,
    )
    return DrainingServer(config, service)


def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    certificate: str | None = None,
    key: str | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves until a signal ends it. started: is called with the address. Raises ConfigError."""
    with listen(host, port) as listening:
        bound = listening.getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        started(f"{'https' if certificate else 'http'}://{shown}:{bound[1]}")
        server = new_server(app, certificate, key)
        server.run(sockets=[listening])
