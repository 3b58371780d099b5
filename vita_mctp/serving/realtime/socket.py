"""WS /v1/realtime: one session of the protocol on one WebSocket."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from vita_mctp.serving.errors import ApiError
from vita_mctp.serving.metrics import log
from vita_mctp.serving.realtime.protocol import RealtimeProtocol
from vita_mctp.serving.realtime.speaking import ENDPOINT
from vita_mctp.serving.realtime.wire import Say
from vita_mctp.serving.service import Service

_MOST_UNSENT = 32 << 20
"""Bytes that wait for a client which does not read, before it is let go."""
_MOST_UNREAD = 4 << 20
"""Bytes of events that wait to be handled; of a client that sends more, nothing is read for as long."""
_EVENT_BYTES = 100
"""That an event counts beside its text: empty ones are not free."""
_TOO_SLOW, _IDLE, _TOO_BIG = (1008, "reads too slowly"), (1001, "nothing came for long"), (1009, "event too large")


def realtime_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.websocket(ENDPOINT)
    async def realtime(socket: WebSocket, model: str | None = None) -> None:
        try:
            service.options.admit(socket.scope["headers"])
            service.options.check_model(model)
            service.gate.enter_conversation()
        except ApiError as error:
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
            await socket.send_denial_response(JSONResponse(error.body, error.status, headers))
            return
        try:
            offered = socket.scope.get("subprotocols") or []
            await socket.accept("realtime" if "realtime" in offered else None)
            await Connection(socket, service).run()
        finally:
            service.gate.leave_conversation()

    return router


class Connection:
    """Tasks of the event loop: one takes what comes, one has the protocol handle it, one sends what that says.

    Taken at once, since uvicorn reads nothing, a client's pings among it, while an event waits to be taken.
    """

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service = socket, service
        self._loop = asyncio.get_running_loop()
        self._unsent: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._unread: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._bytes = self._bytes_unread = self._replies = 0
        self._handled = asyncio.Event()
        self._reason: tuple[int, str] | None = None
        self._overfull = asyncio.Event()

    async def run(self) -> None:
        service = self._service
        protocol = RealtimeProtocol(
            service.replies, service.options, service.metrics, self._say, run=service.pool.submit
        )
        log("conversation", state="opened", id=protocol.id)
        jobs = (self._read(), self._handle(protocol), self._write(), self._overfull.wait())
        tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            protocol.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            service.gate.running -= self._replies
            log("conversation", state="closed", id=protocol.id, reason=(self._reason or (1000, "left"))[1])
            if self._reason is not None:
                with suppress(RuntimeError, WebSocketDisconnect):  # it is gone already
                    await asyncio.wait_for(self._socket.close(*self._reason), 5)

    def _say(self, event: dict[str, Any]) -> None:
        """From any thread."""
        text = json.dumps(event)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._enqueue, event["type"], text)

    def _enqueue(self, kind: str, text: str) -> None:
        self._bytes += len(text)
        self._unsent.put_nowait((kind, text))
        if self._bytes > _MOST_UNSENT:
            self._reason = _TOO_SLOW
            self._overfull.set()

    async def _read(self) -> None:
        limits = self._service.options.limits
        while True:
            try:
                message = await asyncio.wait_for(self._socket.receive(), limits.idle_seconds)
            except TimeoutError:
                self._reason = _IDLE
                return
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("text") or message.get("bytes") or ""
            if len(data) > limits.body_bytes:
                self._reason = _TOO_BIG
                return
            self._bytes_unread += len(data) + _EVENT_BYTES
            self._unread.put_nowait(data)
            while self._bytes_unread > _MOST_UNREAD:
                self._handled.clear()
                await self._handled.wait()

    async def _handle(self, protocol: RealtimeProtocol) -> None:
        while True:
            data = await self._unread.get()
            await asyncio.to_thread(protocol.receive, data)
            self._bytes_unread -= len(data) + _EVENT_BYTES
            self._handled.set()

    async def _write(self) -> None:
        gate = self._service.gate
        while True:
            kind, text = await self._unsent.get()
            self._bytes -= len(text)
            change = {Say.RESPONSE_CREATED: 1, Say.RESPONSE_DONE: -1}.get(Say(kind), 0)
            self._replies += change
            gate.running += change
            try:
                await self._socket.send_text(text)
            except (WebSocketDisconnect, RuntimeError):
                return
