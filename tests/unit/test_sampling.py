from collections import Counter

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

from vita_mctp.decoding.sampling import Sampler, SamplingParams, candidates, choose_each, draw, penalize
from vita_mctp.errors import ConfigError

CPU = torch.device("cpu")


def random_logits(seed, size=40):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


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
    return processors(torch.tensor([prompt]), logits[None].clone())[0].softmax(-1)


def our_distribution(logits, prompt, params):
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[prompt] = True
    ids, scores = candidates(penalize(logits, seen, params.repetition_penalty), params)
    return torch.zeros_like(logits).index_put((ids,), scores.softmax(-1))


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
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    params = SamplingParams(temperature=1.0, top_k=2)
    assert candidates(logits, params)[0].tolist() == [1, 2, 3]
    torch.testing.assert_close(our_distribution(logits, [0], params), transformers_distribution(logits, [0], params))


def test_draws_follow_the_distribution():
    logits = random_logits(5, size=6)
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=3)
    sampler = Sampler(params, [0], len(logits), CPU)
    counts = Counter(sampler.choose(logits) for _ in range(4000))
    drawn = torch.tensor([counts[i] / 4000 for i in range(6)], dtype=torch.float64)
    torch.testing.assert_close(drawn, our_distribution(logits, [0], params), atol=0.03, rtol=0)


@given(st.floats(0, 1, exclude_max=True))
def test_a_draw_lands_in_the_interval_of_its_token(uniform):
    scores = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    expected = 10 if uniform < 0.5 else 11 if uniform < 0.75 else 12 if uniform < 0.875 else 13
    edges = (0.5, 0.75, 0.875)
    if min(abs(uniform - edge) for edge in edges) > 1e-12:
        assert draw(torch.tensor([10, 11, 12, 13]), scores, uniform) == expected


def test_temperature_zero_is_greedy_whatever_the_filters():
    logits = random_logits(1)
    assert Sampler(SamplingParams(top_k=3, top_p=0.1, seed=9), [0], 40, CPU).choose(logits) == int(logits.argmax())


def test_penalty_remembers_prompt_and_chosen_tokens():
    logits = torch.tensor([5.0, 4.9, 4.8, -1.0])
    sampler = Sampler(SamplingParams(repetition_penalty=1.5), [0], 4, CPU)
    assert [sampler.choose(logits) for _ in range(3)] == [1, 2, 0]


def test_requests_draw_the_same_alone_and_in_any_batch():
    rows = torch.stack([random_logits(i) for i in range(5)])
    params = [
        SamplingParams(temperature=0.8, seed=1),
        SamplingParams(),
        SamplingParams(temperature=1.3, top_k=9, seed=1),
        SamplingParams(repetition_penalty=1.2),
        SamplingParams(temperature=1.0, top_p=0.7, repetition_penalty=1.1, seed=4),
    ]

    def samplers(which):
        return [Sampler(params[i], [i], 40, CPU) for i in which]

    alone = [[sampler.choose(rows[i]) for _ in range(6)] for i, sampler in enumerate(samplers(range(5)))]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        batch = samplers(order)
        steps = [choose_each(rows[order], batch) for _ in range(6)]
        assert [list(tokens) for tokens in zip(*steps, strict=True)] == [alone[i] for i in order]


def test_a_seed_repeats_and_another_differs():
    def tokens(seed):
        sampler = Sampler(SamplingParams(temperature=1.5, seed=seed), [0], 40, CPU)
        return [sampler.choose(random_logits(i)) for i in range(20)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_half_precision_logits_are_chosen_from_in_single():
    logits = random_logits(2).to(torch.bfloat16)
    params = SamplingParams(temperature=0.7, top_p=0.9, seed=11)
    low, high = (Sampler(params, [0], 40, CPU) for _ in range(2))
    assert [low.choose(logits) for _ in range(20)] == [high.choose(logits.float()) for _ in range(20)]


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
