"""`vita-mctp bench ...`: each study prints a page and may write JSON and a plot beside it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vita_mctp.cli import PROGRAM, write
from vita_mctp.cli.options import Attention, Device, Quantize, Seed, command, flag, new_app, opt
from vita_mctp.errors import ConfigError
from vita_mctp.serving import KEY_VARIABLE

if TYPE_CHECKING:
    from vita_mctp.bench import Study
    from vita_mctp.bench.models import ModelChoice
    from vita_mctp.decoding.modes import Mode

app, bench = new_app(), new_app()
app.add_typer(bench, name="bench")

Shape = Annotated[
    str | None,
    opt("SHAPE", "instead, random weights in the shape nano, hidden512, 0.5b, 7b or 72b, with ten MCTP blocks"),
]
Modes = Annotated[list[str], opt("MODE...", "vanilla, balance, boost, turbo, verified, or counts such as 1,10,4,10")]
Tokens = Annotated[int, opt("N", "to make", min=1)]
Prefill = Annotated[int, opt("N", "tokens of prompt", min=1)]
Runs = Annotated[int, opt("N", "of each mode", min=1)]
Streams = Annotated[list[int], opt("N...", "answers at once, a row for each number", min=1)]
_FOUR = ["vanilla", "boost", "balance", "turbo"]
_TWO, _TURBO, _ONE = ["vanilla", "boost"], ["turbo"], [1]
_SHAPES, _STREAMS, _GPU_STREAMS = ["0.5b", "7b"], [1, 8, 16, 32, 64], [1, 8, 64, 256]
_HISTORIES, _BATCHES = [32, 512, 1024, 2048, 4096, 8192], [1, 2, 4, 8, 16]


@dataclass(frozen=True)
class StudyOptions:
    """What is measured, where, and what is written."""

    model: Annotated[str | None, opt("nano|FOLDER|HUB_ID", "(default: nano)")] = None
    device: Device = "cpu"
    dtype: Annotated[
        str | None, opt("DTYPE", "float32, bfloat16 or float16 (default: as config.json; float32 for random weights)")
    ] = None
    quantize: Quantize = None
    attn: Attention = "sdpa"
    seed: Seed = 0
    json: Annotated[Path | None, opt("FILE", "write everything as JSON")] = None
    plot: Annotated[Path | None, opt("FILE", "draw it, as .svg or .png (extra bench)")] = None

    def choice(self, random: str | None = None) -> ModelChoice:
        """Which model; checks before anything is loaded that what is asked for can be written."""
        from vita_mctp.bench.models import ModelChoice
        from vita_mctp.bench.render import check_targets
        from vita_mctp.checkpoints.loading import parse_device, parse_dtype
        from vita_mctp.checkpoints.options import parse_quantization

        if random is not None and self.model is not None:
            raise ConfigError(f"--model {self.model} and --random {random} were given; wanted: one of them")
        check_targets(self.json, self.plot)
        return ModelChoice(
            self.model or "nano",
            random,
            parse_device(self.device),
            None if self.dtype is None else parse_dtype(self.dtype),
            self.attn,
            None if self.quantize is None else parse_quantization(self.quantize),
            self.seed,
        )


@command(bench, help="tokens a second by decoding mode")
def modes(
    study: StudyOptions,
    random: Shape = None,
    modes: Modes = _FOUR,
    tokens: Tokens = 4096,
    prefill: Prefill = 32,
    runs: Runs = 1,
    baseline: Annotated[bool, flag("--baseline", "also time a plain loop: a forward a token, growing caches")] = False,
) -> None:
    """Table 8 of the VITA-Audio paper."""
    from vita_mctp.bench.modes import bench_modes

    measure = partial(bench_modes, modes=_parse(modes), tokens=tokens, prefill=prefill)
    _run(study, random, partial(measure, runs=runs, baseline=baseline))


@command(bench, help="milliseconds to the first sound, part by part")
def first_audio(
    study: StudyOptions,
    random: Shape = None,
    modes: Annotated[
        list[str] | None, opt("MODE...", "as of ask (default: vanilla and boost; of a talker its slowest and fastest)")
    ] = None,
    question: Annotated[str | None, opt("FILE", "a recording (default: the model's own, or 3 s of hum)")] = None,
    runs: Runs = 50,
    warm_up: Annotated[int, opt("N", "runs not counted", min=1)] = 3,
) -> None:
    """Table 9 of the VITA-Audio paper; of models with a talker, table 5 of VocalNet's."""
    from vita_mctp.bench.first_audio import bench_first_audio, open_stages, usual_modes

    chosen, choice = _parse(modes or []), study.choice(random)
    stages, loaded, asked = open_stages(choice, question)
    chosen = chosen or _parse(usual_modes(stages))
    measure = partial(bench_first_audio, stages, loaded, asked, modes=chosen, runs=runs, warm_up=warm_up)
    _show(study, choice.name, random is not None, measure, loaded.dtype)


