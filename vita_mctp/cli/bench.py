"""`vita-mctp bench ...`: its options and what it does; each prints a page and may write JSON and a plot beside it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from vita_mctp.decoding.plan import Mode, parse_mode
from vita_mctp.errors import ConfigError

if TYPE_CHECKING:
    from vita_mctp.bench.machine import Machine
    from vita_mctp.bench.result import Study
    from vita_mctp.bench.subjects import Subject, Wanted

AddCommand = Callable[[Any, str, str], argparse.ArgumentParser]
"""(sub-commands, name, summary) -> the parser of a new one."""

Number = TypeVar("Number", int, float)


def add_parsers(commands: Any, add: AddCommand, parser_class: type[argparse.ArgumentParser]) -> None:
    """The command's options."""
    bench = add(commands, "bench", "measure speed, and what the machine would allow")
    studies = bench.add_subparsers(metavar="STUDY", required=True, parser_class=parser_class)

    modes = _add_study(add, studies, "modes", "tokens a second by decoding mode")
    _add_modes(modes, "vanilla", "boost", "balance", "turbo")
    _add_length(modes, 4096)
    modes.add_argument("--runs", type=_positive(int), default=1, help="of each mode (default: %(default)s)")
    modes.add_argument("--against", choices=["naive"], help="also time the slow twin, which keeps no cache")

    first = _add_study(add, studies, "first-audio", "milliseconds to the first sound, part by part")
    _add_modes(first, "vanilla", "boost")
    first.add_argument("--question", metavar="FILE", help="a recording (default: the model's own, or 3 s of hum)")
    first.add_argument("--runs", type=_positive(int), default=50, help="of each mode (default: %(default)s)")
    first.add_argument("--warm-up", type=_positive(int), default=3, help="runs not counted (default: %(default)s)")

    timeline = _add_study(add, studies, "timeline", "when each token came, and from which block")
    _add_modes(timeline, "vanilla", "balance", "boost", "turbo")
    _add_length(timeline, 48)

    scaling = _add_study(add, studies, "scaling", "cost of a token by history, batch and number of blocks")
    _add_modes(scaling, "turbo")
    _add_length(scaling, 66)
    _add_counts(scaling, "--histories", (32, 512, 1024, 2048, 4096, 8192), "tokens before the ones timed")
    _add_counts(scaling, "--batches", (1, 2, 4, 8, 16), "requests at once")

    memory = _add_study(add, studies, "memory", "what weights and caches take")
    _add_modes(memory, "boost")
    _add_length(memory, 4096)

    _add_decoder(_add_study(add, studies, "decoder", "cost of each chunk of sound, and its borders"))


def bench_modes(options: argparse.Namespace) -> int:
    """Table 8 of the VITA-Audio paper."""
    from vita_mctp.bench.modes import ModesOptions, bench_modes

    modes, naive = _modes(options), options.against == "naive"
    chosen = ModesOptions(modes, options.tokens, options.prefill, options.runs, naive, options.seed)
    return _run_on_model(options, lambda subject, machine: bench_modes(subject, chosen, machine))


def bench_timeline(options: argparse.Namespace) -> int:
    """Figure 5 of the VITA-Audio paper."""
    from vita_mctp.bench.timeline import TimelineOptions, bench_timeline

    chosen = TimelineOptions(_modes(options), options.tokens, options.prefill, options.seed)
    return _run_on_model(options, lambda subject, machine: bench_timeline(subject, chosen, machine))


def bench_scaling(options: argparse.Namespace) -> int:
    """History, batch and blocks, in one table."""
    from vita_mctp.bench.scaling import ScalingOptions, bench_scaling

    histories, batches = tuple(options.histories), tuple(options.batches)
    chosen = ScalingOptions(_one_mode(options), options.tokens, histories, batches, options.prefill, options.seed)
    return _run_on_model(options, lambda subject, machine: bench_scaling(subject, chosen, machine))


def bench_memory(options: argparse.Namespace) -> int:
    """Weights and caches."""
    from vita_mctp.bench.memory import MemoryOptions, bench_memory

    chosen = MemoryOptions(_one_mode(options), options.tokens, options.prefill, options.seed)
    return _run_on_model(options, lambda subject, machine: bench_memory(subject, chosen, machine))


def bench_first_audio(options: argparse.Namespace) -> int:
    """Table 9 of the VITA-Audio paper."""
    import torch

    from vita_mctp.bench.first_audio import FirstAudioOptions, bench_first_audio, chain_of

    chosen = FirstAudioOptions(_modes(options), options.runs, options.warm_up, options.seed)
    wanted = _wanted(options)
    _check_targets(options)
    chain = chain_of(wanted, options.question)
    dtype: torch.dtype = chain.subject.dtype
    return _show(options, wanted.name, lambda machine: bench_first_audio(chain, chosen, machine), dtype)


def bench_decoder(options: argparse.Namespace) -> int:
    """Chunks and seams of audio decoders."""
    from vita_mctp.bench.decoder import DecoderOptions, bench_decoder
    from vita_mctp.bench.subjects import open_voices

    streams = tuple(options.streams)
    chosen = DecoderOptions(options.seconds, streams, options.seam_seconds, options.budget, options.seed)
    wanted, names = _wanted(options, random=None), tuple(options.random or ())
    _check_targets(options)
    voices = open_voices(wanted, names, options.steps or (), options.block_sizes or ())
    subject = ", ".join(voice.name for voice in voices)
    return _show(options, subject, lambda machine: bench_decoder(voices, chosen, machine))


