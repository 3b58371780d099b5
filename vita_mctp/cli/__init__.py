"""The command `vita-mctp`: reads the command line, calls the library, prints what comes."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup
from typer.main import get_command

from vita_mctp import __version__
from vita_mctp.cli.options import new_app
from vita_mctp.errors import OutputError, VitaError

PROGRAM = "vita-mctp"
_BYTES_AS_THEY_CAME = "surrogateescape"
"""How a path that is no UTF-8 is printed."""
USAGE_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141

COMMANDS = {
    "ask": ("talk", "answer a spoken question aloud"),
    "say": ("talk", "speak a text"),
    "chat": ("chat", "converse in the terminal: typed, with recordings, or through the microphone"),
    "transcribe": ("talk", "write down what a recording says"),
    "demo": ("talk", "open a page to talk to the model"),
    "serve": ("serve", "serve OpenAI's endpoints for speech: HTTP and Realtime"),
    "doctor": ("talk", "show versions and devices, and whether the model answers rightly"),
    "train": ("train", "train a model by a recipe; run again, it goes on"),
    "data": ("data", "check and fetch what there is to train on"),
    "tokenize": ("data", "turn a manifest's audio into token shards; run again, it goes on"),
    "convert": ("train", "bring a checkpoint into another form"),
    "evaluate": ("evaluate", "measure a model, and write rows and metrics"),
    "bench": ("bench", "measure speed, and what the machine would allow"),
    "study": ("study", "make the papers' claims again, at small scale"),
}
"""By name: the module of this package that holds its `app`, and its line in --help."""


class _Commands(TyperGroup):
    """Imports a module when one of its commands is called; --help needs none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, summary = COMMANDS[cmd_name]
        group = get_command(import_module(f"{__name__}.{module}").app)
        command = group.commands[cmd_name]  # type: ignore[attr-defined]
        command.help = summary[0].upper() + summary[1:]
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


app = new_app(cls=_Commands)


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        raise typer.Exit


@app.callback(help="Ask a speech language model, and hear it answer.")
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 done, 1 a check failed, 2 a wrong input or option, 130 interrupted, 141 the reader left."""
    _open_closed_streams()
    try:
        return _run(parse(arguments))
    except VitaError as error:
        return _complain(str(error), USAGE_ERROR)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as error:
        if error.strerror is None:  # a library's own, such as of a connection that broke
            return _complain(f"{error or type(error).__name__}; mend that and run the command again", USAGE_ERROR)
        name = "" if error.filename is None else f": {str(error.filename)[:60]}"
        return _complain(f"{error.strerror}{name}; wanted a path of this system with room and rights", USAGE_ERROR)


def _run(call: typer.Context) -> int:
    for library in ("torchao", "torch.utils._pytree"):
        # transformers imports torchao wherever it is installed, which then warns of GPU kernels that a CPU lacks
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setFormatter(logging.Formatter(f"{PROGRAM}: warning: %(message)s"))
    warnings.addFilter(lambda record: record.name == "vita_mctp")
    logging.getLogger("vita_mctp").handlers[:] = [warnings]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # standard error is for errors
    with _libraries_on_stderr():
        return int(call.command.callback(**call.params) or 0)  # type: ignore[misc]


def _open_closed_streams() -> None:
    """Of standard streams that the caller has closed, input is empty, output refuses to be written, errors vanish.

    The next file that is opened would get their number otherwise, and hold what libraries print.
    """
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            mode = "rb" if name == "stdin" else "wb"
            unbuffered = os.fdopen(os.open(os.devnull, flags), mode, 0)  # or the flush at exit would fail once more
            setattr(sys, name, io.TextIOWrapper(unbuffered, write_through=True))


def parse(arguments: Sequence[str] | None = None) -> typer.Context:
    """The command that a command line names and the values of its parameters, read and checked; nothing is run.

    Raises SystemExit: 0 behind --help and --version, 2 for a wrong command line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        found = get_command(app).main(given, PROGRAM, standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = PROGRAM if context is None else context.command_path
        message = error.format_message().rstrip(".")
        raise SystemExit(_complain(f"{message}; see {path} --help", USAGE_ERROR)) from None
    if isinstance(found, int):
        raise SystemExit(found)
    return found


_answers: TextIO = sys.stdout
"""Where answers go while a command runs; `sys.stdout` is standard error then."""


def write(text: str) -> None:
    """Writes a piece of the answer, and flushes. Raises OutputError, BrokenPipeError if the reader left."""
    write_to(_answers, text)


def write_to(stream: TextIO, text: str) -> None:
    """As `write`, to another stream."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        _drop_rest(stream)
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot write the text: {error.strerror}; free some space or send it elsewhere") from None


@contextmanager
def answers_on_stdout() -> Iterator[None]:
    """Makes `sys.stdout` the answers' stream again, for what writes there itself."""
    with redirect_stdout(_answers):
        try:
            yield
        except BrokenPipeError:
            _drop_rest(_answers)
            raise


@contextmanager
def _libraries_on_stderr() -> Iterator[None]:
    """Keeps standard output for answers; whatever else prints, in Python, C or a child process, goes to standard error.

    Libraries have lines to say when they start, and a WAV or JSON object on standard output must not hold them.
    """
    global _answers
    shown, _answers = sys.stdout, sys.stdout
    apart = shown is sys.__stdout__  # otherwise a test or a notebook has put a stream of its own there
    if apart:
        shown.flush()
        descriptor = os.dup(shown.fileno())
        os.dup2(sys.stderr.fileno(), shown.fileno())
        _answers = os.fdopen(descriptor, "w", encoding=shown.encoding, errors=_BYTES_AS_THEY_CAME)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if apart:
            os.dup2(_answers.fileno(), shown.fileno())
            _answers.close()
        _answers = sys.stdout


def leave() -> NoReturn:
    """Ends the process of a server at once: to free torch and gradio one by one takes the interpreter seconds."""
    for stream in (_answers, sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _drop_rest(stream: TextIO) -> None:
    """Lets nothing fail at exit once more, when what could not be written is flushed again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {' '.join(message.split())}\n")
    return code
