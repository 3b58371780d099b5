"""The command `vita-mctp`: reads the command line, calls the library, prints what comes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from vita_mctp import __version__
from vita_mctp.cli import bench as bench_commands
from vita_mctp.cli import convert as convert_commands
from vita_mctp.cli import data as data_commands
from vita_mctp.cli import evaluate as evaluation_commands
from vita_mctp.errors import VitaError

PROGRAM = "vita-mctp"
USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as every other error of this command does."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{PROGRAM}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 done, 1 a check failed, 2 a wrong input or option, 130 interrupted, 141 the reader left."""
    options = build_parser().parse_args(arguments)
    for library in ("torchao", "torch.utils._pytree"):
        # transformers imports torchao wherever it is installed, which then warns of GPU kernels that a CPU lacks
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        module = getattr(options, "module", "vita_mctp.cli.talk")
        code: int = getattr(import_module(module), options.command)(options)
        return code
    except VitaError as error:
        return _complain(str(error), USAGE_ERROR)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more
        return BROKEN_PIPE


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog=PROGRAM, description="Ask a speech language model, and hear it answer.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    ask = _add(commands, "ask", "answer a spoken question aloud")
    ask.add_argument("question", help='a wav, flac, ogg or mp3 file; "-" is standard input')
    _add_output(ask, "answer.wav")
    _add_voice_prompt(ask)
    _add_decoding(ask)

    say = _add(commands, "say", "speak a text")
    say.add_argument("text", help="what to say")
    _add_output(say, "speech.wav")
    _add_voice_prompt(say)
    _add_decoding(say)

    transcribe = _add(commands, "transcribe", "write down what a recording says")
    transcribe.add_argument("speech", help='a wav, flac, ogg or mp3 file; "-" is standard input')
    _add_decoding(transcribe, default="vanilla")

    demo = _add(commands, "demo", "open a page to talk to the model")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    demo.add_argument("--port", type=_port, default=7860, help="port to listen on (default: %(default)s)")
    _add_model(demo)

    doctor = _add(commands, "doctor", "show versions and devices, and whether the model answers rightly")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    _add_model(doctor)

    _add_train(commands)
    data_commands.add_parsers(commands, _add, _Parser)
    convert_commands.add_parsers(commands, _add, _Parser)
    evaluation_commands.add_parsers(commands, _add, _Parser, _add_model)
    bench_commands.add_parsers(commands, _add, _Parser)
    return parser


def _add(commands: argparse._SubParsersAction[_Parser], name: str, summary: str) -> _Parser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:], allow_abbrev=False)
    parser.set_defaults(command=name)
    return parser


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = _add(commands, "train", "train a model by a recipe; run again, it goes on")
    what = "a stage's YAML file; nano: from nothing, speech is made with flite and espeak-ng"
    train.add_argument("recipe", metavar="RECIPE|nano", help=what)
    change = "change a key of the recipe, such as data.row_length=4096; may be repeated"
    train.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help=change)
    train.add_argument("--plan", action="store_true", help="say what it would train and take; train nothing")
    train.add_argument("--out", metavar="FOLDER", help="for checkpoints (default: runs; for nano runs/nano)")
    train.add_argument("--recipes", default="stages/nano", metavar="FOLDER", help="of nano (default: %(default)s)")
    train.add_argument("--processes", type=int, default=1, help="for making nano's speech (default: %(default)s)")


def _add_output(parser: argparse.ArgumentParser, example: str) -> None:
    what = f'where to write the sound, such as {example} (wav, flac, ogg, mp3); "-" is WAV on standard output'
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=what)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", metavar="nano|FOLDER|HUB_ID", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: %(default)s)")
    own = "float32, bfloat16, float16, or auto, as stored (default: what config.json names, float32 for nano)"
    parser.add_argument("--dtype", default=None, help=own)
    parser.add_argument("--quantize", metavar="int8|int4", help="weight-only; needs the extra quant")
    parser.add_argument("--attn", default="sdpa", metavar="KERNEL", help="attention kernel (default: %(default)s)")
    where = "of a released model, where it is not found beside it"
    parser.add_argument("--audio-tokenizer", metavar="FOLDER|HUB_ID", help=f"what hears, {where}")
    parser.add_argument("--audio-decoder", metavar="FOLDER|HUB_ID", help=f"what speaks, {where}")


def _add_voice_prompt(parser: argparse.ArgumentParser) -> None:
    what = "a recording of the voice to speak in, for models trained with such prompts (nano is not)"
    parser.add_argument("--voice-prompt", metavar="FILE", help=what)


def _add_decoding(parser: argparse.ArgumentParser, default: str = "the model's own, boost for nano") -> None:
    modes = f"vanilla, balance, boost, turbo, or main and block counts such as 1,10,4,10 (default: {default})"
    parser.add_argument("--mode", default=None, help=modes)
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the model's own)")
    at_most = "tokens after which an answer is cut off (default: the model's own limit)"
    parser.add_argument("--max-new-tokens", type=_count, metavar="N", help=at_most)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each event")
    _add_model(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count, a whole number from 1 on is wanted")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, a number from 1 to 65535 is wanted")
    return int(text)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {' '.join(message.split())}\n")
    return code