@command(bench, help="when each token came, and from which block")
def timeline(
    study: StudyOptions, random: Shape = None, modes: Modes = _FOUR, tokens: Tokens = 48, prefill: Prefill = 32
) -> None:
    """Figure 5 of the VITA-Audio paper."""
    from vita_mctp.bench.modes import bench_timeline

    _run(study, random, partial(bench_timeline, modes=_parse(modes), tokens=tokens, prefill=prefill))


@command(bench, help="cost of a token by history, batch and number of blocks")
def scaling(
    study: StudyOptions,
    random: Shape = None,
    modes: Modes = _TURBO,
    tokens: Tokens = 66,
    prefill: Prefill = 32,
    histories: Annotated[list[int], opt("N...", "tokens before the ones timed", min=1)] = _HISTORIES,
    batches: Annotated[list[int], opt("N...", "requests at once", min=1)] = _BATCHES,
) -> None:
    """History, batch and blocks, in one table."""
    from vita_mctp.bench.streams import bench_scaling

    if len(modes) != 1:
        raise ConfigError(f"--modes {' '.join(modes)} was given; wanted: one mode for this study")
    measure = partial(bench_scaling, mode=_parse(modes)[0], tokens=tokens, prefill=prefill)
    _run(study, random, partial(measure, histories=histories, batches=batches))


@command(bench, help="what verified drafts bring on nano's held-out questions and sentences")
def verified(
    study: StudyOptions,
    questions: Annotated[int, opt("N", "held-out questions, and as many whose answer was never spoken", min=1)] = 300,
    sentences: Annotated[int, opt("N", "held-out sentences to say", min=1)] = 100,
    temperature: Annotated[float, opt("T", "of the questions once more, sampled", min=1e-3)] = 0.8,
    stop_below: Annotated[
        float | None, opt("P", "product of probabilities that ends a chain (default: the mode's)")
    ] = None,
    mode: Annotated[str, opt("MODE", "verified; or lossy, or lossy,0.1, which changes answers")] = "verified",
    work: Annotated[Path, opt("FOLDER", "for speech")] = Path("runs/drafts"),
) -> None:
    """Acceptance and speed of verified drafts."""
    from vita_mctp.bench.models import open_language_model
    from vita_mctp.bench.verified import bench_verified
    from vita_mctp.nano.cases import draft_sets
    from vita_mctp.speech_lm import SpeechLM

    choice = study.choice()
    loaded, speech_lm = open_language_model(choice), SpeechLM.from_pretrained(choice.model)
    sizes = {"questions": questions, "sentences": sentences}
    sets, spelling = draft_sets(speech_lm, work, **sizes, temperature=temperature, seed=study.seed)
    (chosen,) = _parse([mode])
    if not chosen.verified:
        raise ConfigError(f"--mode {mode} was given; wanted: verified or lossy")
    chosen = chosen if stop_below is None else replace(chosen, stop_below=stop_below)
    measure = partial(bench_verified, loaded, sets=sets, spelling=spelling, verified=chosen)
    _show(study, choice.name, False, measure, loaded.dtype)


@command(bench, help="where verified drafts pay: costs of passes and blocks of a shape")
def drafts(
    study: StudyOptions,
    random: Shape = None,
    tokens_a_pass: Annotated[float, opt("N", "tokens a backbone pass, as `bench verified` counts them", min=1)] = 7.5,
    blocks_a_pass: Annotated[float, opt("N", "blocks run a pass", min=0)] = 9.0,
    prefill: Prefill = 32,
    runs: Annotated[int, opt("N", "of each part; the best counts", min=1)] = 20,
) -> None:
    """A token of Vanilla, Boost and verified."""
    from vita_mctp.bench.verified import bench_drafts

    measure = partial(bench_drafts, tokens_a_pass=tokens_a_pass, blocks_a_pass=blocks_a_pass)
    _run(study, random, partial(measure, prefill=prefill, runs=runs))


@command(bench, help="many answers at once that begin at random moments")
def streams(
    study: StudyOptions,
    random: Shape = None,
    modes: Modes = _TWO,
    streams: Streams = _STREAMS,
    tokens: Annotated[int, opt("N", "of each stream", min=1)] = 256,
    prefill: Prefill = 32,
) -> None:
    """Streams with staggered starts."""
    from vita_mctp.bench.streams import Load, bench_streams

    _run(study, random, partial(bench_streams, load=Load(_parse(modes), streams, tokens, prefill)))