def _run_on_model(options: argparse.Namespace, study: Callable[[Subject, Machine], Study]) -> int:
    from vita_mctp.bench.subjects import open_subject

    _check_targets(options)
    subject = open_subject(_wanted(options))
    return _show(options, subject.name, lambda machine: study(subject, machine), subject.dtype)


def _show(options: argparse.Namespace, subject: str, study: Callable[[Machine], Study], dtype: Any = None) -> int:
    """Runs and prints; writes what was asked for."""
    import torch

    from vita_mctp.bench import render
    from vita_mctp.bench.run import run_study
    from vita_mctp.checkpoints.placement import parse_device

    result = run_study(
        study,
        subject=subject,
        is_random=bool(options.random),
        command=f"vita-mctp {shlex.join(sys.argv[1:])}",
        device=parse_device(options.device),
        dtype=dtype or torch.float32,
    )
    if options.json:
        render.write(options.json, render.to_json(result).encode())
    if options.plot:
        render.draw(result, options.plot)
    sys.stdout.write(render.to_markdown(result))
    return 0


def _check_targets(options: argparse.Namespace) -> None:
    from vita_mctp.bench.render import check_targets

    check_targets(options.json, options.plot)


_OWN: Any = object()


def _wanted(options: argparse.Namespace, random: Any = _OWN) -> Wanted:
    from vita_mctp.bench.subjects import Wanted
    from vita_mctp.checkpoints.placement import parse_device, parse_dtype
    from vita_mctp.checkpoints.quantization import parse_quantization

    return Wanted(
        options.model,
        options.random if random is _OWN else random,
        parse_device(options.device),
        None if options.dtype is None else parse_dtype(options.dtype),
        options.attn,
        None if options.quantize is None else parse_quantization(options.quantize),
        options.seed,
    )


def _modes(options: argparse.Namespace) -> tuple[Mode, ...]:
    return tuple(parse_mode(mode, num_blocks=0) for mode in options.modes)


def _one_mode(options: argparse.Namespace) -> Mode:
    if len(options.modes) != 1:
        raise ConfigError(f"this study takes one mode, got {' '.join(options.modes)}; give one")
    return _modes(options)[0]


def _add_study(add: AddCommand, studies: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser = add(studies, name, summary)
    parser.set_defaults(module=__name__, command=f"bench_{name.replace('-', '_')}")
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--model", default="nano", metavar="nano|FOLDER|HUB_ID", help="default: %(default)s")
    if name == "decoder":
        known = "glm4_voice, glm4_voice_reference, both with _small too, nano or ramp; several are put side by side"
        subject.add_argument("--random", nargs="+", metavar="NAME", help=known)
    else:
        shape = "instead, random weights in the shape nano, 0.5b, 7b or 72b, with ten MCTP blocks"
        subject.add_argument("--random", metavar="SHAPE", help=shape)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: %(default)s)")
    own = "float32, bfloat16 or float16 (default: what config.json names; float32 for nano and random weights)"
    parser.add_argument("--dtype", help=own)
    parser.add_argument("--quantize", metavar="int8|int4", help="weight-only; needs the extra quant")
    parser.add_argument("--attn", default="sdpa", metavar="KERNEL", help="attention kernel (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and inputs (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw them, as .svg or .png (extra bench)")
    return parser


def _add_decoder(parser: argparse.ArgumentParser) -> None:
    seconds, budget = _positive(float), "seconds of decoding after which an answer is left where it is (default: none)"
    parser.add_argument("--seconds", type=seconds, default=300.0, help="of the answer (default: %(default)s)")
    _add_counts(parser, "--streams", (1,), "answers decoded at once, a row for each number")
    _add_counts(parser, "--steps", None, "Euler steps of each window of glm4_voice, the last repeating")
    _add_counts(parser, "--block-sizes", None, "codes in each block, the last repeating (default: the decoder's own)")
    borders = "of the answer whose borders are looked at, 0 for none (default: %(default)s)"
    parser.add_argument("--seam-seconds", type=float, default=16.0, help=borders)
    parser.add_argument("--budget", type=seconds, default=inf, metavar="SECONDS", help=budget)


def _add_modes(parser: argparse.ArgumentParser, *default: str) -> None:
    known = f"vanilla, balance, boost, turbo, or counts such as 1,10,4,10 (default: {' '.join(default)})"
    parser.add_argument("--modes", nargs="+", default=default, metavar="MODE", help=known)


def _add_length(parser: argparse.ArgumentParser, tokens: int) -> None:
    parser.add_argument("--tokens", type=_positive(int), default=tokens, help="to make (default: %(default)s)")
    parser.add_argument("--prefill", type=_positive(int), default=32, help="tokens of prompt (default: %(default)s)")


def _add_counts(parser: argparse.ArgumentParser, name: str, default: Sequence[int] | None, what: str) -> None:
    shown = "" if default is None else f" (default: {' '.join(map(str, default))})"
    parser.add_argument(name, nargs="+", type=_positive(int), default=default, metavar="N", help=what + shown)


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text!r} is no positive {'count' if kind is int else 'number'}")
        return value

    return read
