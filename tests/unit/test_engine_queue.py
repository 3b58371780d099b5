"""The engine as a user meets it: events, ends, the queue, cancelling, what it refuses, what it keeps in memory."""

import gc
import weakref

import pytest
import torch

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES, parse_mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.errors import ConfigError
from vita_mctp.types import BACKBONE, StopReason, TokenKind

PROMPT = (5, 9, 40, 3)


@pytest.fixture(scope="module")
def model(make_tiny_model):
    return make_tiny_model(seed=4, num_blocks=4)


def run(engine):
    while len(engine):
        yield engine.step()


def ask(mode="1,4", tokens=20, **kwargs):
    return Request(PROMPT, parse_mode(mode, 4), tokens, **kwargs)


def test_eos_made_by_a_block_ends_the_answer_at_once(model):
    free = Engine(EagerRunner(model)).generate([ask()])[0]
    eos = next(event for event in free.events if event.level > 1 and event.id not in free.ids[: event.index])
    result = Engine(EagerRunner(model)).generate([ask(eos_ids=frozenset([eos.id]))])[0]
    assert result.reason is StopReason.EOS
    assert result.events[:-1] == free.events[: eos.index]
    assert (result.events[-1].id, result.events[-1].level) == (eos.id, eos.level)
    assert result.events[-1].kind is TokenKind.STOP


def test_an_eos_in_the_prompt_does_not_end_the_answer(model):
    free = Engine(EagerRunner(model)).generate([ask()])[0]
    only_in_prompt = next(token for token in PROMPT if token not in free.ids)
    assert Engine(EagerRunner(model)).generate([ask(eos_ids=frozenset([only_in_prompt]))])[0] == free


def test_events_count_and_name_their_makers(model):
    result = Engine(EagerRunner(model)).generate([ask(tokens=7)])[0]
    assert [event.index for event in result.events] == list(range(7))
    assert [event.level for event in result.events] == [BACKBONE, 1, 2, 3, 4, BACKBONE, 1]
    assert result.reason is StopReason.LENGTH


def test_kinds_come_from_the_vocabulary(model):
    def odd_is_audio(token):
        return TokenKind.AUDIO if token % 2 else TokenKind.TEXT

    result = Engine(EagerRunner(model), classify=odd_is_audio).generate([ask()])[0]
    assert {event.kind for event in result.events} == {TokenKind.AUDIO, TokenKind.TEXT}
    assert all(event.kind is odd_is_audio(event.id) for event in result.events)


def test_results_keep_the_order_and_ids_of_requests(model):
    batch = [ask(tokens=n, id=f"r{n}") for n in (9, 1, 5, 3)]
    results = Engine(EagerRunner(model), max_batch=2).generate(batch)
    assert [result.request_id for result in results] == ["r9", "r1", "r5", "r3"]
    assert [len(result.ids) for result in results] == [9, 1, 5, 3]


def test_generate_takes_requests_without_ids_and_leaves_the_queue_alone(model):
    engine = Engine(EagerRunner(model))
    engine.add(ask(id="queued", tokens=2))
    assert len(engine.generate([ask(), ask()])) == 2
    assert [list(step) for step in run(engine)] == [["queued"]]


def test_a_full_batch_makes_newcomers_wait(model):
    engine = Engine(EagerRunner(model), max_batch=1)
    engine.add(ask(id="first", tokens=2))
    engine.add(ask(id="second", tokens=2))
    outputs = [(name, event.ends) for step in run(engine) for name, events in step.items() for event in events]
    assert outputs == [
        ("first", None),
        ("first", StopReason.LENGTH),
        ("second", None),
        ("second", StopReason.LENGTH),
    ]


def test_a_request_that_waits_has_no_caches_yet(model, monkeypatch):
    engine, opened = Engine(EagerRunner(model), max_batch=1), []
    runner_open = engine.runner.open
    monkeypatch.setattr(engine.runner, "open", lambda request: opened.append(request.id) or runner_open(request))
    engine.add(ask(id="first", tokens=2))
    engine.add(ask(id="second", tokens=2))
    assert opened == []
    assert [list(opened) for _ in run(engine)] == [["first"], ["first", "second"]]


def test_cancel_drops_running_and_waiting_requests_and_touches_no_other(model):
    alone = Engine(EagerRunner(model)).generate([ask(tokens=6)])[0]
    engine = Engine(EagerRunner(model), max_batch=2)
    for name in ("kept", "running", "waiting"):
        engine.add(ask(id=name, tokens=6))
    events = engine.step()["kept"]
    engine.cancel("running")
    engine.cancel("waiting")
    rest = list(run(engine))
    assert all(step.keys() == {"kept"} for step in rest)
    assert tuple(events + [event for step in rest for event in step["kept"]]) == alone.events


def test_a_dropped_stream_frees_its_caches(model):
    engine = Engine(EagerRunner(model))
    state = engine.start(ask())
    engine.advance([state])
    buffer = weakref.ref(state.memory.slot[0].buffer)
    del state
    gc.collect()
    assert buffer() is None


def test_an_id_in_use_is_refused(model):
    engine = Engine(EagerRunner(model))
    engine.add(ask(id="same"))
    with pytest.raises(ConfigError, match="'same' is already queued"):
        engine.add(ask(id="same"))


@pytest.mark.parametrize(("prompt", "wanted"), [((1, 48), "wanted ids in"), ((-1,), "wanted ids in")])
def test_prompt_ids_outside_the_vocabulary_are_refused(model, prompt, wanted):
    with pytest.raises(ConfigError, match=wanted):
        Engine(EagerRunner(model)).add(Request(prompt, MODES["boost"], 4))


def test_empty_prompts_and_budgets_are_refused():
    with pytest.raises(ConfigError, match="empty prompt"):
        Request((), MODES["boost"], 4)
    with pytest.raises(ConfigError, match="max_new_tokens 0"):
        Request(PROMPT, MODES["boost"], 0)


def test_an_answer_ends_with_the_models_positions(make_tiny_model):
    engine = Engine(EagerRunner(make_tiny_model(seed=1, num_blocks=2, max_positions=10)))
    result = engine.generate([ask(tokens=100)])[0]
    assert (len(result.ids), result.reason) == (6, StopReason.LENGTH)
    with pytest.raises(ConfigError, match="shorten the prompt"):
        engine.start(Request((1,) * 10, MODES["boost"], 4))


def test_decoding_leaves_the_model_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = set(vars(model))
    Engine(EagerRunner(model)).generate([ask(sampling=SamplingParams(temperature=1.0))])
    assert set(vars(model)) == attributes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("mode", ["vanilla", "balance", "boost", "1,4,3,0"])
def test_only_unseen_hidden_states_are_kept(model, mode):
    """No block's backlog outgrows what one round of the schedule leaves it: history is never hoarded."""
    engine = Engine(EagerRunner(model))
    state = engine.start(ask(mode, tokens=120))
    while state.reason is None:
        engine.advance([state])
        backlog = [0 if segment.rows is None else len(segment.rows) for segment in state.memory.segments]
        assert max(backlog, default=0) <= len(PROMPT) + 30  # modes without blocks keep nothing for one
    if mode in ("vanilla", "1,4,3,0"):
        assert not any(backlog)


def test_caches_grow_by_doubling(model):
    engine = Engine(EagerRunner(model))
    state = engine.start(ask("boost", tokens=400))
    buffers = set()
    while state.reason is None:
        engine.advance([state])
        buffers.add(state.memory.slot[0].buffer.shape[-2])
    assert sorted(buffers) == [256, 512]
