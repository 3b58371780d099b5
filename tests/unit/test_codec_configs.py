"""Broken configurations of every codec: one line that names the file, never a traceback, never memory to match."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vita_mctp
from vita_mctp.codecs.registry import audio_decoder, audio_tokenizer
from vita_mctp.codecs.s3_tokenizer import S3Config
from vita_mctp.errors import CheckpointError, ConfigError

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"
GLM = GOLDENS / "glm4_voice"
NANO = Path(vita_mctp.__file__).parent / "assets" / "nano" / "codec"
RAMP = {"codebook_size": 64, "num_codebooks": 1, "sample_rate": 16_000, "look_ahead": 2, "frame_rate_numerator": 25}
OPENERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "glm4 decoder": (lambda folder: audio_decoder("glm4_voice", folder), "config.json"),
    "glm4 tokenizer": (lambda folder: audio_tokenizer("glm4_voice", folder), "config.json"),
    "glm4 features": (lambda folder: audio_tokenizer("glm4_voice", folder), "preprocessor_config.json"),
    "nano decoder": (lambda folder: audio_decoder("nano", folder), "config.json"),
    "nano tokenizer": (lambda folder: audio_tokenizer("nano", folder), "config.json"),
    "cosyvoice2 decoder": (lambda folder: audio_decoder("cosyvoice2", folder), "config.json"),
    "s3 tokenizer": (lambda folder: audio_tokenizer("s3_tokenizer", folder), "config.json"),
    "xy tokenizer": (lambda folder: audio_tokenizer("xy_tokenizer", folder), "config.json"),
    "xy decoder": (lambda folder: audio_decoder("xy_tokenizer", folder), "config.json"),
    "ramp": (lambda folder: audio_decoder("ramp", folder), "ramp.json"),
}
WRONG = [None, "", "8", -1, 0, 1, 3, 7, 10**6, 10**12, 1e300, 2.5, True, [], [0], [10**12], {}, {"a": 1}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, cosyvoice2_folder: Callable[..., Path]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codecs")
    sources = {"glm4": GLM / "decoder", "tokenizer": GLM / "tokenizer" / "model", "nano": NANO}
    copies = {name: Path(shutil.copytree(source, root / name)) for name, source in sources.items()}
    (root / "ramp").mkdir()
    (root / "ramp" / "ramp.json").write_text(json.dumps(RAMP))
    copies["cosyvoice2"] = cosyvoice2_folder(GOLDENS / "cosyvoice2", {})
    for name in ("s3", "xy"):
        (root / name).mkdir()
        golden = GOLDENS / f"{name}_tokenizer"
        (root / name / "model.safetensors").symlink_to(golden / "model.safetensors")
        sizes = json.loads((golden / "index.json").read_text())["config"]
        values = {key: sizes[key] for key in S3Config.model_fields if key in sizes} if name == "s3" else sizes
        (root / name / "config.json").write_text(json.dumps(values))
        copies[name] = root / name
    by_opener = {"glm4 decoder": "glm4", "glm4 tokenizer": "tokenizer", "glm4 features": "tokenizer"}
    return {name: copies.get(by_opener.get(name, name.split()[0]), root / "ramp") for name in OPENERS}


def leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of nested mappings and lists lies, containers included."""
    if path:
        yield path
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(values) if isinstance(values, dict) else list(values)
    copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


def opens_or_says_why(name: str, folder: Path, text: bytes) -> None:
    opener, file = OPENERS[name]
    whole = (folder / file).read_bytes()
    try:
        (folder / file).write_bytes(text)
        opener(folder)
    except (CheckpointError, ConfigError) as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    finally:
        (folder / file).write_bytes(whole)


@pytest.mark.parametrize("name", OPENERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_wrong_value_is_one_line(name: str, folders: dict[str, Path], data: st.DataObject) -> None:
    values = json.loads((folders[name] / OPENERS[name][1]).read_text())
    path = data.draw(st.sampled_from(list(leaves(values))))
    text = json.dumps(changed(values, path, data.draw(st.sampled_from(WRONG))))
    opens_or_says_why(name, folders[name], text.encode())


@pytest.mark.parametrize("name", OPENERS)
@pytest.mark.parametrize("text", [b"", b"null", b"[]", b'"a"', b"\xff\xfe", b"{" * 9, b"[" * 50_000, b'{"a": 1}'])
def test_a_file_that_is_no_configuration_is_named(name: str, folders: dict[str, Path], text: bytes) -> None:
    opens_or_says_why(name, folders[name], text)


def test_a_few_lines_of_yaml_cannot_stand_for_all_memory(folders: dict[str, Path]) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    opens_or_says_why("glm4 decoder", folders["glm4 decoder"], "\n".join(lines).encode())


@pytest.mark.parametrize("name", ["s3 tokenizer", "xy tokenizer", "xy decoder"])
@pytest.mark.parametrize("kept", [0, 9, -200])
def test_a_weight_file_cut_short_is_one_line(name: str, kept: int, folders: dict[str, Path], tmp_path: Path) -> None:
    opener, file = OPENERS[name]
    shutil.copyfile(folders[name] / file, tmp_path / file)
    (tmp_path / "model.safetensors").write_bytes((folders[name] / "model.safetensors").read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut short") as caught:
        opener(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["glm4 decoder", "nano decoder", "nano tokenizer", "glm4 tokenizer"])
def test_every_size_has_a_bound(name: str, folders: dict[str, Path]) -> None:
    opener, file = OPENERS[name]
    path = folders[name] / file
    whole = path.read_bytes()
    values = json.loads(whole)
    try:
        opener(folders[name])  # as it is, it opens
        known = [leaf for leaf in leaves(values) if type(at(values, leaf)) is int]
        for leaf in known:
            path.write_text(json.dumps(changed(values, leaf, 10**12)))
            try:
                opener(folders[name])
            except CheckpointError as error:
                assert str(leaf[-1]) in str(error) or str(leaf[0]) in str(error)
            else:
                assert name == "glm4 tokenizer"  # whose file has many keys that are passed over
    finally:
        path.write_bytes(whole)


def at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values
