"""How this command reads its options, and those that several commands share.

A command is a function that takes an `Annotated` parameter for each argument and option, or a frozen dataclass of them
for options that belong together; it returns an exit code, None for 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from itertools import chain, pairwise
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

_SEVERAL = "..."
"""At the end of an option's metavar: it takes all words up to the next option."""


class Command(TyperCommand):
    """A command that is read here and run by its caller: invoking it gives back its context."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = _one_value_each(args, self.get_params(ctx), ctx.fail)
        try:
            return super().parse_args(ctx, list(words))
        except typer.BadParameter as error:
            names = error.param.opts if error.param else ()
            if came := [value for name, value in pairwise(words) if name in names]:
                error.message = f"{' '.join(came)!r} was given; {error.message}"
            raise

    def invoke(self, ctx: Any) -> Any:
        return ctx


def _one_value_each(given: Sequence[str], parameters: Sequence[Any], fail: Callable[[str], Any]) -> list[str]:
    """`--mode=a` as `--mode a`, and `--modes a b` as `--modes a --modes b`, for options with `...`.

    No option is taken for another one's value.
    """
    options = {name: each for each in parameters if each.param_type_name == "option" for name in each.opts}
    words = list(chain.from_iterable(_split(word, options) for word in given))
    read: list[str] = []
    name, wants_value = "", False
    for index, word in enumerate(words):
        if wants_value and (word in options or word == "--"):
            break
        if word == "--":
            return [*read, *words[index:]]
        if word in options:
            name, wants_value = word, not options[word].is_flag
        elif wants_value:
            wants_value = False
        elif word.startswith("-") and word != "-":
            name = ""
        elif name and (options[name].metavar or "").endswith(_SEVERAL):
            read.append(name)
        else:
            name = ""
        read.append(word)
    if wants_value:
        fail(f"Option {name!r} requires an argument")
    return read


def _split(word: str, options: Mapping[str, Any]) -> list[str]:
    name, equals, value = word.partition("=")
    return [name, value] if equals and name in options and not options[name].is_flag else [word]


def new_app(**settings: Any) -> typer.Typer:
    """Without colours, completion and tracebacks of typer's own."""
    names = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=names, **settings)
    if "cls" not in settings:
        app.callback()(lambda: None)  # else an app with one command would be that command
    return app


def command(app: typer.Typer, name: str | None = None, help: str = "", **settings: Any) -> Callable[..., Any]:
    """Makes a function a command of `app`; each field of a dataclass among its parameters becomes an option."""

    def add(function: Callable[..., int | None]) -> Callable[..., int | None]:
        app.command(name, cls=Command, help=help[:1].upper() + help[1:], short_help=help, **settings)(_flat(function))
        return function

    return add


def _flat(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The same function with the fields of its dataclasses as parameters."""
    groups: dict[str, Any] = {name: kind for name, kind in get_type_hints(function).items() if is_dataclass(kind)}
    parameters: list[Parameter] = []
    for name in signature(function).parameters:
        owner, names = (groups[name], None) if name in groups else (function, name)
        hints = get_type_hints(owner, include_extras=True)
        for each in signature(owner).parameters.values():
            if names in (None, each.name):
                parameters.append(each.replace(annotation=hints[each.name], kind=Parameter.KEYWORD_ONLY))

    @wraps(function)
    def call(**values: Any) -> int | None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        return function(**values)

    vars(call)["__signature__"] = Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def opt(metavar: str | None, help: str = "", *names: str, **more: Any) -> Any:
    """An option, named as its parameter unless said otherwise; a metavar with `...` takes several words."""
    return typer.Option(*names, metavar=metavar, help=help, **more)


def arg(metavar: str, help: str) -> Any:
    """An argument without a name."""
    return typer.Argument(metavar=metavar, help=help)


def flag(name: str, help: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help)


_DEVICE = "cpu, cuda, cuda:1, mps ...; auto is a GPU with room for it, and the CPU for one as small as nano"
_DTYPE = "float32, bfloat16, float16, or auto, as stored (default: what config.json names, float32 for nano)"
_MODE = (
    "vanilla, balance, boost, turbo, verified, lossy (verified, but likely drafts stand too: other answers), or "
    "backbone and block counts such as 1,10; for VocalNet 1x, 3x, 5x "
    "(default: the model's own"
)
_BESIDE = "of a released model, where it is not found beside it"

Json = Annotated[bool, flag("--json", "print JSON: one object, or one for each event of an answer")]
Device = Annotated[str, opt("DEVICE", "cpu, cuda, cuda:1, mps ...")]
Quantize = Annotated[str | None, opt("int8|int4", "weight-only; needs the extra quant")]
Attention = Annotated[str, opt("KERNEL", "attention kernel")]
HIGHEST_SEED = (1 << 63) - 1
Seed = Annotated[int, opt("N", "of all that is drawn at random", min=0, max=HIGHEST_SEED)]
Mode = Annotated[str | None, opt("MODE", f"{_MODE}, verified for nano; vanilla to transcribe)")]
Temperature = Annotated[float | None, opt("T", "0 is greedy (default: the model's own)")]
MaxNewTokens = Annotated[
    int | None, opt("N", "tokens after which an answer is cut off (default: the model's own limit)", min=1)
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded: the options of `SpeechLM.from_pretrained`."""

    model: Annotated[str, opt("nano|FOLDER|HUB_ID")] = "nano"
    device: Annotated[str, opt("DEVICE", _DEVICE)] = "auto"
    dtype: Annotated[str | None, opt("DTYPE", _DTYPE)] = None
    quantize: Quantize = None
    attn: Attention = "sdpa"
    audio_tokenizer: Annotated[str | None, opt("FOLDER|HUB_ID", f"the audio tokenizer {_BESIDE}")] = None
    audio_decoder: Annotated[str | None, opt("FOLDER|HUB_ID", f"the audio decoder {_BESIDE}")] = None

    @property
    def loading(self) -> dict[str, Any]:
        """All but the model's name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}

    @property
    def placement(self) -> dict[str, Any]:
        """Where its weights go and in which form: the options of `SpeechLM.from_opened`."""
        return {name: value for name, value in self.loading.items() if not name.startswith("audio_")}


@dataclass(frozen=True)
class DecodingOptions:
    """How an answer is generated: the options of `SpeechLM.stream`."""

    mode: Mode = None
    seed: Seed = 0
    temperature: Temperature = None
    max_new_tokens: MaxNewTokens = None
