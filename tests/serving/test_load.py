"""Answers are refused before they would stutter, by what the answers being made cost."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import numpy as np
import pytest

from vita_mctp.answer import AnswerEvent
from vita_mctp.serving.answers import Gate
from vita_mctp.serving.errors import ApiError
from vita_mctp.serving.load import Load
from vita_mctp.serving.metrics import Metrics
from vita_mctp.serving.options import Limits
from vita_mctp.types import TextDelta, WaveChunk

SECOND = WaveChunk(np.zeros(24_000, np.float32), 24_000, 0, False)


class Machine:
    """One that makes a second of sound for each of `n` answers in `step + row * n` seconds of its clock."""

    def __init__(self, step: float, row: float) -> None:
        self.time, self.step, self.row = 0.0, step, row
        self.load = Load(lambda: self.time)

    def make(self, answers: int, seconds: int = 4) -> None:
        def events() -> Iterator[AnswerEvent]:
            yield TextDelta("five")
            yield from [SECOND] * seconds

        streams = [self.load.measured(events()) for _ in range(answers)]
        for stream in streams:
            next(stream)
        for _ in range(seconds):
            self.time += self.step + self.row * answers
            for stream in streams:
                next(stream)
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("step", "row"), [(0.5, 0.01), (0.1, 0.1), (0.0, 0.3)])
def test_what_more_answers_would_cost_is_told_from_fewer(step: float, row: float) -> None:
    machine = Machine(step, row)
    assert machine.load.factor(8) == 0.0  # nobody knows yet
    for answers in (4, 1):
        machine.make(answers)
    for answers in (1, 4, 8, 20):
        assert machine.load.factor(answers) == pytest.approx(step + row * answers)


def test_a_machine_that_has_become_slower_is_found_out() -> None:
    machine = Machine(0.1, 0.02)
    machine.make(4, 60)
    machine.step = 0.4
    machine.make(4, 60)
    assert machine.load.factor(4) == pytest.approx(0.48, rel=0.05)


def test_who_would_make_the_others_stutter_is_refused_and_the_first_never() -> None:
    machine = Machine(0.1, 0.1)
    for answers in (1, 4, 1, 4):
        machine.make(answers, 50)
    metrics = Metrics()
    gate = Gate(Limits(running=16, real_time_factor=0.9), metrics, machine.load)

    async def crowd() -> ApiError:
        async with AsyncExitStack() as answers:
            for _ in range(8):
                await answers.enter_async_context(gate.answer())
            with pytest.raises(ApiError) as refused:
                await answers.enter_async_context(gate.answer())
            with pytest.raises(ApiError):
                gate.enter_conversation()
        assert gate.running == 0
        return refused.value

    refused = asyncio.run(crowd())
    assert (refused.status, refused.code) == (429, "load") and refused.retry_after
    assert 'vita_refused_total{reason="load"} 2.0' in metrics.text().decode()
    machine.step = 3.0
    machine.make(1, 200)
    gate.enter_conversation()

    async def alone() -> None:
        async with gate.answer():
            pass

    asyncio.run(alone())


def test_there_is_no_such_limit_where_none_is_wanted() -> None:
    machine = Machine(3.0, 1.0)
    machine.make(2)
    gate = Gate(Limits(running=2, real_time_factor=float("inf")), Metrics(), machine.load)

    async def both() -> int:
        async with gate.answer(), gate.answer():
            return gate.running

    assert asyncio.run(both()) == 2
