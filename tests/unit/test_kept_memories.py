"""Requests that go on from answers that are over: the same tokens, and nothing read twice but what a chain needs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners import runner_for
from vita_mctp.decoding.runners.cycles import CycleRunner, Read
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.sampling import SamplingParams

BLOCKS = 4
PROMPT = tuple(range(3, 43))
NEXT = (7, 1, 9, 2, 8)
MODES = ["1,4", "2,3", "verified", "vanilla", "1,4,4,2"]


@pytest.fixture(scope="module", params=["onnx", "eager"])
def runner(make_tiny_model, request: pytest.FixtureRequest) -> CycleRunner:
    model = make_tiny_model(seed=4, num_blocks=BLOCKS)
    return runner_for(model.float()) if request.param == "onnx" else EagerRunner(model)


class Counter:
    """Counts the tokens that backbone passes read."""

    def __init__(self, runner: CycleRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens, real = 0, runner.levels.backbone

        def counted(reads: Sequence[Read]) -> object:
            self.tokens += sum(len(read.ids) for read in reads)
            return real(reads)

        monkeypatch.setattr(runner.levels, "backbone", counted)


def steps(engine: Engine, request: Request) -> Iterator[list[int]]:
    engine.add(request)
    while len(engine):
        yield [event.id for event in engine.step()[request.id]]


def answer(engine: Engine, request: Request) -> tuple[int, ...]:
    return tuple(token for made in steps(engine, request) for token in made)


def ask(prompt: tuple[int, ...], mode: str, **sampling: float) -> Request:
    return Request(prompt, parse_mode(mode, BLOCKS), 24, SamplingParams(**sampling), id="one")


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.8, "seed": 3}])
@pytest.mark.parametrize("mode", MODES)
def test_the_next_turn_reads_what_is_new(
    runner: CycleRunner, monkeypatch: pytest.MonkeyPatch, mode: str, sampling: dict[str, float]
) -> None:
    keeping, plain = Engine(runner, kept_tokens=1000), Engine(runner)
    first = ask(PROMPT, mode, **sampling)
    made = answer(keeping, first)
    for heard in (len(made), 11, 1):  # all of the answer, or as far as it was played
        prompt = (*PROMPT, *made[:heard], *NEXT)
        wanted = answer(plain, ask(prompt, mode, **sampling))
        with monkeypatch.context() as patch:
            counter = Counter(runner, patch)
            assert answer(keeping, replace(ask(prompt, mode, **sampling), max_new_tokens=1))[0] == wanted[0]
        # A chain needs rows of a little more; blocks that a mode leaves for good, all since then.
        again = {"vanilla": 0, "1,4,4,2": len(made)}.get(mode, 3 * BLOCKS)
        # The last token of an answer was read by nobody.
        assert counter.tokens <= len(NEXT) + 1 + again, "a prefill of what was read"
        assert answer(keeping, ask(prompt, mode, **sampling)) == wanted


def test_what_rough_blocks_remember_is_not_for_modes_whose_drafts_stand(
    runner: CycleRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, plain = Engine(runner, kept_tokens=1000), Engine(runner)
    prompt = (*PROMPT, *answer(keeping, ask(PROMPT, "verified")), *NEXT)
    wanted = answer(plain, ask(prompt, "1,4"))
    counter = Counter(runner, monkeypatch)
    assert answer(keeping, ask(prompt, "1,4")) == wanted
    assert counter.tokens >= len(prompt)


def test_a_cancelled_answer_is_gone_on_from(runner: CycleRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping, plain = Engine(runner, kept_tokens=1000), Engine(runner)
    running = steps(keeping, ask(PROMPT, "1,4"))
    made = (*next(running), *next(running))
    keeping.cancel("one")
    prompt = (*PROMPT, *made[:3], *NEXT)
    wanted = answer(plain, ask(prompt, "1,4"))
    counter = Counter(runner, monkeypatch)
    answer(keeping, replace(ask(prompt, "1,4"), max_new_tokens=1))
    assert counter.tokens <= len(NEXT) + 3 * BLOCKS
    assert answer(keeping, ask(prompt, "1,4")) == wanted


def test_what_is_of_no_use_is_not_taken(runner: CycleRunner) -> None:
    """Another mode cuts chains otherwise; another conversation shares a system text alone."""
    keeping, plain = Engine(runner, kept_tokens=1000), Engine(runner)
    made = answer(keeping, ask(PROMPT, "1,4"))
    for prompt, mode in (((*PROMPT, *made, *NEXT), "2,3"), ((*PROMPT[:9], *NEXT), "1,4"), (PROMPT[:30], "vanilla")):
        assert answer(keeping, ask(prompt, mode)) == answer(plain, ask(prompt, mode))


def test_no_more_is_kept_than_was_said(runner: CycleRunner) -> None:
    engine = Engine(runner, kept_tokens=150)
    for start in range(5):
        answer(engine, ask(tuple(range(start, start + 40)), "1,4"))
    assert [int(kept.ids[0]) for kept in engine._kept._kept] == [3, 4]
    assert not Engine(runner)._kept._kept
    plain = Engine(runner)
    answer(plain, ask(PROMPT, "1,4"))
    assert not plain._kept._kept
