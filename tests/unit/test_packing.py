"""Packing loses nothing, restarts positions and fills rows well."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packing_fill import fills

from vita_mctp.data.row_stream import PackedRow, PackingReport, best_fit_decreasing, join
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


@given(lengths=LENGTHS)
def test_every_sample_comes_out_once_and_fits(lengths: list[int]) -> None:
    bins = best_fit_decreasing(lengths, 40)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in members) <= 40 for members in bins)
    assert bins == sorted(bins) and all(members == sorted(members) for members in bins)  # in order of arrival


@given(lengths=LENGTHS)
def test_a_row_holds_its_samples_and_positions_restart(lengths: list[int]) -> None:
    fed = [sample(number, length) for number, length in enumerate(lengths)]
    for members in best_fit_decreasing(lengths, 50):
        row = join([fed[index] for index in members])
        assert samples_of(row) == [fed[index] for index in members]
        expected = [position for s in samples_of(row) for position in range(len(s))]
        assert row.position_ids.tolist() == expected
        assert row.ends[-1] == len(row)


def test_a_report_counts_rows_and_what_fits_none() -> None:
    report = PackingReport()
    assert [report.admit(sample(1, length), 10) for length in (10, 11, 3)] == [True, False, True]
    report.add_row([sample(1, 10), sample(2, 3)])
    assert (report.samples, report.rows, report.tokens) == (2, 1, 13)
    assert (report.over_long, report.longest, report.fill(20)) == (1, 11, 13 / 20)
    assert PackingReport().fill(256) == 0.0


def test_rows_fill_better_than_in_order_of_arrival() -> None:
    generator = random.Random(0)
    reference, *_, best = fills([generator.randint(20, 150) for _ in range(2000)], 256).values()
    assert best > 0.97
    assert reference < best * 0.9


def test_fills_are_those_of_a_packing_by_hand() -> None:
    reference, first, *best = fills([6, 5, 4, 5, 99], 10).values()  # 6 | 5 4 | 5;  6 4 | 5 5;  6 4 | 5 5
    assert (reference, first, best) == (20 / 30, 1.0, [1.0, 1.0])
    assert list(fills([4, 5, 6, 5], 10).values())[1:3] == [20 / 30, 1.0]  # 4 5 | 6 | 5;  6 4 | 5 5


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
