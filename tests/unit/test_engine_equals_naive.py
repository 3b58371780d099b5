"""The engine's caches, batches and grouping change nothing: it returns what recomputing everything returns."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import generate_lossy_naive, generate_naive

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES, Mode, parse_mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.cycles import CycleRunner, Read
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.runners.onnx import OnnxLevels
from vita_mctp.decoding.runners.packed import PackedLevels
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.study.samples import teacher_forced_chain

tokens = st.integers(0, 47)
modes = (
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=3)
    .filter(lambda pairs: sum(pairs[-1]) > 0)
    .map(lambda pairs: Mode("random", tuple(count for pair in pairs for count in pair)))
)
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5, 20]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2]),
    seed=st.integers(0, 9),
)
requests = st.builds(
    Request,
    prompt_ids=st.lists(tokens, min_size=1, max_size=40).map(tuple),
    mode=modes,
    max_new_tokens=st.integers(1, 30),
    sampling=samplings,
    eos_ids=st.frozensets(tokens, max_size=2),
)
property_test = settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # derandomize: the same examples on every run


@property_test
@given(
    seed=st.integers(0, 99),
    num_blocks=st.integers(0, 4),
    tied=st.booleans(),
    batch=st.lists(requests, min_size=1, max_size=5),
    max_batch=st.integers(1, 4),
)
def test_a_batch_of_anything_equals_naive(make_tiny_model, seed, num_blocks, tied, batch, max_batch):
    model = make_tiny_model(seed, num_blocks, tied=tied)
    expected = [generate_naive(model, request) for request in batch]
    assert Engine(EagerRunner(model), max_batch=max_batch).generate(batch) == expected


@property_test
@given(seed=st.integers(0, 99), batch=st.lists(requests, min_size=2, max_size=3), data=st.data())
def test_interleaved_streams_never_mix(make_tiny_model, seed, batch, data):
    model = make_tiny_model(seed, num_blocks=3)
    engine = Engine(EagerRunner(model))
    streams = {i: engine.start(request) for i, request in enumerate(batch)}
    events = [[] for _ in batch]
    while streams:
        i = data.draw(st.sampled_from(sorted(streams)))
        events[i] += engine.advance([streams[i]])[0]
        if streams[i].reason is not None:
            del streams[i]
    assert [tuple(made) for made in events] == [generate_naive(model, request).events for request in batch]


@property_test
@given(seed=st.integers(0, 99), arrivals=st.lists(st.tuples(st.integers(0, 12), requests), min_size=2, max_size=4))
def test_requests_that_join_later_equal_naive(make_tiny_model, seed, arrivals):
    model = make_tiny_model(seed, num_blocks=4)
    engine = Engine(EagerRunner(model), max_batch=3)
    events = [[] for _ in arrivals]
    step = 0
    while step <= 12 or any(not made for made in events):
        for i, (arrival, request) in enumerate(arrivals):
            if arrival == step:
                engine.add(
                    Request(request.prompt_ids, request.mode, request.max_new_tokens, request.sampling, id=str(i))
                )
        for name, new in engine.step().items():
            events[int(name)] += new
        step += 1
    while len(engine):
        for name, new in engine.step().items():
            events[int(name)] += new
    for made, (_, request) in zip(events, arrivals, strict=True):
        endless = Request(request.prompt_ids, request.mode, request.max_new_tokens, request.sampling)
        assert tuple(made) == generate_naive(model, endless).events


@property_test
@given(
    seed=st.integers(0, 99),
    batch=st.lists(requests, min_size=1, max_size=3),
    chunk=st.integers(1, 9),
    max_batch=st.integers(1, 3),
)
def test_prompts_read_in_chunks_equal_naive(make_tiny_model, seed, batch, chunk, max_batch):
    model = make_tiny_model(seed, num_blocks=3)
    engine = Engine(EagerRunner(model, prefill_chunk=chunk), max_batch=max_batch)
    assert engine.generate(batch) == [generate_naive(model, request) for request in batch]


@property_test
@given(seed=st.integers(0, 99), request=requests)
def test_attention_kernels_agree(make_tiny_model, seed, request):
    results = [
        Engine(EagerRunner(make_tiny_model(seed, 3, attn=attn))).generate([request]) for attn in ("eager", "sdpa")
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("mode", ["vanilla", "balance", "boost", "turbo", "1,14"])
def test_every_token_is_the_argmax_of_its_block_in_the_teacher_forced_chain(make_tiny_model, mode):
    model = make_tiny_model(seed=3, num_blocks=10)
    prompt = (7, 1, 30, 2)
    result = Engine(EagerRunner(model)).generate([Request(prompt, parse_mode(mode, 10), 60)])[0]
    ids = prompt + result.ids
    chain = teacher_forced_chain(model, ids)
    for event in result.events:
        read = len(prompt) + event.index - 1
        assert int(chain[event.level][read - event.level].argmax()) == event.id


def test_long_and_short_prompts_decode_together_across_buffer_growth(make_tiny_model):
    model = make_tiny_model(seed=8, num_blocks=4, max_positions=2048)
    prompts = [tuple((7 * i) % 48 for i in range(length)) for length in (1, 250, 3, 90)]
    batch = [
        Request(prompt, parse_mode(mode, 4), 24, SamplingParams(temperature=1.0, seed=i))
        for i, (prompt, mode) in enumerate(zip(prompts, ["boost", "turbo", "vanilla", "balance"], strict=True))
    ]
    assert Engine(EagerRunner(model)).generate(batch) == [generate_naive(model, request) for request in batch]


def onnx_runner(model, prefill_chunk: int | None, screened: bool | None = None) -> CycleRunner:
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return CycleRunner(OnnxLevels(model.config.to_dict(), weights, screened), prefill_chunk)


@property_test
@given(
    seed=st.integers(0, 99),
    blocks=st.integers(0, 8),
    tied=st.booleans(),
    batch=st.lists(requests, min_size=1, max_size=5),
    chunk=st.sampled_from([None, 3, 16]),
    screened=st.booleans(),
)
def test_onnx_equals_naive(make_tiny_model, seed, blocks, tied, batch, chunk, screened):
    model = make_tiny_model(seed, blocks, tied=tied).float()
    expected = [generate_naive(model, request) for request in batch]
    assert Engine(onnx_runner(model, chunk, screened)).generate(batch) == expected


@property_test
@given(
    seed=st.integers(0, 99),
    blocks=st.integers(0, 4),
    tied=st.booleans(),
    batch=st.lists(requests, min_size=1, max_size=5),
    chunk=st.sampled_from([None, 3]),
)
def test_packed_equals_naive(make_tiny_model, seed, blocks, tied, batch, chunk):
    """In float32, where no choice hangs on rounding."""
    model = make_tiny_model(seed, blocks, tied=tied).float()
    levels = PackedLevels(model.config.to_dict(), model.state_dict())
    expected = [generate_naive(model, request) for request in batch]
    assert Engine(CycleRunner(levels, chunk)).generate(batch) == expected


def test_more_requests_than_a_graph_has_slots(make_tiny_model):
    model = make_tiny_model(seed=4, num_blocks=2).float()
    batch = [Request((i % 48, i % 7), parse_mode("turbo" if i % 2 else "verified", 2), 5) for i in range(70)]
    results = Engine(onnx_runner(model, None), max_batch=70).generate(batch)
    assert [result.ids for result in results] == [generate_naive(model, request).ids for request in batch]


@property_test
@given(
    seed=st.integers(0, 99),
    blocks=st.integers(0, 8),
    batch=st.lists(requests, min_size=1, max_size=5),
    stop=st.sampled_from([0.0, 0.05, 0.5]),
    max_batch=st.integers(1, 4),
    kind=st.sampled_from(["eager", "onnx", "screened"]),
)
def test_verified_equals_vanilla(make_tiny_model, seed, blocks, batch, stop, max_batch, kind):
    model = make_tiny_model(seed, blocks)
    runner = EagerRunner(model) if kind == "eager" else onnx_runner(model.float(), None, kind == "screened")
    mode = replace(MODES["verified"], stop_below=stop)
    batch = [replace(request, mode=mode if i % 3 else request.mode) for i, request in enumerate(batch, 1)]
    results = Engine(runner, max_batch=max_batch).generate(batch)
    for request, result in zip(batch, results, strict=True):
        assert result.ids == generate_naive(model, request).ids


@property_test
@given(
    seed=st.integers(0, 99),
    blocks=st.integers(0, 8),
    batch=st.lists(requests, min_size=1, max_size=3),
    stop=st.sampled_from([0.0, 1e-4]),
    typical=st.sampled_from([0.05, 0.3]),
    kind=st.sampled_from(["eager", "onnx", "screened"]),
)
def test_lossy_equals_its_twin(make_tiny_model, seed, blocks, batch, stop, typical, kind):
    model = make_tiny_model(seed, blocks)
    runner = EagerRunner(model) if kind == "eager" else onnx_runner(model.float(), None, kind == "screened")
    mode = replace(MODES["lossy"], stop_below=stop, typical=typical)
    batch = [replace(request, mode=mode) for request in batch]
    results = Engine(runner).generate(batch)
    assert [list(result.ids) for result in results] == [generate_lossy_naive(model, request) for request in batch]


def test_lossy_is_verified_with_other_answers(make_tiny_model):
    model = make_tiny_model(seed=3, num_blocks=4)
    changed = 0
    for i in range(8):
        request = Request((i, 7, 1), parse_mode("lossy,0.05", 4), 30)
        changed += generate_lossy_naive(model, request) != list(generate_naive(model, request).ids)
    assert changed >= 4


def test_rough_blocks_are_near_exact_ones(make_tiny_model):
    """No answer would show that they are wrong: it would come later."""
    levels = onnx_runner(make_tiny_model(seed=5, num_blocks=6).float(), None).levels
    ids, random = np.arange(20), np.random.default_rng(0)
    for block in range(5):  # of the deepest only the last row is given out
        hidden = random.standard_normal((len(ids), levels.shape.hidden_size)).astype(np.float32)
        reads = [Read(levels.open(len(ids)), 0, ids, hidden=hidden, rough=rough) for rough in (False, True)]
        exact, rough = (levels.chain(block, block + 1, [read])[0] for read in reads)
        for wanted, came in ((exact.hidden, rough.hidden), (exact.logits, rough.logits)):
            assert 0 < np.linalg.norm(came - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("mode", ["boost", "verified", "lossy"])
def test_blocks_are_rough_where_their_drafts_decide_nothing(make_tiny_model, mode, monkeypatch):
    runner, seen = onnx_runner(make_tiny_model(seed=5, num_blocks=6).float(), None), set()
    chain = runner.levels.chain

    def watched(first, last, reads):
        seen.update(read.rough for read in reads)
        return chain(first, last, reads)

    monkeypatch.setattr(runner.levels, "chain", watched)
    Engine(runner).generate([Request((1, 2, 3), MODES[mode], 20)])
    assert seen == {mode == "verified"}
