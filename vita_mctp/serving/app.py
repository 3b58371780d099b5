"""The server: OpenAI's endpoints for speech, over one model whose engine batches what all clients ask."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vita_mctp import __version__
from vita_mctp.errors import VitaError
from vita_mctp.serving.chat import chat_routes
from vita_mctp.serving.errors import ApiError, as_api_error, error_body
from vita_mctp.serving.metrics import CONTENT_TYPE, log
from vita_mctp.serving.options import ServerOptions
from vita_mctp.serving.realtime.socket import realtime_routes
from vita_mctp.serving.service import Service, keep_memory_flat
from vita_mctp.serving.speech import speech_routes
from vita_mctp.serving.transcriptions import transcription_routes
from vita_mctp.speech_lm import SpeechLM

_OPEN = {"/health", "/ready", "/metrics"}
"""Paths that need no key: they say nothing of anybody."""


def build_app(speech_lm: SpeechLM, options: ServerOptions) -> FastAPI:
    """The ASGI application; its `state.service` is the server's own. Sets how this process allocates."""
    keep_memory_flat()
    service = Service(speech_lm, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        log("started", model=options.model)
        yield
        log("ended")

    app = FastAPI(title="vita-mctp", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Guard, service=service)
    if options.api_keys:  # a page of any origin that knows one may ask; its browser asks first, without it
        app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(VitaError, _library_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    for routes in (speech_routes, transcription_routes, chat_routes, realtime_routes):
        app.include_router(routes(service))
    _add_pages(app, service)
    return app


def _add_pages(app: FastAPI, service: Service) -> None:
    settings = service.replies.speech_lm.settings
    started = int(time.time())
    model = {
        "id": service.options.model,
        "object": "model",
        "created": started,
        "owned_by": "vita-mctp",
        "max_question_seconds": settings.max_question_seconds,
        "max_history_turns": settings.max_history_turns,
        "follows_instructions": settings.follows_instructions,
        "sample_rate": service.replies.sample_rate,
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.options.check_model(name)
        return model

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        draining = service.gate.draining
        return JSONResponse({"status": "draining" if draining else "ready"}, 503 if draining else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


class Guard:
    """Before everything else: keys, sizes of bodies; and behind it, one line of log and one count for each request."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # the client left

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, noting)
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            self._service.metrics.requests.labels(endpoint, status).inc()
            if endpoint not in _OPEN:
                log(
                    "request",
                    endpoint=endpoint,
                    method=scope["method"],
                    status=status,
                    seconds=time.monotonic() - began,
                )

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        options = self._service.options
        try:
            if scope["path"] not in _OPEN:
                options.admit(scope["headers"])
        except ApiError as error:
            await _respond(error)(scope, receive, send)
            return
        most, got = options.limits.body_bytes, 0
        too_large = ApiError(413, f"the request has more than {most} bytes; send less", code="too_large")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            await _respond(too_large)(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:
                raise too_large
            return message

        await self._app(scope, counted, send)


def _respond(error: ApiError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


async def _library_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, VitaError)
    return _respond(as_api_error(error))


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong and where, without repeating what came."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"] if part != "body") or None
    remedy = "see OpenAI's API reference for this endpoint"
    if param is None and request.headers.get("content-type") != "application/json":
        remedy = "name its content-type, application/json"
    message = f"{param or 'the body'}: {first['msg']}; {remedy}"
    return JSONResponse(error_body(400, message, param), 400)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # raised by `Guard` while FastAPI read the body
        return _respond(error.__cause__)
    return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    log("failed", error=type(error).__name__)
    return JSONResponse(error_body(500, "the server failed; it has written down why"), 500)
