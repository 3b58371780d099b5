"""A server under load, from clients that know it by its address alone, as anybody's do.

`bench_load` has questions arrive by a Poisson process, so many that a given number of answers would be playing on the
mean, and their askers listen in real time; `bench_throughput` has a given number of clients ask again as soon as they
are answered. An answer underruns when a piece of it arrives after the player has played all before it.

`bench_spoken` has conversations, spoken in real time over the Realtime socket. What is measured is what one waits for:
from the moment when the last sample of a question was sent, or, where the server finds a turn's end itself, the last
sample of the silence that it waits for, to the first sample of the answer that can be heard.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vita_mctp.audio import read_wave, resample
from vita_mctp.audio.formats import from_pcm16, pcm16
from vita_mctp.bench import Cell, Line, Machine, Panel, Row, Study
from vita_mctp.environment import require
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.progress import track
from vita_mctp.types import FloatArray

if TYPE_CHECKING:
    import httpx


_RATE = 24_000
_LEAD = 0.5
"""Seconds of sound that a client reads ahead of its player."""
_TIMEOUT = 120.0
_UNITS = dict.fromkeys(("first sound p50", "p95", "p99"), "ms")


@dataclass
class Heard:
    """One answer as its asker had it. Times in seconds since the question was sent.

    arrivals: of each piece of sound, with its seconds. refused: the server turned the question away.
    """

    refused: bool = False
    arrivals: list[tuple[float, float]] = field(default_factory=list)

    @property
    def first_sound(self) -> float | None:
        return self.arrivals[0][0] if self.arrivals else None

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.arrivals)

    @property
    def underruns(self) -> int:
        """A player that ran dry goes on as soon as more is there."""
        count, dry_at = 0, self.arrivals[0][0] if self.arrivals else 0.0
        for number, (arrived, seconds) in enumerate(self.arrivals):
            late = number > 0 and arrived > dry_at
            count += late
            dry_at = (arrived if late else dry_at) + seconds
        return count


class Asker:
    """Asks one recorded question at a server's chat endpoint. key: of its API."""

    def __init__(self, url: str, question: Path, model: str, key: str = "none") -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"}
        audio = {"data": base64.b64encode(question.read_bytes()).decode(), "format": question.suffix[1:]}
        self._body = {
            "model": model,
            "modalities": ["text", "audio"],
            "audio": {"voice": "alloy", "format": "pcm16"},
            "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]}],
            "stream": True,
        }

    async def ask(self, client: httpx.AsyncClient, real_time: bool) -> Heard:
        """real_time: reads no faster than a player plays."""
        heard, start = Heard(), time.perf_counter()
        async with client.stream("POST", self._url, json=self._body, headers=self._headers) as response:
            if response.status_code in (429, 503):
                return Heard(refused=True)
            response.raise_for_status()
            async for line in response.aiter_lines():
                if (seconds := _sound_in(line)) > 0:
                    heard.arrivals.append((time.perf_counter() - start, seconds))
                    if real_time:
                        played = time.perf_counter() - start - heard.arrivals[0][0]
                        await asyncio.sleep(max(0.0, heard.seconds - played - _LEAD))
        return heard


def _sound_in(line: str) -> float:
    """Seconds of sound in one line of an event stream."""
    if not line.startswith("data: {"):
        return 0.0
    choices = json.loads(line[6:])["choices"]
    audio = (choices[0]["delta"].get("audio") or {}) if choices else {}
    return len(base64.b64decode(audio.get("data") or "")) / 2 / _RATE


def bench_load(
    asker: Asker,
    streams: Sequence[int],
    seconds: float,
    memory: Callable[[], float | None],
    machine: Machine,
    *,
    seed: int = 0,
) -> Study:
    """seconds: that questions arrive for, at each number of streams. memory: MiB that the server holds."""
    length = _warm_up(asker)
    rows: list[dict[str, Cell]] = []
    for count in track(streams, "clients"):
        start = time.perf_counter()
        heard = asyncio.run(_poisson(asker, count / length, seconds, random.Random(seed)))
        took = time.perf_counter() - start
        answered = [one for one in heard if one.arrivals]
        rows.append(
            {
                "streams": count,
                "questions": len(heard),
                "refused": sum(one.refused for one in heard),
                **_waits([one.first_sound for one in heard]),
                "with underruns": sum(one.underruns > 0 for one in answered),
                "sound per second": sum(one.seconds for one in answered) / took,
                "memory": memory(),
            }
        )
    xs = [row["streams"] for row in rows]
    named = (("p50", "first sound p50"), ("p95", "p95"), ("p99", "p99"))
    lines = [Line(label, xs, [row[name] for row in rows]) for label, name in named]
    gaps = Line("with underruns", xs, [row["with underruns"] for row in rows])
    notes = [
        "streams: answers that would be playing on the mean; questions arrive by a Poisson process, their answers are "
        f"read in real time. An answer lasts {length:.1f} s.",
        "first sound: from the first byte of the question sent to the first byte of sound received, by a client on the "
        "same machine, which shares its cores. The question comes whole: no end-pointing is in it.",
        "with underruns: answers of which a piece came after the player had played all before it. " + _admitted(rows),
    ]
    units = _UNITS | {"memory": "MiB"}
    panels = [Panel("First sound", "streams", "ms", lines), Panel("Underruns", "streams", "answers", [gaps])]
    return Study("serve", "A server under load", rows, units, panels, notes)


