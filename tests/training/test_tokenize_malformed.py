"""Five hundred malformed manifests, mixtures and shards: each is one error with its file, and its line if it has lines.

The damage is drawn from a seed: bytes changed, cut, doubled or taken from elsewhere, and values of a wrong kind put
where others belong. Damage that happens to leave a sound file is drawn again.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from plus_parts import write_sensevoice
from safetensors.numpy import load, save

from vita_mctp.data.manifest import read_manifest
from vita_mctp.data.mixture import Mixture
from vita_mctp.data.token_store import StoredSample, TokenStore
from vita_mctp.data.tokenize import CodecSource, tokenize_manifest
from vita_mctp.errors import ConfigError, DataError, VitaError

WRONG: list[Any] = [None, True, -1, 3.5, 10**30, "", " ", "\0", "x", "<|audio|>", "<|im_end|>", [], [[]], {}, {"a": 1}]
LINES = 6


def lines() -> list[dict[str, Any]]:
    question = "Convert the speech to text.\n<|audio|>"
    audios: list[Any] = [
        "a.wav",
        "t.tar::a",
        {"tar": "t.tar", "offset": 0, "size": 9},
        {"codes": [1, 2], "codec": "ramp"},
    ]
    return [
        {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"answer {number}"}],
            "audios": [audios[number % len(audios)]],
            "id": str(number),
        }
        for number in range(LINES)
    ]


def slots(values: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value within."""
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else []
    return [pair for key in keys for pair in ((values, key), *slots(values[key]))]


def spoil_values(values: Any, draw: random.Random) -> None:
    container, key = draw.choice(slots(values))
    kind = draw.randrange(3)
    if kind == 0:
        container[key] = draw.choice(WRONG)
    elif kind == 1:
        del container[key]
    elif isinstance(container, dict):
        container[draw.choice(["surplus", "weight", "audio"])] = container.pop(key)
    else:
        container.insert(key, draw.choice(WRONG))


def spoil_bytes(data: bytes, draw: random.Random, start: int = 0) -> bytes:
    where = draw.randrange(start, len(data))
    other = bytes(draw.randrange(256) for _ in range(draw.choice([1, 1, 4, 40])))
    return draw.choice(
        [
            data[:where],
            data[:where] + data[where + 1 :],
            data[:where] + other + data[where + len(other) :],
            data[:where] + other + data[where:],
            data[:where] + data[where // 2 :],
        ]
    )


def malformed_manifest(path: Path, draw: random.Random) -> int | None:
    """Writes it; the line that was spoilt, None where a line break may have been."""
    values, number = lines(), draw.randrange(LINES)
    if draw.random() < 0.7:
        spoil_values(values[number], draw)
        path.write_text("".join(json.dumps(line) + "\n" for line in values))
        return number + 1
    path.write_bytes(spoil_bytes("".join(json.dumps(line) + "\n" for line in values).encode(), draw))
    return None


def malformed_mixture(path: Path, draw: random.Random) -> None:
    values = {"seed": 3, "sets": [{"name": n, "path": f"asr/{n}", "ratio": 0.5} for n in ("a", "b", "c")]}
    if draw.random() < 0.7:
        spoil_values(values, draw)
        path.write_text(yaml.safe_dump(values))
    else:
        path.write_bytes(spoil_bytes(yaml.safe_dump(values).encode(), draw))


def malformed_store(folder: Path, files: dict[str, bytes], draw: random.Random) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    name = draw.choice(sorted(files))
    if name == "index.json":
        values = json.loads(files[name])
        spoil_values(values, draw)
        (folder / name).write_text(json.dumps(values))
    elif draw.random() < 0.5:
        tensors = load(files[name])
        header = json.loads(files[name][8 : 8 + int.from_bytes(files[name][:8], "little")])["__metadata__"]["shard"]
        tensor = draw.choice([name for name, values in tensors.items() if values.size])
        spoilt = tensors[tensor].copy()
        spoilt.reshape(-1)[draw.randrange(spoilt.size)] = draw.choice([0, 1, 255, 99])
        tensors[tensor] = draw.choice([spoilt, spoilt[:-1], spoilt.astype("float32")])
        (folder / name).write_bytes(save(tensors, metadata={"shard": header}))
    else:
        (folder / name).write_bytes(spoil_bytes(files[name], draw))


def error_of(read: Callable[[], object]) -> VitaError | None:
    try:
        read()
    except (DataError, ConfigError) as error:
        return error
    return None


def check(error: VitaError, path: Path) -> None:
    message = str(error)
    assert str(path) in message and "\n" not in message and len(message) < 1000, message


def test_manifests(tmp_path: Path) -> None:
    path, draw, found = tmp_path / "m.jsonl", random.Random(1), 0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    whole = list(read_manifest(path))
    while found < 200:
        number = malformed_manifest(path, draw)
        error = error_of(lambda: [assert_full(sample.messages) for sample in read_manifest(path)])
        if error is None:
            continue
        found += 1
        check(error, path)
        where = re.search(rf"{re.escape(str(path))}:(\d+): ", str(error))
        assert where or "is empty" in str(error)
        assert number is None or (where is not None and int(where.group(1)) == number), str(error)
    assert len(whole) == LINES


def assert_full(messages: Any) -> None:
    assert messages and all(message.content.strip() for message in messages)


def test_mixtures(tmp_path: Path) -> None:
    path, draw, found = tmp_path / "mixture.yaml", random.Random(2), 0
    while found < 120:
        malformed_mixture(path, draw)
        error = error_of(lambda: Mixture.from_file(path))
        if error is not None:
            found += 1
            check(error, path)


@pytest.fixture(params=["codes", "codes and features"])
def store_files(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, bytes]:
    codec, manifest = tmp_path / "codec", tmp_path / "m.jsonl"
    codec.mkdir()
    (codec / "ramp.json").write_text("{}")
    source = CodecSource("ramp", codec)
    audios: list[Any] = [{"codes": [n + 1, 2, 3], "codec": "ramp"} for n in range(LINES)]
    if request.param != "codes":
        write_sensevoice(tmp_path / "sensevoice")
        source = CodecSource("ramp", codec, features=tmp_path / "sensevoice")
        audios = [f"{n}.wav" for n in range(LINES)]
        for n, name in enumerate(audios):
            soundfile.write(tmp_path / name, np.random.default_rng(n).uniform(-0.9, 0.9, 3000), 16000)
    samples = [line | {"audios": [audio]} for line, audio in zip(lines(), audios, strict=True)]
    manifest.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    tokenize_manifest(manifest, tmp_path / "whole", source)
    return {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}


def test_shards(tmp_path: Path, store_files: dict[str, bytes]) -> None:
    """Changed codes and words that are still codes and words cannot be told from others; nothing is ever empty."""
    draw, found = random.Random(3), 0
    (tmp_path / "store").mkdir()
    while found < 120:
        malformed_store(tmp_path / "store", store_files, draw)
        error = error_of(lambda: [assert_sound(sample) for sample in _all(TokenStore(tmp_path / "store"))])
        if error is not None:
            found += 1
            check(error, tmp_path / "store")


def _all(store: TokenStore) -> list[StoredSample]:
    assert len(store) > 0
    samples = [store[number] for number in range(len(store))]
    for number, sample in enumerate(samples):
        if sample.positions[0]:
            assert np.isfinite(store.features(number, 0).frames).all()
    return samples


def assert_sound(stored: StoredSample) -> None:
    assert_full(stored.sample.messages)
    assert len(stored.codes) == 1 and stored.codes[0] and all(0 <= code < 64 for code in stored.codes[0])
