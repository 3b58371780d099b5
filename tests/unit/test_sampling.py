from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vita_mctp.decoding.runners.eager import as_numpy
from vita_mctp.decoding.sampling import Sampler, SamplingParams, UniformStream, candidates, draw, penalize
from vita_mctp.errors import ConfigError


def random_logits(seed, size=40):
    return np.random.default_rng(seed).normal(size=size) * 3


def transformers_distribution(logits, prompt, params):
    """The distribution from which transformers' `generate` would draw."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    return processors(torch.tensor([prompt]), torch.from_numpy(logits)[None].clone())[0].softmax(-1)


def our_distribution(logits, prompt, params):
    ids, scores = candidates(penalize(logits, prompt, params.repetition_penalty), params)
    return torch.zeros(len(logits), dtype=torch.float64).index_put(
        (torch.from_numpy(ids),), torch.from_numpy(scores).softmax(-1)
    )


sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.05, 1.0),
    repetition_penalty=st.floats(0.5, 2.0),
    seed=st.integers(0, 1000),
)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 39), min_size=1, max_size=20), sampling)
def test_distribution_equals_transformers(seed, prompt, params):
    logits = random_logits(seed)
    torch.testing.assert_close(
        our_distribution(logits, prompt, params), transformers_distribution(logits, prompt, params)
    )


def test_top_k_keeps_ties_as_transformers_does():
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0])
    params = SamplingParams(temperature=1.0, top_k=2)
    assert candidates(logits, params)[0].tolist() == [1, 2, 3]
    torch.testing.assert_close(our_distribution(logits, [0], params), transformers_distribution(logits, [0], params))


def test_draws_follow_the_distribution():
    logits = random_logits(5, size=6)
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=3)
    sampler = Sampler(params, prompt_length=0)
    counts = Counter(sampler.choose(logits, [0] * length) for length in range(4000))
    drawn = torch.tensor([counts[i] / 4000 for i in range(6)], dtype=torch.float64)
    torch.testing.assert_close(drawn, our_distribution(logits, [0], params), atol=0.03, rtol=0)


@given(st.floats(0, 1, exclude_max=True))
def test_a_draw_lands_in_the_interval_of_its_token(uniform):
    scores = np.log([0.5, 0.25, 0.125, 0.125])
    expected = 10 if uniform < 0.5 else 11 if uniform < 0.75 else 12 if uniform < 0.875 else 13
    edges = (0.5, 0.75, 0.875)
    if min(abs(uniform - edge) for edge in edges) > 1e-12:
        assert draw(np.array([10, 11, 12, 13]), scores, uniform) == expected


def test_temperature_zero_is_greedy_whatever_the_filters():
    logits = random_logits(1)
    assert Sampler(SamplingParams(top_k=3, top_p=0.1, seed=9), 1).choose(logits, [0]) == int(logits.argmax())


def test_penalty_remembers_prompt_and_chosen_tokens():
    logits = np.array([5.0, 4.9, 4.8, -1.0])
    assert answer(SamplingParams(repetition_penalty=1.5), [0], [logits] * 3) == [1, 2, 0]


def answer(params, prompt, rows):
    """Tokens behind a prompt, one from each row of logits."""
    sampler, ids = Sampler(params, len(prompt)), list(prompt)
    for logits in rows:
        ids.append(sampler.choose(logits, ids))
    return ids[len(prompt) :]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 + 5, 2**40 + 3])
def test_the_random_stream_is_torchs(seed):
    generator, stream = torch.Generator().manual_seed(seed), UniformStream(seed)
    ours = [stream[index] for index in range(50)]
    assert ours == [torch.rand((), generator=generator, dtype=torch.float64).item() for _ in range(50)]


def test_a_draw_depends_on_its_index_and_not_on_what_was_drafted_before():
    params = SamplingParams(temperature=1.3, top_k=9, repetition_penalty=1.1, seed=1)
    rows = [random_logits(i) for i in range(8)]
    straight = answer(params, [3], rows)
    sampler, ids = Sampler(params, 1), [3]
    for index, logits in enumerate(rows):
        sampler.choose(random_logits(99 + index), [*ids, 5, 6])  # a draft two tokens ahead, dropped again
        ids.append(sampler.choose(logits, ids))
    assert ids[1:] == straight


def test_a_seed_repeats_and_another_differs():
    rows = [random_logits(i) for i in range(20)]
    tokens = [answer(SamplingParams(temperature=1.5, seed=seed), [0], rows) for seed in (7, 7, 8)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_half_precision_logits_are_chosen_from_in_single():
    logits = torch.from_numpy(random_logits(2)).to(torch.bfloat16)
    assert as_numpy(logits).dtype == np.float32 and (as_numpy(logits) == logits.float().numpy()).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("seed", -1),
    ],
)
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} {value} given; wanted {name}"):
        SamplingParams(**{name: value})
