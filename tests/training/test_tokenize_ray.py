"""On Ray the store is the same, byte for byte, and so are the errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vita_mctp.data.tokenize import CodecSource, TokenizeOptions, tokenize_manifest, tokenize_on_ray
from vita_mctp.errors import DataError

ray = pytest.importorskip("ray")
OPTIONS = TokenizeOptions(lines_per_shard=3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def given(codes: list[int]) -> dict[str, Any]:
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "<|audio|>"}]
    return {"messages": messages, "audios": [{"codes": codes, "codec": "ramp"}]}


def test_the_same_store_and_the_same_error(tmp_path: Path, cluster: None) -> None:
    manifest, codec = tmp_path / "m.jsonl", CodecSource("ramp", tmp_path / "codec")
    codec.folder.mkdir()
    (codec.folder / "ramp.json").write_text("{}")
    manifest.write_text("".join(json.dumps(given([n, n + 1])) + "\n" for n in range(10)))
    alone = tokenize_manifest(manifest, tmp_path / "alone", codec, OPTIONS)
    assert tokenize_on_ray(manifest, tmp_path / "ray", codec, OPTIONS) == alone
    stores = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "ray")]
    assert stores[0] == stores[1] and len(stores[0]) == 5
    manifest.write_text(manifest.read_text() + "{\n")
    with pytest.raises(DataError, match=r"m\.jsonl:11: no JSON object"):
        tokenize_on_ray(manifest, tmp_path / "ray", codec, OPTIONS)
