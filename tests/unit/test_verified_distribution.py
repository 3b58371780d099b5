"""Sampled answers of `verified` follow the model's own distribution: a chi-square test whose power is known.

By itself it could miss what it cannot see, so its power is asserted, and that it finds blocks' tokens unverified.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES, Mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.sampling import SamplingParams, candidates, softmax
from vita_mctp.study.samples import teacher_forced_chain

chi2, ncx2 = (getattr(pytest.importorskip("scipy.stats"), name) for name in ("chi2", "ncx2"))

PROMPT, TOKENS, DRAWS, ALPHA, POWER, DISTANCE = (5, 17, 40), 3, 3000, 1e-3, 0.99, 0.1
PARAMS = SamplingParams(temperature=1.3, top_k=4)


@pytest.fixture(scope="module")
def model(make_tiny_model):
    return make_tiny_model(1, 3)


@pytest.fixture(scope="module")
def expected(model):
    """Probability of each answer of three tokens, computed from nothing."""

    def behind(ids):
        tokens, scores = candidates(teacher_forced_chain(model, [*PROMPT, *ids], 0)[0][-1].numpy(), PARAMS)
        return zip(tokens.tolist(), softmax(scores.astype(np.float64)), strict=True)

    answers = {(): 1.0}
    for _ in range(TOKENS):
        answers = {(*ids, token): p * q for ids, p in answers.items() for token, q in behind(ids)}
    assert sum(answers.values()) == pytest.approx(1) and min(answers.values()) * DRAWS > 5
    return answers


def statistic(model, mode, expected):
    requests = [
        Request(PROMPT, mode, TOKENS, SamplingParams(PARAMS.temperature, PARAMS.top_k, seed=i), id=str(i))
        for i in range(DRAWS)
    ]
    found = Counter(result.ids for result in Engine(EagerRunner(model), max_batch=100).generate(requests))
    assert mode.verified is False or set(found) <= set(expected)
    return sum((found[ids] - DRAWS * p) ** 2 / (DRAWS * p) for ids, p in expected.items())


def test_sampled_answers_follow_the_models_distribution(model, expected):
    critical = chi2.ppf(1 - ALPHA, len(expected) - 1)
    assert statistic(model, MODES["verified"], expected) < critical
    assert statistic(model, Mode("1,2", (1, 2)), expected) > critical  # what blocks say unverified is found out


def test_the_test_has_power(expected):
    """A distribution that is off by a total variation of a tenth is rejected in 99 of 100 tests."""
    critical = chi2.ppf(1 - ALPHA, len(expected) - 1)
    assert ncx2.sf(critical, len(expected) - 1, DRAWS * 4 * DISTANCE**2) > POWER
