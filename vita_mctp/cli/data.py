"""`vita-mctp data ...` and `vita-mctp tokenize`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vita_mctp.cli import write, write_to
from vita_mctp.cli.options import Device, Json, arg, command, flag, new_app, opt
from vita_mctp.errors import ConfigError

if TYPE_CHECKING:
    from vita_mctp.data.tokenize import ShardDone

CHECK_FAILED = 1

app, data = new_app(), new_app()
app.add_typer(data, name="data")

_FEATURES = "SenseVoiceSmall's, with am.mvn, or whisper: keep also what VITA-Audio-Plus or VocalNet hears"

_MOST_SECONDS = 86_400.0


def _seconds(value: float) -> float:
    if not 0 < value <= _MOST_SECONDS:  # as no NaN is
        raise typer.BadParameter(f"wanted seconds, more than 0 and at most {_MOST_SECONDS:g}")
    return value


MaxSeconds = Annotated[float, opt("S", "a longer recording is a problem", callback=_seconds)]


@command(data, help="find every problem of manifests, with file and line; sum up hours and lengths")
def check(
    manifests: Annotated[list[Path], arg("MANIFEST", "JSONL files")],
    as_json: Json = False,
    max_seconds: MaxSeconds = 600.0,
) -> int:
    """1 if there is any problem."""
    from vita_mctp.data.manifest import ManifestCheck

    problems: list[str] = []
    found = ManifestCheck(problems.append if as_json else _line, max_seconds)
    for manifest in manifests:
        found.read(manifest)
    summary = found.summary()
    if as_json:
        _line(json.dumps({"problems": problems, "summary": summary}))
    else:
        for key, value in summary.items():
            _line(f"{key:<13} {_shown(value)}")
    return CHECK_FAILED if found.problems else 0


@command(data, help="stream a set of the paper from the hub: its audio and a manifest (extra data)")
def from_hub(
    name: Annotated[str, arg("NAME", "as in data_mixtures/SOURCES.md")],
    out: Annotated[Path, opt("FOLDER", "for audio and manifest.jsonl")],
    limit: Annotated[int | None, opt("N", "rows at most (default: all)", min=1)] = None,
) -> None:
    """Prints the manifest's path and what it holds."""
    from vita_mctp.data.hub import fetch, find_hub_set

    fetched = fetch(find_hub_set(name), out, limit)
    _line(f"{fetched.manifest}: {fetched.samples} samples, {fetched.skipped} rows left out (no text or no recording)")


@command(app)
def tokenize(
    manifest: Annotated[Path, arg("MANIFEST", "a JSONL file")],
    out: Annotated[Path, opt("FOLDER", "for shards and their index")],
    codec: Annotated[str, opt("NAME", "audio tokenizer")] = "nano",
    codec_folder: Annotated[Path | None, opt("FOLDER", "its weights (default: those of the model nano)")] = None,
    features: Annotated[Path | None, opt("FOLDER", _FEATURES)] = None,
    device: Device = "cpu",
    rank: Annotated[int, opt("N", "of this machine among several")] = 0,
    world_size: Annotated[int, opt("N", "machines")] = 1,
    processes: Annotated[int, opt("N", "on this machine")] = 1,
    lines_per_shard: Annotated[int, opt("N", "of the manifest")] = 1024,
    skip_bad: Annotated[bool, flag("--skip-bad", "leave unusable recordings out, and count them")] = False,
    max_seconds: MaxSeconds = 600.0,
) -> None:
    """Prints what is left out to standard error, and the sum at the end."""
    from vita_mctp.checkpoints.options import check_device
    from vita_mctp.data.tokenize import CodecSource, TokenizeOptions, tokenize_manifest

    check_device(device)
    source = CodecSource(codec, _codec_folder(codec, codec_folder), device, features)
    options = TokenizeOptions(lines_per_shard, max_seconds, skip_bad)
    start = time.perf_counter()
    split = {"rank": rank, "world_size": world_size, "processes": processes}
    done = tokenize_manifest(manifest, out, source, options, **split, progress=_show_problems)
    speed = done.encoded / (time.perf_counter() - start)
    _line(
        f"{done.shards} shards, {done.samples} samples, {done.seconds / 3600:.4f} h of audio, of which "
        f"{done.encoded / 3600:.4f} h encoded now at {speed:.1f} h an hour, {speed / processes:.1f} h per core-hour; "
        f"{done.bad} samples left out"
    )
    _line(f"{out} is whole" if done.finished else "shards of other ranks are still missing")


def _codec_folder(codec: str, folder: Path | None) -> Path:
    from vita_mctp.checkpoints.opening import NANO, find_model

    if folder is not None:
        return folder
    if codec != NANO:
        raise ConfigError(f"the codec {codec} needs --codec-folder, the folder with its weights; give it")
    return find_model(NANO) / "codec"


def _show_problems(done: ShardDone) -> None:
    for problem in done.bad:
        write_to(sys.stderr, f"left out: {problem}\n")


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key} {each}" for key, each in value.items()) or "none"


def _line(text: str) -> None:
    write(text + "\n")