def _waits(seconds: Sequence[float | None]) -> dict[str, Cell]:
    """Percentiles, in ms, of the times to the first sound, of those that heard one."""
    found = [1000 * each for each in seconds if each is not None]
    return {
        name: float(np.percentile(found, q)) if found else None for name, q in zip(_UNITS, (50, 95, 99), strict=True)
    }


def _admitted(rows: Sequence[Row]) -> str:
    """Up to where all went well."""
    well = list(takewhile(lambda row: not row["with underruns"] and not row["refused"], rows))
    return f"None up to {well[-1]['streams']} streams." if well else "Some at every number of streams."


def bench_throughput(asker: Asker, streams: Sequence[int], questions: int, machine: Machine, *, seed: int = 0) -> Study:
    """questions: asked at each number of clients, which ask again at once."""
    _warm_up(asker)
    rows: list[dict[str, Cell]] = []
    alone = 0.0
    for count in track(streams, "clients"):
        start = time.perf_counter()
        heard = asyncio.run(_closed(asker, count, questions))
        rate = sum(one.seconds for one in heard) / (time.perf_counter() - start)
        alone = alone or rate  # nothing where all were refused
        row: dict[str, Cell] = {"clients": count, "questions": len(heard), "sound per second": rate}
        rows.append(row | {"ratio": rate / alone if alone else None})
    xs = [row["clients"] for row in rows]
    line = Line("sound per second", xs, [row["sound per second"] for row in rows])
    notes = ["clients ask again as soon as they are answered, and read as fast as they can."]
    return Study(
        "throughput", "Answers batched", rows, {}, [Panel("Throughput", "clients", "s of sound a s", [line])], notes
    )


def _warm_up(asker: Asker) -> float:
    """Seconds of an answer, once the server has made some at once."""
    heard = [one.seconds for one in asyncio.run(_closed(asker, 4, 8)) if not one.refused]
    return max(0.1, sum(heard) / max(1, len(heard)))


@contextmanager
def own_server(options: Sequence[str]) -> Iterator[tuple[str, Callable[[], float | None]]]:
    """A `vita-mctp serve` with these options on a free port, as its address and what it holds in MiB."""
    command = [sys.executable, "-m", "vita_mctp.cli", "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        address = next((word for word in server.stdout.readline().split() if word.startswith("http")), None)
        if address is None:
            raise ConfigError(f"no server started; see what this says: {shlex.join(command[2:])}")
        yield address.rstrip(";"), lambda: _resident(server.pid)
    finally:
        server.terminate()
        server.wait()


def _resident(pid: int) -> float | None:
    """MiB, where the system tells."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return None
    return next((int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmRSS" in line), None)


async def _poisson(asker: Asker, rate: float, seconds: float, chance: random.Random) -> list[Heard]:
    tasks = []
    async with _client() as client:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            tasks.append(asyncio.ensure_future(asker.ask(client, real_time=True)))
            await asyncio.sleep(chance.expovariate(rate))
        return await asyncio.gather(*tasks)


async def _closed(asker: Asker, clients: int, questions: int) -> list[Heard]:
    left = iter(range(questions))

    async def one(client: Any) -> list[Heard]:
        return [await asker.ask(client, real_time=False) for _ in left]

    async with _client() as client:
        return [heard for each in await asyncio.gather(*(one(client) for _ in range(clients))) for heard in each]


def _client() -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError:
        raise MissingExtraError('clients of a server need httpx; get it with: pip install "vita-mctp[bench]"') from None
    return httpx.AsyncClient(timeout=_TIMEOUT, limits=httpx.Limits(max_connections=None))


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
            ends = [1000 * one.end_pointing for one in spoken if one.end_pointing is not None]
            row: dict[str, Cell] = {"turns end": "by hand" if by_hand else "by detection", "clients": count}
            row |= {"turns": len(spoken), "answered": sum(one.first_sound is not None for one in spoken)}
            row |= _waits([one.first_sound for one in spoken])
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
    units = _UNITS | {"end-pointing": "ms"}
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
