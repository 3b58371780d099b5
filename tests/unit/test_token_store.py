"""Shards of tokenised samples: what is written comes back, and damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_mctp.data.token_store import TokenStore, write_token_store
from vita_mctp.errors import DataError, OutputError
from vita_mctp.text import IGNORED, FeatureSpan, Sample

SAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 200_000), st.booleans()), min_size=1, max_size=12).map(
        lambda pairs: Sample(
            tuple(token for token, _ in pairs), tuple(token if trained else IGNORED for token, trained in pairs)
        )
    ),
    max_size=20,
)
THREE = [Sample((1, 2, 3), (IGNORED, 2, 3)), Sample((4,), (4,)), Sample((5, 6), (IGNORED, IGNORED))]


@given(samples=SAMPLES, per_shard=st.integers(1, 8))
def test_samples_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = write_token_store(folder, iter(samples), per_shard)
    assert list(store) == samples == [TokenStore(folder)[index] for index in range(len(samples))]
    assert (len(store), store.tokens) == (len(samples), sum(map(len, samples)))
    for outside in (-1, len(samples)):
        with pytest.raises(IndexError):
            store[outside]


def test_interrupted_write_leaves_no_store(tmp_path: Path) -> None:
    write_token_store(tmp_path, THREE)

    def failing() -> object:
        yield THREE[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_store(tmp_path, failing(), samples_per_shard=1)
    with pytest.raises(DataError, match="no finished token store"):
        TokenStore(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    assert list(write_token_store(tmp_path, THREE, 2)) == THREE


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_token_store(tmp_path, THREE)
    shard = tmp_path / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is damaged"):
        TokenStore(tmp_path)[0]
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is damaged"):
        TokenStore(tmp_path)[0]
    (tmp_path / "index.json").write_text('{"shards": 3}')
    with pytest.raises(DataError, match=r"index\.json is no index"):
        TokenStore(tmp_path)


def test_what_a_store_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="audio features"):
        write_token_store(tmp_path, [Sample((1, 2), (IGNORED, 2), (FeatureSpan(0, 0, 1),))])
    with pytest.raises(DataError, match="equal their ids"):
        write_token_store(tmp_path, [Sample((1, 2), (IGNORED, 3))])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_token_store(tmp_path / "file", THREE)
