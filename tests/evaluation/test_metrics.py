"""Intervals and comparisons against values worked by hand and known in closed form."""

import numpy as np
import pytest

from vita_mctp.errors import DataError
from vita_mctp.evaluation.metrics import Estimate, compare, ratio


def rate(hits: list[bool]) -> Estimate:
    return ratio([int(hit) for hit in hits], [1] * len(hits))


def test_a_rate_has_its_binomial_interval() -> None:
    estimate = rate([True] * 80 + [False] * 20)
    deviation = (0.8 * 0.2 / 100) ** 0.5
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.8 - 1.96 * deviation, abs=0.02)
    assert estimate.high == pytest.approx(0.8 + 1.96 * deviation, abs=0.02)
    assert rate([True] * 80 + [False] * 20) == estimate


def test_unanimous_samples_leave_no_doubt_and_none_leave_no_metric() -> None:
    sure = rate([True] * 10)
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)
    assert rate([]).value is None and ratio([3], [0]).value is None


def test_a_long_sample_weighs_more_in_a_ratio_and_alike_in_a_mean() -> None:
    assert ratio([1, 0], [1, 9]).value == pytest.approx(0.1)
    assert ratio([1.0, 0.0], [1, 1]).value == 0.5


def test_the_same_results_differ_by_nothing() -> None:
    same = compare(([1, 0, 2], [4, 5, 6]), ([1, 0, 2], [4, 5, 6]))
    assert (same.difference.value, same.difference.low, same.difference.high) == (0, 0, 0)
    assert same.p_value == 1


def test_p_is_the_sign_test_where_every_sample_differs_alike() -> None:
    """Eight samples right in b and wrong in a: only all swapped or none swapped is as far apart, 2 of 2**8."""
    found = compare(([0] * 8, [1] * 8), ([1] * 8, [1] * 8))
    assert found.difference.value == 1
    assert found.p_value == pytest.approx(2 / 2**8, abs=0.003)


def test_pairing_sees_what_unpaired_intervals_hide() -> None:
    """b has one error fewer in each sample, while samples differ by far more from each other."""
    generator = np.random.default_rng(1)
    errors = generator.integers(1, 50, 60).tolist()
    lengths = [60] * 60
    fewer = [error - 1 for error in errors]
    a, b = ratio(errors, lengths), ratio(fewer, lengths)
    assert a.low is not None and b.high is not None and a.low < b.high
    found = compare((errors, lengths), (fewer, lengths))
    assert found.difference.value == pytest.approx(-1 / 60)
    assert found.difference.high is not None and found.difference.high < 0
    assert found.p_value is not None and found.p_value < 0.001


def test_the_difference_turns_its_sign_with_the_systems() -> None:
    a, b = ([3, 1, 0, 2], [5, 5, 5, 5]), ([1, 1, 1, 1], [5, 5, 5, 5])
    there, back = compare(a, b), compare(b, a)
    assert there.difference.value == pytest.approx(-0.1) and back.difference.value == pytest.approx(0.1)
    assert there.p_value == pytest.approx(back.p_value, abs=0.02)


def test_other_samples_cannot_be_compared() -> None:
    with pytest.raises(DataError, match=r"\[1, 2\] samples"):
        compare(([1, 2], [1, 1]), ([1], [1]))
    assert compare(([], []), ([], [])).p_value is None
