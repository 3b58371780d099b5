"""Mixtures: strict files, deterministic and resumable order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_mctp.data.mixture import Draw, Mixture, MixtureSampler, MixtureSet, ShuffledRange
from vita_mctp.errors import ConfigError

MIXTURE = Mixture.parse(
    {"sets": [{"name": "asr", "ratio": 0.5}, {"name": "qa", "ratio": 2}, {"name": "off", "ratio": 0}], "seed": 7}, ""
)
SIZES = {"asr": 10, "qa": 3, "off": 5}


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text("seed: 3\nsets:\n  - {name: asr, path: sets/asr, ratio: 2}\n  - {name: qa}\n")
    sets = (MixtureSet(name="asr", path="sets/asr", ratio=2), MixtureSet(name="qa", path="qa", ratio=1.0))
    assert Mixture.from_file(path) == Mixture(sets=sets, seed=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: [{name: a, weight: 2}]", r"unknown key sets\.0\.weight; known: name, path, ratio"),
        ("sets: []", "at least one set"),
        ("sets: [{name: a}, {name: a}]", "each name once"),
        ("sets: [{path: a}]", r"missing key sets\.0\.name"),
        ("sets: [{name: a, ratio: -1}]", r"sets\.0\.ratio: got -1"),
        ("sets: [{name: a, ratio: .nan}]", r"sets\.0\.ratio: got nan"),
        ("sets: [{name: a, ratio: .inf}]", r"sets\.0\.ratio: got inf"),
        ("sets: [{name: a, ratio: 1e30}]", r"sets\.0\.ratio: got 1e\+30"),
        ("seed: -1\nsets: [{name: a}]", "seed: got -1"),
        ("sets: [{name: ''}]", r"sets\.0\.name: got ''"),
        ("sets: [{name: a, name: b}]", "name occurs twice"),
        ("sets: [{name: 'a', path: \"\\0\"}]", r"sets\.0\.path: got '\\x00'"),
        ("seed: 2001-99-99\nsets: [{name: a}]", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("sets: [{name: a, ratio: high}]", "ratio: got 'high'"),
        ("sets: [a]", r"sets\.0: got 'a'"),
        ("sets: {name: a}", "sets: got"),
        ("seeds: 3", "unknown key seeds; known: sets, seed"),
        ("seed: true\nsets: [{name: a}]", "seed: got True"),
        ("seed: 1", "missing key sets"),
        ("a: [", "not YAML"),
        ("", "got None"),
    ],
)
def test_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        Mixture.from_file(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_missing_file_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Mixture.from_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"draws from \['qa'\]"):
        MixtureSampler(MIXTURE, {"asr": 10, "qa": 0})
    with pytest.raises(ConfigError, match="ratio 0"):
        MixtureSampler(Mixture(sets=(MixtureSet(name="a", path="a", ratio=0),)), {"a": 3})


def test_epochs_hold_each_set_by_its_ratio() -> None:
    sampler = MixtureSampler(MIXTURE, SIZES)
    assert sampler.epoch_size == 5 + 6
    for epoch in range(4):
        counts = Counter(sampler.draw(position).name for position in range(epoch * 11, (epoch + 1) * 11))
        assert counts == {"asr": 5, "qa": 6}


def test_nothing_returns_before_its_set_is_exhausted() -> None:
    sampler = MixtureSampler(MIXTURE, SIZES)
    two_epochs = Counter(map(sampler.draw, range(22)))
    assert all(two_epochs[Draw("asr", index)] == 1 for index in range(10))
    assert all(two_epochs[Draw("qa", index)] == 4 for index in range(3))


def test_order_differs_between_epochs_and_seeds() -> None:
    sampler = MixtureSampler(MIXTURE, SIZES)
    other = MixtureSampler(Mixture(sets=MIXTURE.sets, seed=8), SIZES)
    epochs = [list(map(sampler.draw, range(start, start + 11))) for start in (0, 22)]
    assert epochs[0] != epochs[1] and epochs[0] != list(map(other.draw, range(11)))


@settings(deadline=None)
@given(positions=st.lists(st.integers(0, 120)))
def test_a_position_is_the_whole_state(positions: list[int]) -> None:
    whole = list(map(MixtureSampler(MIXTURE, SIZES).draw, range(121)))
    fresh = MixtureSampler(MIXTURE, SIZES)
    assert [fresh.draw(position) for position in positions] == [whole[position] for position in positions]


@given(size=st.integers(1, 3000), key=st.tuples(st.integers(0, 9), st.integers(0, 9)))
@settings(max_examples=30, deadline=None)
def test_a_shuffled_range_holds_each_number_once(size: int, key: tuple[int, int]) -> None:
    order = ShuffledRange(size, key)
    assert sorted(order[position] for position in range(size)) == list(range(size))
    with pytest.raises(IndexError):
        order[size]


def test_a_shuffled_range_of_any_size_is_even() -> None:
    """Where the first of 10 stands over 4,000 keys: chi-square with 9 degrees of freedom, below its 99.99 % point."""
    counts = Counter(ShuffledRange(10, (key,))[0] for key in range(4000))
    assert sum((counts[n] - 400) ** 2 / 400 for n in range(10)) < 33.7
    far = ShuffledRange(10**12, (1,))
    halves = [far[position] < 5 * 10**11 for position in range(2000)]
    assert 900 < sum(halves) < 1100
    assert 900 < sum(a != b for a, b in pairwise(halves)) < 1100
