"""`vita-mctp convert ...`: its options and what it does; each prints the files or the folder written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

AddCommand = Callable[[Any, str, str], argparse.ArgumentParser]
"""(sub-commands, name, summary) -> the parser of a new one."""


def add_parsers(commands: Any, add: AddCommand, parser_class: type[argparse.ArgumentParser]) -> None:
    """The command's options."""
    convert = add(commands, "convert", "bring a checkpoint into another form")
    forms = convert.add_subparsers(metavar="FORM", required=True, parser_class=parser_class)

    qwen = _add_form(add, forms, "qwen", "give a Qwen2.5 base the audio tokens, to train speech into")
    qwen.add_argument(
        "--kind", default="glm4voice", help="glm4voice, or sensevoice_glm4voice for Plus (default: first)"
    )
    qwen.add_argument("--mctp-blocks", type=int, default=0, metavar="K", help="to append (default: %(default)s)")
    qwen.add_argument("--seed", type=int, default=0, help="of new rows and the first block (default: %(default)s)")
    _add_shard_size(qwen)

    plus = _add_form(add, forms, "plus", "give a Qwen2.5 base SenseVoiceSmall's encoder, to train VITA-Audio-Plus")
    plus.add_argument("--sensevoice", required=True, metavar="FOLDER", help="with model.pt, which hears")
    plus.add_argument("--seed", type=int, default=0, help="of new rows and the projector (default: %(default)s)")
    _add_shard_size(plus)

    shards = _add_form(add, forms, "shards", "merge or split a checkpoint's weight files")
    _add_shard_size(shards)

    _add_form(add, forms, "decoder", "write a released audio decoder (flow.pt, hift.pt) in safetensors")


def convert_qwen(options: argparse.Namespace) -> int:
    """A base in, stage-1 form out."""
    from vita_mctp.checkpoints.conversion import convert_qwen

    blocks, seed, size = options.mctp_blocks, options.seed, options.max_shard_size
    source, target = Path(options.source), Path(options.target)
    return _show([convert_qwen(source, target, options.kind, num_mctp_blocks=blocks, seed=seed, max_shard_size=size)])


def convert_plus(options: argparse.Namespace) -> int:
    """A base and an encoder in, what stage 1 of Plus begins with out."""
    from vita_mctp.checkpoints.conversion import convert_plus

    source, target, ears = Path(options.source), Path(options.target), Path(options.sensevoice)
    return _show([convert_plus(source, ears, target, seed=options.seed, max_shard_size=options.max_shard_size)])


def convert_shards(options: argparse.Namespace) -> int:
    """A checkpoint in, the same in files of another size out."""
    from vita_mctp.checkpoints.shards import parse_size, reshard

    return _show(reshard(Path(options.source), Path(options.target), parse_size(options.max_shard_size)))


def convert_decoder(options: argparse.Namespace) -> int:
    """A decoder's folder in, the same without pickles out."""
    from vita_mctp.codecs.glm4_voice.decoder import convert_decoder

    return _show(convert_decoder(Path(options.source), Path(options.target)))


def _add_form(add: AddCommand, forms: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser = add(forms, name, summary)
    parser.add_argument("source", metavar="IN", help="a folder")
    parser.add_argument("target", metavar="OUT", help="a new folder")
    parser.set_defaults(module=__name__, command=f"convert_{name}")
    return parser


def _add_shard_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a weight file (default: %(default)s)"
    )


def _show(written: list[Path]) -> int:
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0
