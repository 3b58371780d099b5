"""Tokenizing: the same shards however the work was split, interrupted or repeated."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ramp import RampSettings, RampSource, RampTokenizer

from vita_mctp.cli import main
from vita_mctp.data.manifest import decode
from vita_mctp.data.token_store import TokenStore
from vita_mctp.data.tokenize import CodecSource, Tokenized, TokenizeOptions, tokenize_manifest
from vita_mctp.errors import ConfigError, DataError, OutputError

OPTIONS = TokenizeOptions(lines_per_shard=4)
LINES = 30


def wave(path: Path, number: int) -> Path:
    """A recording of its own, 0.2 to 0.4 s."""
    samples = np.random.default_rng(number).uniform(-0.9, 0.9, 3200 + 100 * number)
    soundfile.write(path, samples, 16000)
    return path


@pytest.fixture
def codec(tmp_path: Path) -> CodecSource:
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "ramp.json").write_text('{"codebook_size": 50}')
    return RampSource("ramp", tmp_path / "codec")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """ASR samples, each with its recording; the last repeats the first's."""
    lines = []
    for number in range(LINES):
        name = wave(tmp_path / f"{number % (LINES - 1)}.wav", number % (LINES - 1)).name
        question = {"role": "user", "content": "Convert the speech to text.\n<|audio|>"}
        messages = [question, {"role": "assistant", "content": f"number {number}"}]
        lines.append(json.dumps({"messages": messages, "audios": [name]}) + "\n")
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(lines))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path: Path, manifest: Path, codec: CodecSource) -> dict[str, bytes]:
    done = tokenize_manifest(manifest, tmp_path / "whole", codec, OPTIONS)
    assert done.finished and done.shards == 8 and done.samples == LINES
    return contents(tmp_path / "whole")


def test_the_store_holds_what_the_codec_says(tmp_path: Path, manifest: Path, whole: dict[str, bytes]) -> None:
    store, tokenizer = TokenStore(tmp_path / "whole"), RampTokenizer(RampSettings(codebook_size=50))
    assert len(store) == store.audios == LINES and store.codec.name == "ramp"
    for number in range(LINES):
        stored, wave = store[number], decode((tmp_path / f"{number % (LINES - 1)}.wav").read_bytes(), "")
        assert stored.codes == (tuple(tokenizer.encode(wave).ids.tolist()),)
        assert stored.sample.messages[1].content == f"number {number}"
        assert stored.sample.where.endswith(f".safetensors:{number + 1}")
    assert store.num_codes == sum(len(store[number].codes[0]) for number in range(LINES))


def test_ranks_and_processes_change_no_byte(
    tmp_path: Path, manifest: Path, codec: CodecSource, whole: dict[str, bytes]
) -> None:
    tokenize_manifest(manifest, tmp_path / "two", codec, OPTIONS, processes=2)
    assert contents(tmp_path / "two") == whole
    (tmp_path / "20.wav").unlink()
    with pytest.raises(DataError, match=r"manifest.jsonl:21: audios\[0\]: cannot read"):
        tokenize_manifest(manifest, tmp_path / "two", codec, OPTIONS, processes=2)
    wave(tmp_path / "20.wav", 20)
    ranks = [
        tokenize_manifest(manifest, tmp_path / "ranks", codec, OPTIONS, rank=rank, world_size=3) for rank in (2, 0, 1)
    ]
    assert contents(tmp_path / "ranks") == whole
    assert [each.finished for each in ranks] == [False, False, True] and sum(each.samples for each in ranks) == LINES


