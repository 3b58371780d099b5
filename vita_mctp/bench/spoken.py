"""Conversations with a server as somebody outside has them: spoken in real time over the Realtime socket.

What is measured is what one waits for: from the moment when the last sample of a question was sent, or, where the
server finds a turn's end itself, the last sample of the silence that it waits for, to the first sample of the answer
that can be heard.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vita_mctp.audio import read_wave, resample
from vita_mctp.audio.formats import from_pcm16, pcm16
from vita_mctp.bench import Cell, Line, Machine, Panel, Study
from vita_mctp.environment import require
from vita_mctp.types import FloatArray

_RATE = 24_000
_CHUNK = _RATE // 50
"""20 ms, as a browser sends."""
_AUDIBLE = 10 ** (-50 / 20)
_NOISE = 1e-4
_PAUSE = 0.3
"""Seconds between an answer's last event and the next question."""


@dataclass
class Spoken:
    """One turn. first_sound: seconds, None where nothing could be heard; end_pointing: those that were waited for."""

    first_sound: float | None
    end_pointing: float | None


@dataclass
class _Talker:
    """One connection: what was sent when, and what came when."""

    socket: Any
    sent: list[float] = field(default_factory=list)
    heard: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    audible_at: float | None = None
    end_ms: int | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def forget(self) -> None:
        """Of the answer before."""
        self.heard, self.audible_at, self.end_ms = self.heard[:0], None, None
        self.done.clear()

    async def say(self, kind: str, **body: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **body}))

    async def stream(self, samples: FloatArray) -> None:
        """In real time."""
        start = time.perf_counter()
        for i, begin in enumerate(range(0, len(samples), _CHUNK)):
            await asyncio.sleep(max(0.0, start + (i + 1) * _CHUNK / _RATE - time.perf_counter()))
            data = base64.b64encode(pcm16(samples[begin : begin + _CHUNK])).decode()
            await self.say("input_audio_buffer.append", audio=data)
            self.sent.append(time.perf_counter())

    async def listen(self) -> None:
        async for message in self.socket:
            event = json.loads(message)
            if event["type"] == "response.output_audio.delta":
                self._hear(from_pcm16(base64.b64decode(event["delta"])))
            elif event["type"] == "input_audio_buffer.speech_stopped":
                self.end_ms = event["audio_end_ms"]
            elif event["type"] == "response.done":
                self.done.set()

    def _hear(self, samples: FloatArray) -> None:
        """A player begins with the first sample; what it plays before the first loud one is waited for as well."""
        before = len(self.heard)
        self.heard = np.concatenate([self.heard, samples])
        loud = np.flatnonzero(np.abs(samples) >= _AUDIBLE)
        if self.audible_at is None and len(loud):
            self.audible_at = time.perf_counter() + (before + int(loud[0])) / _RATE


def bench_spoken(
    url: str,
    question: Path,
    model: str,
    key: str,
    clients: Sequence[int],
    turns: int,
    machine: Machine,
    *,
    seed: int = 0,
) -> Study:
    """turns: of each client, at each number of clients; ended by hand, and by the server's detection of speech."""
    require("a conversation", "serve", "websockets")
    samples = resample(read_wave(question), _RATE).samples
    samples = np.pad(samples, (-len(samples) % _CHUNK, 0))
    rows: list[dict[str, Cell]] = []
    for by_hand in (True, False):
        for count in clients:
            spoken = asyncio.run(_converse(url, model, key, samples, count, turns, by_hand, seed))
            waits = [1000 * one.first_sound for one in spoken if one.first_sound is not None] or [float("nan")]
            p50, p95, p99 = (float(np.percentile(waits, q)) for q in (50, 95, 99))
            ends = [1000 * one.end_pointing for one in spoken if one.end_pointing is not None]
            row: dict[str, Cell] = {"turns end": "by hand" if by_hand else "by detection", "clients": count}
            row |= {"turns": len(spoken), "answered": sum(one.first_sound is not None for one in spoken)}
            row |= {"first sound p50": p50, "p95": p95, "p99": p99}
            rows.append(row | {"end-pointing": float(np.median(ends)) if ends else None})
    lines = [
        Line(f"{kind}, {name}", list(clients), [row[column] for row in rows if row["turns end"] == kind])
        for kind in ("by hand", "by detection")
        for name, column in (("p50", "first sound p50"), ("p95", "p95"))
    ]
    notes = [
        "first sound: from the last sample of the question sent, by a client on the same machine that speaks and hears "
        "in real time, to the first audible sample received (above -50 dB of full scale, silence before it included).",
        "end-pointing: from the question's last sample to the sample with which the server takes the turn to be over; "
        "not part of the first sound.",
    ]
    units = {"first sound p50": "ms", "p95": "ms", "p99": "ms", "end-pointing": "ms"}
    return Study("spoken", "Spoken to", rows, units, [Panel("First sound", "clients", "ms", lines)], notes)


async def _converse(
    url: str, model: str, key: str, question: FloatArray, clients: int, turns: int, by_hand: bool, seed: int
) -> list[Spoken]:
    """Clients begin within a question's length of each other."""
    apart = np.random.default_rng(seed).uniform(0, len(question) / _RATE, clients)

    async def one(delay: float) -> list[Spoken]:
        from websockets.asyncio.client import connect

        address = f"{url.rstrip('/').replace('http', 'ws', 1)}/realtime?model={model}"
        async with connect(address, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            talker = _Talker(socket)
            listening = asyncio.ensure_future(talker.listen())
            detection = None if by_hand else {"type": "server_vad"}
            changes = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
            await talker.say("session.update", session=changes)
            await asyncio.sleep(delay)
            try:
                return [await _ask(talker, question, by_hand) for _ in range(turns)]
            finally:
                listening.cancel()

    return [turn for each in await asyncio.gather(*(one(delay) for delay in apart)) for turn in each]


async def _ask(talker: _Talker, question: FloatArray, by_hand: bool) -> Spoken:
    talker.forget()
    await talker.stream(question)
    asked, position = talker.sent[-1], len(talker.sent) * _CHUNK
    if by_hand:
        await talker.say("input_audio_buffer.commit")
        await talker.say("response.create")
        await talker.done.wait()
    else:
        quiet = np.random.default_rng(0).normal(0, _NOISE, _CHUNK).astype(np.float32)
        while not talker.done.is_set():
            await talker.stream(quiet)
    ended = None
    if talker.end_ms is not None:
        end = talker.end_ms * _RATE // 1000
        ended = (end - position) / _RATE
        asked = talker.sent[min(end // _CHUNK, len(talker.sent) - 1)]
    first = None if talker.audible_at is None else talker.audible_at - asked
    await (asyncio.sleep(_PAUSE) if by_hand else talker.stream(np.zeros(int(_PAUSE * _RATE), np.float32)))
    return Spoken(first, ended)
