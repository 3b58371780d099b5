from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_mctp.decoding.modes import MODES, Mode, PlanCursor, parse_mode
from vita_mctp.errors import ConfigError
from vita_mctp.types import BACKBONE

M = BACKBONE


def walk(counts, num_blocks, tokens):
    """Makers of the first `tokens` new tokens, and the cursors in front of each."""
    cursor = PlanCursor.start(Mode("test", tuple(counts)), num_blocks)
    items, cursors = [], []
    for _ in range(tokens):
        cursors.append(cursor)
        item, cursor = cursor.step()
        items.append(item)
    return items, cursors


def schedule(counts, tokens):
    """The nominal string of M and m, pair by pair, written out in full."""
    pairs = list(zip(counts[::2], counts[1::2], strict=True))
    text = "".join("M" * main + "m" * mctp for main, mctp in pairs)
    while len(text) < tokens:
        text += "M" * pairs[-1][0] + "m" * pairs[-1][1]
    return text[:tokens]


def reference_walk(counts, num_blocks, tokens):
    """The state machine as the paper's released system describes it, over the whole nominal string."""
    text = schedule(counts, tokens)
    items, j = [], 0
    for i, letter in enumerate(text):
        if letter == "M":
            j = 0
        elif i > 0 and text[i - 1] == "M":
            j = 1
        is_prefill = i == 0
        if 1 <= j <= num_blocks and not is_prefill:
            items.append(j)
            j += 1
        else:
            items.append(M)
            j = 1
    return items


even_lists = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4).map(
    lambda pairs: [count for pair in pairs for count in pair]
)
schedules = even_lists.filter(lambda counts: sum(counts[-2:]) > 0)


@pytest.mark.parametrize(
    ("counts", "num_blocks", "expected"),
    [
        ([1, 10, 4, 10], 10, [M, *range(1, 11), M, M, M, M, *range(1, 11), M, M, M, M, 1]),
        ([1, 4, 3, 8, 4, 10], 10, [M, *range(1, 5), M, M, M, *range(1, 9), M, M, M, M, *range(1, 11), M]),
        ([1, 14], 10, [M, *range(1, 11), M, 1, 2, 3, M, 1]),
        ([1, 10], 1, [M, 1, M, 1, M, 1, M, 1, M, 1, M, M, 1]),
        ([0, 4], 2, [M, 1, 2, M, 1, 2, M, 1]),
        ([1, 0], 3, [M, M, M, M]),
        ([2, 1, 0, 1, 1, 0], 3, [M, M, 1, 2, M, M, M]),
        ([1, 3], 0, [M, M, M, M, M]),
    ],
)
def test_makers_of_known_schedules(counts, num_blocks, expected):
    assert walk(counts, num_blocks, len(expected))[0] == expected


@given(schedules, st.integers(0, 4))
def test_cursor_equals_the_state_machine_over_the_written_out_schedule(counts, num_blocks):
    assert walk(counts, num_blocks, 60)[0] == reference_walk(counts, num_blocks, 60)


@given(schedules, st.integers(0, 4))
def test_reach_bounds_every_later_level(counts, num_blocks):
    items, cursors = walk(counts, num_blocks, 60)
    for i, cursor in enumerate(cursors):
        assert max(items[i:]) <= cursor.reach


def test_reach_is_tight_for_the_released_modes():
    reaches = {name: PlanCursor.start(mode, 10).reach for name, mode in MODES.items()}
    assert reaches == {"vanilla": 0, "balance": 10, "boost": 10, "turbo": 10, "verified": 10, "lossy": 10}


def test_cursor_is_a_value():
    cursor = PlanCursor.start(MODES["boost"], 10)
    assert cursor.step() == cursor.step()
    with pytest.raises(AttributeError):
        cursor.used = 3


def test_vanilla_stays_vanilla_past_its_first_pair():
    cursor = PlanCursor(MODES["vanilla"], 10, pair=0, used=8191, level=0)
    for _ in range(3):
        item, cursor = cursor.step()
        assert item == BACKBONE


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ("boost", (1, 10, 4, 10)),
        (" Turbo ", (1, 10)),
        ("1,10,4,10", (1, 10, 4, 10)),
        ("3, 10", (3, 10)),
        ([1, 14], (1, 14)),
        (Mode("own", (2, 2)), (2, 2)),
        ("lossy,.1", (8192, 0)),
        (None, (1, 6)),
    ],
)
def test_parse_mode_reads(spec, counts):
    assert parse_mode(spec, num_blocks=6).counts == counts


def test_no_mode_of_a_model_without_blocks_is_the_backbone_alone():
    items = list(islice(walk(parse_mode(None, 0).counts, 0, 5)[0], 5))
    assert items == [BACKBONE] * 5


@pytest.mark.parametrize(
    "spec",
    ["fast", "", "1,10,4", "1,x", "-1,4", "1;10", "lossy,0", "lossy,1.5", [], [1], [1, -2], [1.5, 2], "0,0", "1,4,0,0"],
)
def test_parse_mode_refuses_in_one_line(spec):
    with pytest.raises(ConfigError) as error:
        parse_mode(spec, num_blocks=10)
    assert "wanted" in str(error.value) or "known" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_mode_is_told_the_known_ones():
    with pytest.raises(ConfigError, match=r"'fast'.*vanilla, balance, boost, turbo"):
        parse_mode("fast", num_blocks=10)