@command(bench, help="a server under load: first sound, underruns, throughput, memory")
def serve(
    study: StudyOptions,
    url: Annotated[str | None, opt("URL", "of a server, ending in /v1 (default: one is started)")] = None,
    streams: Streams = _STREAMS,
    closed: Annotated[bool, flag("--closed", "clients that ask again at once, instead of arriving at random")] = False,
    spoken: Annotated[bool, flag("--spoken", "clients that converse over the Realtime socket, in real time")] = False,
    seconds: Annotated[float, opt("S", "that questions arrive for, at each number of streams", min=1)] = 30.0,
    questions: Annotated[int, opt("N", "asked at each number of clients, with --closed", min=1)] = 64,
    turns: Annotated[int, opt("N", "of each client, with --spoken", min=1)] = 10,
    running: Annotated[int, opt("N", "answers that a server started here makes at once", "--max-running", min=1)] = 16,
    question: Annotated[Path, opt("FILE", "a recording to ask")] = Path("demo/examples/question.wav"),
) -> None:
    """Clients that know the server by its address alone."""
    import torch

    from vita_mctp.bench.serving import Asker, bench_load, bench_spoken, bench_throughput, own_server

    if closed and spoken:
        raise ConfigError("--closed and --spoken were given; wanted: one way of asking")
    choice = study.choice()
    options = ["--model", choice.name, "--device", study.device, "--max-running", str(running)]
    options += ["--max-real-time-factor", "inf"] if closed else []  # they read as fast as they can, and play nothing
    with nullcontext((url, lambda: None)) if url else own_server(options) as (address, memory):
        name, key = Path(choice.name).name, os.environ.get(KEY_VARIABLE, "none")
        asker = Asker(address, question, name, key)
        measure: Callable[..., Study] = partial(bench_load, asker, streams, seconds, memory)
        if closed:
            measure = partial(bench_throughput, asker, streams, questions)
        elif spoken:
            measure = partial(bench_spoken, address, question, name, key, streams, turns)
        _show(study, choice.name, False, measure, torch.float32)


@dataclass(frozen=True)
class GpuOptions(StudyOptions):
    """The same, on a GPU."""

    device: Device = "cuda"
    dtype: Annotated[str | None, opt("DTYPE", "bfloat16, float16 or float32")] = "bfloat16"


@command(bench, help="shapes, modes and numbers of streams in one table, on a GPU")
def gpu(
    study: GpuOptions,
    shapes: Annotated[list[str], opt("SHAPE...", "random weights in these shapes")] = _SHAPES,
    modes: Modes = _FOUR,
    streams: Streams = _GPU_STREAMS,
    tokens: Annotated[int, opt("N", "of each stream", min=1)] = 256,
    prefill: Prefill = 32,
) -> None:
    """The table of a machine with a GPU."""
    from vita_mctp.bench.streams import Load, bench_gpu

    choices, load = [study.choice(shape) for shape in shapes], Load(_parse(modes), streams, tokens, prefill)
    measure = partial(bench_gpu, choices=choices, load=load)
    _show(study, ", ".join(choice.name for choice in choices), True, measure, choices[0].dtype)


@command(bench, help="cost of each chunk of sound, and its borders")
def decoder(
    study: StudyOptions,
    random: Annotated[
        list[str] | None,
        opt("NAME...", "instead, cosyvoice2, glm4_voice, glm4_voice_small or nano; side by side"),
    ] = None,
    seconds: Annotated[float, opt("S", "of the answer", min=1e-9)] = 300.0,
    streams: Annotated[list[int], opt("N...", "answers decoded at once, a row for each number", min=1)] = _ONE,
    steps: Annotated[
        list[int] | None, opt("N...", "Euler steps of each window of a flow decoder, the last repeating", min=1)
    ] = None,
    block_sizes: Annotated[
        list[int] | None, opt("N...", "codes in each block, the last repeating (default: the decoder's own)", min=1)
    ] = None,
    seam_seconds: Annotated[float, opt("S", "of the answer whose borders are looked at, 0 for none")] = 16.0,
    budget: Annotated[
        float | None, opt("S", "seconds of decoding after which an answer is left where it is", min=1e-9)
    ] = None,
) -> None:
    """Chunks and seams of audio decoders."""
    from vita_mctp.bench.decoder import bench_decoder
    from vita_mctp.bench.models import open_decoders

    decoders = open_decoders(
        study.choice(" ".join(random) if random else None), random or (), steps or (), block_sizes or ()
    )
    measure = partial(bench_decoder, decoders, seconds=seconds, streams=streams, budget=budget or inf)
    measure = partial(measure, seam_seconds=seam_seconds)
    _show(study, ", ".join(each.name for each in decoders), bool(random), measure)


def _parse(modes: Sequence[str]) -> list[Mode]:
    from vita_mctp.decoding.modes import parse_mode

    return [parse_mode(mode, num_blocks=0) for mode in modes]


def _run(study: StudyOptions, random: str | None, measure: Callable[..., Study]) -> None:
    """A study of a language model."""
    from vita_mctp.bench.models import open_language_model

    loaded = open_language_model(study.choice(random))
    _show(study, loaded.name, random is not None, partial(measure, loaded), loaded.dtype)


def _show(study: StudyOptions, subject: str, is_random: bool, measure: Callable[..., Study], dtype: Any = None) -> None:
    """Measures and prints; writes what was asked for."""
    import torch

    from vita_mctp.bench import render, run_study
    from vita_mctp.checkpoints.loading import parse_device
    from vita_mctp.files import write_output

    result = run_study(
        partial(measure, seed=study.seed),
        subject=subject,
        is_random=is_random,
        command=f"{PROGRAM} {shlex.join(sys.argv[1:])}",
        device=parse_device(study.device),
        dtype=dtype or torch.float32,
    )
    if study.json:
        write_output(study.json, render.to_json(result).encode())
    if study.plot:
        render.draw(result, study.plot)
    write(render.to_markdown(result))
