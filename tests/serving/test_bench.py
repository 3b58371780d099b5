"""The bench of a server counts as a listener would, and knows the server by its address alone."""

import asyncio
import json
import time

import numpy as np
import pytest

from tests.serving.conftest import QUESTION
from vita_mctp.bench import Machine
from vita_mctp.bench.render import _table
from vita_mctp.bench.serving import (
    Asker,
    Heard,
    _admitted,
    _client,
    _Talker,
    bench_load,
    bench_spoken,
    bench_throughput,
)

MACHINE = Machine("cpu", "float32", 1.0, 1.0)


@pytest.mark.parametrize(
    ("arrivals", "underruns"),
    [
        ([], 0),
        ([(0.1, 1.0), (1.0, 1.0), (2.0, 1.0)], 0),
        ([(0.1, 1.0), (1.2, 1.0)], 1),
        ([(0.1, 1.0), (1.2, 1.0), (2.1, 1.0)], 1),  # the player went on at 1.2
        ([(0.1, 0.5), (1.0, 0.5), (2.0, 0.5)], 2),
    ],
)
def test_underruns_are_those_of_a_player(arrivals: list[tuple[float, float]], underruns: int) -> None:
    assert Heard(arrivals=arrivals).underruns == underruns


def test_questions_are_answered_and_counted(address: str) -> None:
    asker = Asker(f"{address}/v1", QUESTION, "nano")
    load = bench_load(asker, [1, 2], 1.0, lambda: 7.0, MACHINE)
    assert [row["streams"] for row in load.rows] == [1, 2]
    for row in load.rows:
        assert row["questions"] >= 1 and row["refused"] == 0 and row["p95"] >= row["first sound p50"] > 0
    closed = bench_throughput(asker, [1, 4], 4, MACHINE)
    assert [row["questions"] for row in closed.rows] == [4, 4] and closed.rows[0]["ratio"] == 1.0


def test_a_conversation_is_measured_from_outside(address: str) -> None:
    spoken = bench_spoken(f"{address}/v1", QUESTION, "nano", "none", [1], 1, MACHINE)
    by_hand, detected = spoken.rows
    assert by_hand["answered"] == detected["answered"] == 1
    assert by_hand["end-pointing"] is None and 300 < detected["end-pointing"] < 1500
    assert by_hand["p95"] > 0 and detected["p95"] > 0


def test_a_player_begins_with_what_is_silent() -> None:
    talker = _Talker(None)
    talker._hear(np.zeros(2400, np.float32))
    assert talker.audible_at is None
    before = time.perf_counter()
    talker._hear(np.concatenate([np.zeros(2400, np.float32), np.full(10, 0.5, np.float32)]))
    assert talker.audible_at is not None and talker.audible_at - before >= 0.2


def test_the_admitted_load_ends_before_the_first_trouble() -> None:
    rows = [{"streams": n, "with underruns": bad, "refused": 0} for n, bad in ((1, 0), (2, 0), (4, 3), (8, 0))]
    assert _admitted(rows) == "None up to 2 streams."
    assert "every" in _admitted(rows[2:])


def test_a_reader_in_real_time_is_not_ahead_of_its_player(address: str) -> None:
    async def ask() -> Heard:
        async with _client() as client:
            return await Asker(f"{address}/v1", QUESTION, "nano").ask(client, real_time=True)

    heard = asyncio.run(ask())
    start = heard.arrivals[0][0]
    read = 0.0
    for arrived, seconds in heard.arrivals:
        assert read - (arrived - start) <= 0.51
        read += seconds


def test_a_server_that_refuses_everything_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> list[Heard]:
        return [Heard(refused=True)] * 2

    for name in ("_closed", "_poisson"):
        monkeypatch.setattr(f"vita_mctp.bench.serving.{name}", refuse)
    asker = Asker("http://localhost/v1", QUESTION, "nano")
    for study in (
        bench_load(asker, [4], 1.0, lambda: None, MACHINE),
        bench_throughput(asker, [1, 4], 4, MACHINE),
    ):
        json.dumps([dict(row) for row in study.rows], allow_nan=False)
        assert "refused" not in study.columns or study.column("refused") == [2]
        assert _table(study)
