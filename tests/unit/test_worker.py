"""The worker that owns an engine, with a runner that counts; and what decoding is without torch."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.worker import EngineWorker
from vita_mctp.errors import ConfigError
from vita_mctp.types import StopReason


class Counter:
    """Counts on from the prompt's last id, some tokens a step; steps: the requests' numbers in each."""

    vocab_size, max_positions, num_blocks = 1000, 1000, 0

    def __init__(self, per_step: Callable[[int], int] = lambda step: 1, seconds: float = 0.002) -> None:
        self.steps: list[list[int]] = []
        self.opened = 0
        self.per_step, self.seconds = per_step, seconds
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def open(self, request: Request) -> None:
        self.opened += 1

    def run(self, states):
        self.go.wait(10)
        time.sleep(self.seconds)
        self.steps.append([state.request.prompt_ids[0] for state in states])
        if self.error is not None:
            raise self.error
        many = self.per_step(len(self.steps))
        return [[(state.ids[-1] + 1 + i, 0) for i in range(many)] for state in states]


def ask(first: int, tokens: int = 10, name: str = "") -> Request:
    return Request((first,), MODES["vanilla"], tokens, id=name)


def ids(events: Iterator) -> list[int]:
    return [event.id for event in events]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "vita-mctp engine"}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = engine_threads()
    yield
    wait_for(lambda: engine_threads() <= before)


def both_waiting(worker: EngineWorker, runner: Counter, *requests: Request) -> list:
    """Streams of requests that are all queued before the first of them goes on."""
    runner.go.clear()
    with ThreadPoolExecutor(len(requests)) as pool:
        firsts = [pool.submit(next, stream := worker.stream(request)) and stream for request in requests]
        wait_for(lambda: len(worker._outboxes) == len(requests))
        runner.go.set()
    return firsts


def test_streams_of_several_threads_share_each_step() -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    runner.go.clear()
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(lambda first: ids(worker.stream(ask(first))), first) for first in (100, 200)]
        wait_for(lambda: len(worker._outboxes) == 2)
        runner.go.set()
        assert [answer.result(10) for answer in made] == [list(range(101, 111)), list(range(201, 211))]
    assert sum(len(step) == 2 for step in runner.steps) >= 9


@pytest.mark.parametrize("per_step", [lambda step: 11, lambda step: 3 * (step % 2)])
def test_a_step_may_give_none_or_a_whole_cycle_and_what_is_behind_the_end_is_dropped(per_step) -> None:
    events = list(EngineWorker(Engine(Counter(per_step))).stream(ask(100, 16)))
    assert ids(events) == list(range(101, 117))
    assert [event.ends for event in events] == [None] * 15 + [StopReason.LENGTH]
    assert [event.index for event in events] == list(range(16))


def test_a_request_is_refused_at_once_and_opened_only_once() -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    with pytest.raises(ConfigError):
        worker.stream(ask(1000))
    events = worker.stream(ask(1))
    assert runner.opened == 0
    assert len(list(events)) == 10 and runner.opened == 1


def test_closing_a_stream_takes_it_out_of_the_steps() -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    one, other = both_waiting(worker, runner, ask(100, 900), ask(200, 60))
    one.close()
    rest = ids(other)
    assert rest[-1] == 260 and next(one, None) is None
    assert sum(100 in step for step in runner.steps) < 50 and [200] in runner.steps


def test_a_cancelled_stream_ends_and_its_name_may_be_used_again_at_once() -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    one, other = both_waiting(worker, runner, ask(100, 900, "one"), ask(200, 40, "other"))
    worker.cancel("one")
    worker.cancel("unknown")
    again = worker.stream(ask(300, 5, "one"))
    assert ids(again) == list(range(301, 306))
    assert len(ids(one)) < 800 and ids(other)[-1] == 240


def test_an_error_reaches_every_client_and_the_worker_goes_on() -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    streams = both_waiting(worker, runner, ask(100, 900), ask(200, 900))
    runner.error = error = RuntimeError("the device has gone")
    for stream in streams:
        with pytest.raises(RuntimeError) as raised:
            list(stream)
        assert raised.value is error
    runner.error = None
    assert ids(worker.stream(ask(300))) == list(range(301, 311))


def test_a_request_that_cannot_be_opened_hurts_only_those_who_wait_now(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    with monkeypatch.context() as patch:
        patch.setattr(runner, "open", lambda request: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(worker.stream(ask(100)))
    assert len(list(worker.stream(ask(100)))) == 10


def test_close_ends_every_stream_and_the_worker_goes_on() -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    streams = both_waiting(worker, runner, ask(100, 900), ask(200, 900))
    worker.close()
    assert all(len(ids(stream)) < 800 for stream in streams)
    assert ids(worker.stream(ask(300))) == list(range(301, 311))


def test_nothing_is_left_of_a_worker_that_is_dropped() -> None:
    runner = Counter()
    worker = EngineWorker(Engine(runner))
    events = worker.stream(ask(100, 900))
    next(events)
    left = weakref.ref(worker)
    del worker, events
    wait_for(lambda: left() is None or gc.collect() < 0)


def test_a_program_may_end_in_the_middle_of_an_answer() -> None:
    program = """
from tests.unit.test_worker import Counter, Engine, EngineWorker, ask
events = EngineWorker(Engine(Counter())).stream(ask(100, 900))
print(next(events).id)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "101\n", "")


def test_a_program_waits_for_the_thread_that_frees_the_model() -> None:
    """Whoever holds it last: here the thread, in a step when the stream was closed and the worker dropped."""
    program = """
import time
from tests.unit.test_worker import Counter, Engine, EngineWorker, ask
class Slow(Counter):
    def __del__(self):
        time.sleep(0.5)
        print("freed")
def main():
    events = EngineWorker(Engine(Slow(seconds=0.1))).stream(ask(100, 900))
    next(events)
    events.close()
main()
time.sleep(0.3)  # the thread is freeing by now
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "freed\n", "")


def test_the_core_needs_no_torch() -> None:
    program = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from vita_mctp.decoding import engine, modes, options, request, runners, sampling, scheduler, worker
class Runner:
    vocab_size, max_positions, num_blocks = 9, 50, 2
    def open(self, request): return None
    def run(self, states):
        import numpy as np
        return [[(state.sampler.choose(np.eye(9)[state.ids[-1] - 8], state.ids), 0)] for state in states]
asked = request.Request((1,), modes.MODES["boost"], 5, sampling.SamplingParams(0.0001))
print([event.id for event in worker.EngineWorker(engine.Engine(Runner())).stream(asked)])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.stderr, result.stdout) == ("", "[2, 3, 4, 5, 6]\n")
