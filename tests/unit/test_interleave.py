"""Interleaving by ratio loses nothing and keeps the rhythm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speech_segments import deinterleave

from vita_mctp.errors import ConfigError, DataError
from vita_mctp.text.interleave import BOOST_RATIO, Ratio, interleave

BEGIN, END = 1, 2
TEXT_IDS = st.lists(st.integers(1000, 4999), max_size=60)
AUDIO_IDS = st.lists(st.integers(5000, 9000), max_size=120)
RATIOS = st.lists(st.tuples(st.integers(1, 15), st.integers(3, 30)), min_size=1, max_size=4).map(
    lambda pairs: Ratio(tuple(count for pair in pairs for count in pair))
)


@given(before=TEXT_IDS, after=TEXT_IDS, audio=AUDIO_IDS, ratio=RATIOS)
def test_nothing_is_lost(before: list[int], after: list[int], audio: list[int], ratio: Ratio) -> None:
    out = interleave([*before, BEGIN, *audio, END, *after], ratio, BEGIN, END)
    assert deinterleave(out, BEGIN, END) == ([*before, *after], audio)


@given(text=TEXT_IDS.filter(len), audio=AUDIO_IDS.filter(len), ratio=RATIOS)
def test_every_piece_but_the_last_has_the_ratio_s_size(text: list[int], audio: list[int], ratio: Ratio) -> None:
    out = interleave([*text, BEGIN, *audio, END], ratio, BEGIN, END)
    position, pairs = 0, list(zip(ratio.counts[::2], ratio.counts[1::2], strict=True))
    pieces = out.count(BEGIN)
    assert out[-1] == END
    for number in range(pieces - 1):
        words, speech = pairs[min(number, len(pairs) - 1)]
        assert all(token >= 1000 for token in out[position : position + words])
        assert out[position + words] == BEGIN and out[position + words + speech - 1] == END
        position += words + speech


def test_released_ratio_by_hand() -> None:
    text, audio = [10, 11, 12, 13, 14, 15, 16], list(range(100, 120))
    assert interleave([*text, BEGIN, *audio, END], BOOST_RATIO, BEGIN, END) == [
        *(10, BEGIN, *range(100, 108), END),
        *(11, 12, 13, 14, BEGIN, *range(108, 116), END),
        *(15, 16, BEGIN, *range(116, 120), END),
    ]


def test_text_beside_empty_speech_is_kept_and_lost_only_as_reference() -> None:
    ids = [10, 11, 12, BEGIN, END, 13]
    assert interleave(ids, BOOST_RATIO, BEGIN, END) == [10, 11, 12, 13, BEGIN, END]
    assert interleave(ids, BOOST_RATIO, BEGIN, END, reference=True) == [10, BEGIN, END]


@pytest.mark.parametrize("ids", [[], [10, 11], [BEGIN, 100, 101, END], [BEGIN, END]])
def test_nothing_to_interleave_is_returned_as_it_is(ids: list[int]) -> None:
    assert interleave(ids, BOOST_RATIO, BEGIN, END) == ids


@pytest.mark.parametrize(
    "ids", [[10, BEGIN, 100], [10, 100, END], [10, END, 100, BEGIN], [BEGIN, 100, END, 10, BEGIN, 101, END]]
)
def test_broken_segments_are_refused(ids: list[int]) -> None:
    with pytest.raises(DataError, match="one audio segment"):
        interleave(ids, BOOST_RATIO, BEGIN, END)


@pytest.mark.parametrize("counts", [(), (1,), (1, 10, 4), (0, 10), (1, 2), (1, 10, 4, 0), (-1, 10)])
def test_ratio_that_would_never_end_is_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="does not interleave"):
        interleave([10, BEGIN, 100, END], counts, BEGIN, END)


def test_answer_cut_off_inside_a_segment_keeps_its_codes() -> None:
    assert deinterleave([10, BEGIN, 100, END, 11, BEGIN, 101], BEGIN, END) == ([10, 11], [100, 101])
