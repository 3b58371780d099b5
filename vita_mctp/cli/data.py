"""`vita-mctp data ...` and `vita-mctp tokenize`: their options and what they do."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vita_mctp.errors import ConfigError

if TYPE_CHECKING:
    from vita_mctp.data.tokenize import ShardDone

CHECK_FAILED = 1

AddCommand = Callable[[Any, str, str], argparse.ArgumentParser]
"""(sub-commands, name, summary) -> the parser of a new one."""


def add_parsers(commands: Any, add: AddCommand, parser_class: type[argparse.ArgumentParser]) -> None:
    """The two commands' options."""
    data = add(commands, "data", "check and fetch what there is to train on")
    actions = data.add_subparsers(metavar="ACTION", required=True, parser_class=parser_class)
    check = add(actions, "check", "find every problem of manifests, with file and line; sum up hours and lengths")
    check.add_argument("manifests", nargs="+", metavar="MANIFEST", help="JSONL files")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    _add_max_seconds(check)
    check.set_defaults(module=__name__, command="data_check")

    hub = add(actions, "from-hub", "stream a set of the paper from the hub: its audio and a manifest (extra data)")
    hub.add_argument("name", metavar="NAME", help="as in data_mixtures/SOURCES.md")
    hub.add_argument("--out", required=True, metavar="FOLDER", help="for audio and manifest.jsonl")
    hub.add_argument("--limit", type=int, default=None, metavar="N", help="rows at most (default: all)")
    hub.set_defaults(module=__name__, command="data_from_hub")

    report = add(actions, "pack-report", "show how full each way of packing makes rows")
    report.add_argument("lengths", metavar="FILE", help="one length of a sample, in tokens, a line")
    report.add_argument("--row-length", type=int, default=8192, metavar="N", help="default: %(default)s")
    report.set_defaults(module=__name__, command="data_pack_report")

    tokenize = add(commands, "tokenize", "turn a manifest's audio into token shards; run again, it goes on")
    tokenize.add_argument("manifest", metavar="MANIFEST", help="a JSONL file")
    tokenize.add_argument("--out", required=True, metavar="FOLDER", help="for shards and their index")
    tokenize.add_argument("--codec", default="nano", metavar="NAME", help="audio tokenizer (default: %(default)s)")
    tokenize.add_argument("--codec-folder", metavar="FOLDER", help="its weights (default: those of the model nano)")
    features = "SenseVoiceSmall's, with am.mvn: keep also the features that VITA-Audio-Plus hears"
    tokenize.add_argument("--features", type=Path, metavar="FOLDER", help=features)
    tokenize.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: %(default)s)")
    tokenize.add_argument("--rank", type=int, default=0, help="of this machine among several (default: %(default)s)")
    tokenize.add_argument("--world-size", type=int, default=1, help="machines (default: %(default)s)")
    tokenize.add_argument("--processes", type=int, default=1, help="on this machine (default: %(default)s)")
    tokenize.add_argument("--lines-per-shard", type=int, default=1024, metavar="N", help="default: %(default)s")
    tokenize.add_argument("--skip-bad", action="store_true", help="leave unusable recordings out, and count them")
    tokenize.add_argument("--ray", action="store_true", help="on a Ray cluster that shares the folders (extra cluster)")
    _add_max_seconds(tokenize)
    tokenize.set_defaults(module=__name__)


def data_check(options: argparse.Namespace) -> int:
    """1 if there is any problem."""
    from vita_mctp.data.check import ManifestCheck

    problems: list[str] = []
    check = ManifestCheck(problems.append if options.json else _print, options.max_seconds)
    for manifest in options.manifests:
        check.read(Path(manifest))
    summary = check.summary.as_dict()
    if options.json:
        _print(json.dumps({"problems": problems, "summary": summary}))
    else:
        for key, value in summary.items():
            _print(f"{key:<13} {_shown(value)}")
    return CHECK_FAILED if check.summary.problems else 0


def data_from_hub(options: argparse.Namespace) -> int:
    """Prints the manifest's place and what it holds."""
    from vita_mctp.data.hub import fetch, find_hub_set

    fetched = fetch(find_hub_set(options.name), Path(options.out), options.limit)
    _print(f"{fetched.manifest}: {fetched.samples} samples, {fetched.skipped} rows left out (no text or no recording)")
    return 0


def data_pack_report(options: argparse.Namespace) -> int:
    """One line for each way."""
    from vita_mctp.data.packing import fills, read_lengths

    lengths = read_lengths(Path(options.lengths))
    over_long = sum(length > options.row_length for length in lengths)
    _print(f"{len(lengths)} samples, {sum(lengths)} tokens, {over_long} longer than a row of {options.row_length}")
    for way, share in fills(lengths, options.row_length).items():
        _print(f"{way:<38} {share:7.2%}")
    return 0


def tokenize(options: argparse.Namespace) -> int:
    """Prints a line for each shard to standard error, and the sum at the end."""
    from vita_mctp.data.tokenize import CodecSource, TokenizeOptions
    from vita_mctp.data.tokenize_run import tokenize_manifest

    source = CodecSource(options.codec, _codec_folder(options), options.device, options.features)
    wanted = TokenizeOptions(options.lines_per_shard, options.max_seconds, options.skip_bad)
    start = time.perf_counter()
    manifest, folder = Path(options.manifest), Path(options.out)
    if options.ray:
        from vita_mctp.data.tokenize_run import tokenize_on_ray

        done = tokenize_on_ray(manifest, folder, source, wanted, _show_shard)
    else:
        split = {"rank": options.rank, "world_size": options.world_size, "processes": options.processes}
        done = tokenize_manifest(manifest, folder, source, wanted, **split, progress=_show_shard)
    hours = (time.perf_counter() - start) / 3600
    speed = f"{done.encoded / 3600 / hours:.1f} h an hour"
    if not options.ray:
        speed += f", {done.encoded / 3600 / hours / options.processes:.1f} h per core-hour"
    _print(
        f"{done.shards} shards, {done.samples} samples, {done.seconds / 3600:.4f} h of audio, of which "
        f"{done.encoded / 3600:.4f} h encoded now at {speed}; {done.bad} samples left out"
    )
    _print(f"{options.out} is whole" if done.finished else "shards of other ranks are still missing")
    return 0


def _codec_folder(options: argparse.Namespace) -> Path:
    from vita_mctp.checkpoints.settings import NANO, find_model

    if options.codec_folder is not None:
        return Path(options.codec_folder)
    if options.codec != NANO:
        raise ConfigError(f"the codec {options.codec} needs --codec-folder, the folder with its weights; give it")
    return find_model(NANO) / "codec"


def _show_shard(done: ShardDone) -> None:
    for problem in done.bad:
        _print(f"left out: {problem}", sys.stderr)
    _print(f"shard {done.group}: {done.samples} samples, {done.seconds:.1f} s of audio", sys.stderr)


def _add_max_seconds(parser: argparse.ArgumentParser) -> None:
    what = "a longer recording is a problem (default: %(default)s)"
    parser.add_argument("--max-seconds", type=float, default=600.0, metavar="S", help=what)


def _shown(value: Any) -> str:
    return (
        ", ".join(f"{key} {each}" for key, each in value.items()) or "none" if isinstance(value, dict) else str(value)
    )


def _print(line: str, stream: TextIO | None = None) -> None:
    from vita_mctp.cli.talk import write_text

    write_text(sys.stdout if stream is None else stream, line + "\n")
