"""Packing loses nothing, restarts positions and fills rows well."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_mctp.data.packing import PackedRow, PackingReport, fills, join, pack
from vita_mctp.errors import ConfigError
from vita_mctp.text.chat import IGNORED, FeatureSpan, Sample

LENGTHS = st.lists(st.integers(1, 40), max_size=80)


def sample(number: int, length: int) -> Sample:
    ids = tuple(number * 100 + n for n in range(length))
    return Sample(ids, (IGNORED, *ids[1:]))


def samples_of(row: PackedRow) -> list[Sample]:
    starts = [0, *row.ends[:-1]]
    parts = [slice(start, end) for start, end in zip(starts, row.ends, strict=True)]
    return [Sample(tuple(row.input_ids[p].tolist()), tuple(row.labels[p].tolist())) for p in parts]


@given(lengths=LENGTHS, max_length=st.integers(1, 64), buffer=st.integers(1, 20))
def test_every_sample_that_fits_comes_out_once(lengths: list[int], max_length: int, buffer: int) -> None:
    fed = [sample(number, length) for number, length in enumerate(lengths)]
    report = PackingReport()
    rows = list(pack(fed, max_length, buffer, report))
    fitting = [s for s in fed if len(s) <= max_length]
    assert sorted((s for row in rows for s in samples_of(row)), key=lambda s: s.ids) == fitting
    assert all(0 < len(row) <= max_length for row in rows)
    assert (report.samples, report.rows, report.tokens) == (len(fitting), len(rows), sum(map(len, fitting)))
    assert report.over_long == len(fed) - len(fitting)
    assert report.longest == max(lengths, default=0)


@given(lengths=LENGTHS)
def test_positions_restart_at_each_sample(lengths: list[int]) -> None:
    for row in pack([sample(n, length) for n, length in enumerate(lengths)], 50, 16):
        expected = [position for s in samples_of(row) for position in range(len(s))]
        assert row.position_ids.tolist() == expected
        assert row.ends[-1] == len(row)


def test_same_samples_same_rows() -> None:
    fed = [sample(n, random.Random(n).randint(1, 40)) for n in range(200)]
    first, second = list(pack(fed, 64, 32)), list(pack(iter(fed), 64, 32))
    assert [row.input_ids.tolist() for row in first] == [row.input_ids.tolist() for row in second]


def test_rows_fill_better_than_in_order_of_arrival() -> None:
    generator = random.Random(0)
    fed = [sample(n, generator.randint(20, 150)) for n in range(2000)]
    report = PackingReport()
    list(pack(fed, 256, report=report))
    reference, *_ = fills([len(s) for s in fed], 256).values()
    assert report.fill(256) > 0.97
    assert reference < report.fill(256) * 0.9
    assert PackingReport().fill(256) == 0.0


def test_padding_is_a_segment_of_its_own() -> None:
    row = join([sample(1, 3), sample(2, 2)])
    padded = row.padded(8, pad_id=9)
    assert padded.input_ids.tolist() == [100, 101, 102, 200, 201, 9, 9, 9]
    assert padded.labels.tolist()[5:] == [IGNORED] * 3
    assert padded.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert padded.ends == (3, 5, 8)
    assert row.padded(5, pad_id=9) is row
    with pytest.raises(ConfigError, match="cannot be padded to 4"):
        row.padded(4, pad_id=9)


def test_features_move_with_their_sample() -> None:
    heard = Sample((1, 2, 3), (IGNORED,) * 3, (FeatureSpan(1, 0, 2),))
    assert join([sample(1, 4), heard, heard]).features == (FeatureSpan(0, 4, 2), FeatureSpan(1, 7, 2))


@pytest.mark.parametrize(("max_length", "buffer"), [(0, 4), (4, 0)])
def test_sizes_below_one_are_refused(max_length: int, buffer: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        list(pack([sample(1, 1)], max_length, buffer))