def test_killed_at_any_moment_and_once_out_of_space_it_ends_the_same(
    tmp_path: Path, manifest: Path, codec: CodecSource, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(0)
    for trial in range(10):
        folder, shards = tmp_path / f"killed{trial}", generator.randint(1, 8)
        _run_killed(manifest, folder, codec, shards, generator.uniform(0, 0.02))
        found = {name: data for name, data in contents(folder).items() if not name.endswith(".part")}
        assert all(whole[name] == data for name, data in found.items())
        assert shards <= len(found) <= shards + 1
        if trial == 5:
            (folder / "shard-000007.safetensors").unlink(missing_ok=True)
            with monkeypatch.context() as full, pytest.raises(OutputError, match="No space left on device"):
                full.setattr(os, "fsync", _no_space)
                tokenize_manifest(manifest, folder, codec, OPTIONS)
        assert tokenize_manifest(manifest, folder, codec, OPTIONS).finished
        assert contents(folder) == whole


def _run_killed(manifest: Path, folder: Path, codec: CodecSource, shards: int, seconds: float) -> None:
    """In a process of its own, killed some seconds into what it does after so many shards, and before it does more."""
    context = multiprocessing.get_context("fork")
    done, permits = context.Semaphore(0), context.Semaphore(0)

    def wait_for_permit(_: object) -> None:
        done.release()
        permits.acquire()

    process = context.Process(
        target=tokenize_manifest, args=(manifest, folder, codec, OPTIONS), kwargs={"progress": wait_for_permit}
    )
    process.start()
    for _ in range(shards):
        assert done.acquire(timeout=60), "the next shard does not come"
        permits.release()
    process.join(seconds)
    process.kill()
    process.join()


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_that_counts_as_done(
    tmp_path: Path, manifest: Path, codec: CodecSource, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls, fsync = tmp_path / "full", [0], os.fsync

    def full_after_three(file: int) -> None:
        calls[0] += 1
        fsync(file) if calls[0] <= 3 else _no_space(file)

    monkeypatch.setattr(os, "fsync", full_after_three)
    with pytest.raises(OutputError, match=r"shard-000003.safetensors: No space left on device") as error:
        tokenize_manifest(manifest, folder, codec, OPTIONS)
    assert "\n" not in str(error.value)
    assert contents(folder) == {
        name: whole[name] for name in sorted(whole) if "shard-00000" in name and name < "shard-000003"
    }
    with pytest.raises(DataError, match="holds no finished token store"):
        TokenStore(folder)


def test_a_changed_recording_is_noticed_and_nothing_else_is_encoded_again(
    tmp_path: Path, manifest: Path, codec: CodecSource, whole: dict[str, bytes]
) -> None:
    folder = tmp_path / "whole"
    assert tokenize_manifest(manifest, folder, codec, OPTIONS).encoded == 0
    wave(tmp_path / "7.wav", 99)
    done = tokenize_manifest(manifest, folder, codec, OPTIONS)
    assert done.encoded == pytest.approx((3200 + 9900) / 16000) and done.finished
    changed = {name for name, data in contents(folder).items() if data != whole[name]}
    assert changed == {"shard-000001.safetensors", "index.json"}
    (codec.folder / "ramp.json").write_text('{"codebook_size": 49}')
    assert tokenize_manifest(manifest, folder, codec, OPTIONS).encoded == pytest.approx(
        TokenStore(folder).seconds, abs=0.3
    )
    assert TokenStore(folder).codec.codebook_size == 49


def test_a_damaged_shard_is_made_again(
    tmp_path: Path, manifest: Path, codec: CodecSource, whole: dict[str, bytes]
) -> None:
    shard = tmp_path / "whole" / "shard-000002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"shard-000002.safetensors is no whole token shard"):
        TokenStore(tmp_path / "whole")[9]
    tokenize_manifest(manifest, tmp_path / "whole", codec, OPTIONS)
    assert contents(tmp_path / "whole") == whole


def test_a_bad_recording_stops_the_run_or_is_left_out_and_counted(
    tmp_path: Path, manifest: Path, codec: CodecSource
) -> None:
    (tmp_path / "6.wav").write_bytes(b"noise")
    (tmp_path / "9.wav").unlink()
    with pytest.raises(DataError, match=r"manifest.jsonl:7: audios\[0\]: .* not audio"):
        tokenize_manifest(manifest, tmp_path / "strict", codec, OPTIONS)
    bad: list[str] = []
    done = tokenize_manifest(
        manifest,
        tmp_path / "kept",
        codec,
        TokenizeOptions(lines_per_shard=4, skip_bad=True),
        progress=lambda each: bad.extend(each.bad),
    )
    assert done.finished and (done.samples, done.bad) == (LINES - 2, 2)
    assert [message.partition(": ")[0] for message in bad] == [f"{manifest}:7", f"{manifest}:10"]
    assert len(TokenStore(tmp_path / "kept")) == LINES - 2
    assert json.loads((tmp_path / "kept" / "index.json").read_text())["left_out"] == 2


def given(codes: list[int], name: str = "ramp") -> dict[str, Any]:
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "<|audio|>"}]
    return {"messages": messages, "audios": [{"codes": codes, "codec": name}]}


def test_given_codes_are_taken_if_they_are_this_codec_s(tmp_path: Path, codec: CodecSource) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text(json.dumps(given([1, 49])))
    tokenize_manifest(path, tmp_path / "given", codec)
    store = TokenStore(tmp_path / "given")
    assert store[0].codes == ((1, 49),) and store.seconds == 2 / 12.5
    for sample in (given([50]), given([1], "nano")):
        path.write_text(json.dumps(sample))
        with pytest.raises(
            DataError, match=r"given.jsonl:1: audios\[0\]: got codes up to .* those of ramp in \[0, 50\)"
        ):
            tokenize_manifest(path, tmp_path / "given", codec)


def test_the_command_checks_and_tokenizes(
    tmp_path: Path, manifest: Path, codec: CodecSource, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(manifest), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["problems"] == [] and checked["summary"]["samples"] == {"asr": LINES}
    ramp = ["--codec", "ramp", "--codec-folder", str(codec.folder), "--lines-per-shard", "4"]
    command = ["tokenize", str(manifest), "--out", str(tmp_path / "out"), *ramp]
    assert main([*command, "--world-size", "2"]) == 0
    assert capsys.readouterr().out.endswith("shards of other ranks are still missing\n")
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("8 shards, 30 samples, ") and printed.out.endswith("out is whole\n")
    assert printed.err == ""
    (tmp_path / "3.wav").write_bytes(b"noise")
    assert main(command) == 2
    assert f"error: {manifest}:4: audios[0]" in capsys.readouterr().err
    assert main(["data", "check", str(manifest)]) == 1
    assert capsys.readouterr().out.startswith(f"{manifest}:4: audios[0]")
    assert main([*command, "--codec-folder", str(tmp_path / "none")]) == 2
    assert main(["tokenize", str(manifest), "--out", str(tmp_path), "--codec", "ramp"]) == 2
    assert "needs --codec-folder" in capsys.readouterr().err


def test_ranks_that_do_not_exist_are_refused(tmp_path: Path, manifest: Path, codec: CodecSource) -> None:
    for options in ({"rank": 1}, {"rank": -1}, {"processes": 0}):
        with pytest.raises(ConfigError, match="wanted 0 <= rank < world size"):
            tokenize_manifest(manifest, tmp_path / "out", codec, **options)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path, manifest: Path, codec: CodecSource) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        tokenize_manifest(manifest, manifest / "under", codec)


def test_more_ranks_than_shards_do_nothing(tmp_path: Path, manifest: Path, codec: CodecSource) -> None:
    done = tokenize_manifest(manifest, tmp_path / "out", codec, rank=3, world_size=4)
    assert done == Tokenized(0, 0, 0, 0, 0, finished=False)
