"""One global sequence of rows, whatever the number of ranks and wherever it was resumed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_mctp.data.mixture import Mixture, MixtureSampler
from vita_mctp.data.row_stream import PackedRow, Pool, RowStream
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.text.chat import Sample

MIXTURE = Mixture.parse({"sets": [{"name": "asr", "ratio": 0.5}, {"name": "qa", "ratio": 2}], "seed": 7}, "")
SIZES = {"asr": 60, "qa": 9}
ROW = 50


def make(kind: int, item: int) -> Sample:
    """A sample whose first id names it; one of `asr` is longer than a row."""
    length = ROW + 1 if (kind, item) == (0, 3) else 3 + item * 7 % 29
    ids = (kind * 1000 + item, *[1] * (length - 1))
    return Sample(ids, ids)


POOLS = {
    name: Pool(size, lambda item, _, kind=kind: make(kind, item)) for kind, (name, size) in enumerate(SIZES.items())
}


def stream(**options: object) -> RowStream:
    return RowStream(MIXTURE, POOLS, row_length=ROW, chunk=16, **options)  # type: ignore[arg-type]


def key(row: PackedRow) -> tuple[int, ...]:
    return tuple(row.input_ids.tolist())


def names(rows: list[PackedRow]) -> Counter[int]:
    return Counter(int(row.input_ids[start]) for row in rows for start in (0, *row.ends[:-1]))


WHOLE = [key(row) for row in islice(stream(), 240)]


@given(world_size=st.integers(1, 7), before=st.integers(0, 25), after=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_ranks_and_a_resumption_on_others_change_nothing(world_size: int, before: int, after: int) -> None:
    ranks = [stream(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(before):
        assert [key(next(rank)) for rank in ranks] == WHOLE[step * world_size : (step + 1) * world_size]
    states = [json.loads(json.dumps(rank.state())) for rank in ranks]
    assert all(state == states[0] for state in states)
    assert len(json.dumps(states[0])) < 500
    done = before * world_size
    resumed = [stream(rank=rank, world_size=after, state=states[-1]) for rank in range(after)]
    for step in range(3):
        taken = [key(next(rank)) for rank in resumed]
        assert taken == WHOLE[done + step * after : done + (step + 1) * after]


def test_every_draw_of_the_mixture_comes_once() -> None:
    sampler, whole = MixtureSampler(MIXTURE, SIZES), stream()
    rows = [next(whole) for _ in range(150)]
    while (state := whole.state())["used"]:
        rows.append(next(whole))
    draws = [sampler.draw(position) for position in range(state["position"])]
    waiting = [draws[position] for position in state["carried"]]
    drawn = Counter(1000 * (draw.name == "qa") + draw.index for draw in draws)
    assert drawn.pop(3) == state["packed"]["over_long"] > 0
    assert names(rows) + Counter(1000 * (draw.name == "qa") + draw.index for draw in waiting) == drawn


def test_figures_go_on_where_they_were() -> None:
    unbroken = stream()
    rows = list(islice(unbroken, 30))
    resumed = stream(state=unbroken.state())
    assert [key(a) for a in islice(resumed, 50)] == [key(b) for b in islice(unbroken, 50)]
    assert resumed.report == unbroken.report
    assert resumed.report.over_long > 0 and resumed.report.longest == ROW + 1
    assert resumed.report.fill(ROW) > 0.95
    assert all(len(row) <= ROW and row.position_ids[0] == 0 for row in rows)


def test_samples_that_all_exceed_a_row_are_an_error_and_no_endless_loop() -> None:
    pools = {"long": Pool(5, lambda item, variant: make(0, 3))}
    with pytest.raises(DataError, match=r"none of the \d+ samples .* row of 50 tokens, the shortest of them has 51"):
        next(RowStream(Mixture.parse({"sets": [{"name": "long"}]}, ""), pools, row_length=ROW, chunk=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"used": "x"}, "used: got 'x'"),
        ({"packed": {"rowz": 1}}, "rowz"),
        ({"order": "0"}, "another order of samples"),
    ],
)
def test_a_foreign_state_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(state=stream().state() | change)


@pytest.mark.parametrize("options", [{"rank": 2, "world_size": 2}, {"rank": -1}])
def test_a_rank_that_does_not_exist_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="0 <= rank < world_size"):
        stream(**options)
