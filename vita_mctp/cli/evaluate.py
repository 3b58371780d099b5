"""`vita-mctp evaluate ...`."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vita_mctp.cli import write, write_to
from vita_mctp.cli.options import MaxNewTokens, Mode, ModelOptions, Seed, Temperature, arg, command, flag, new_app, opt

if TYPE_CHECKING:
    from vita_mctp.evaluation.datasets import BenchmarkSet
    from vita_mctp.evaluation.judge import Listener
    from vita_mctp.evaluation.results import Figure
    from vita_mctp.evaluation.run import Order, Outcome, Tools
    from vita_mctp.evaluation.systems import Asking, System

app, evaluate = new_app(), new_app()
app.add_typer(evaluate, name="evaluate")

_NONE = "none"
_SYSTEMS = "--model may also be endpoint:URL#MODEL, or wavs:FOLDER with finished answers (ID.wav, ID.txt)"
_JUDGE = "the transcriber of the answers' sound, or endpoint:URL#MODEL, or, for sqa, none (default: the set's)"
_SOUND = "score how it sounds by dnsmos or, with voice prompts, speaker; may be repeated (extra sound)"

Dataset = Annotated[str, arg("DATASET", "as `vita-mctp evaluate sets` lists them")]
Judge = Annotated[str | None, opt("JUDGE", _JUDGE)]
Sound = Annotated[list[str] | None, opt("RULE", _SOUND)]


@dataclass(frozen=True)
class RunOptions:
    """Of a run over one benchmark."""

    data: Annotated[Path | None, opt("FOLDER", "the set as published (default: stream it, extra data)")] = None
    out: Annotated[Path | None, opt("FOLDER", "of the run (default: runs/evaluate/DATASET-MODEL-MODE)")] = None
    mode: Mode = None
    seed: Seed = 0
    temperature: Temperature = None
    max_new_tokens: MaxNewTokens = None
    rules: Annotated[list[str] | None, opt("RULE", "may be repeated (default: the set's)", "--rule")] = None
    limit: Annotated[int | None, opt("N", "the first N samples alone", min=1)] = None
    partial: Annotated[bool, flag("--partial", "a folder with a part of the set will do")] = False
    processes: Annotated[int, opt("N", "over which GPUs are shared out", min=1)] = 1


@command(evaluate, help="the closed domain of nano, heard by an independent recogniser: the whole table")
def nano(
    model: ModelOptions,
    n: Annotated[int, opt("N", "samples of each group", "--n")] = 100,
    modes: Annotated[list[str] | None, opt("MODE...", "default: all four")] = None,
    out: Annotated[Path, opt("FILE", "the page")] = Path("docs/results/nano.md"),
    work: Annotated[Path, opt("FOLDER", "for speech, rows.jsonl and summary.json")] = Path("runs/evaluate-nano"),
    seed: Seed = 0,
) -> None:
    """Asks every sample in every mode; writes the rows, their summary and the page, and prints the page's path."""
    from vita_mctp.cli.talk import load_model
    from vita_mctp.nano.benchmark import NanoOptions, evaluate_nano

    def show(done: int, total: int) -> None:
        if done == total or done % 100 == 0:
            write_to(sys.stderr, f"{done} of {total} samples\n")

    chosen = tuple(modes or ("vanilla", "balance", "boost", "turbo"))
    evaluate_nano(load_model(model), NanoOptions(model.model, n, chosen, work, out, seed), progress=show)
    write(f"{out}\n")


@command(evaluate, help="write down recordings; word or character error rate", epilog=_SYSTEMS)
def asr(dataset: Dataset, run: RunOptions, model: ModelOptions) -> None:
    """Runs a benchmark, or goes on with it; prints its metrics and its folder."""
    _evaluate("asr", dataset, run, model)


@command(evaluate, help="say sentences; error rate of what a judge hears", epilog=_SYSTEMS)
def tts(
    dataset: Dataset,
    run: RunOptions,
    model: ModelOptions,
    judge: Judge = None,
    sound: Sound = None,
    clone_voice: Annotated[bool, flag("--clone-voice", "speak in the voice of the set's prompts")] = False,
) -> None:
    """As `asr`."""
    _evaluate("tts", dataset, run, model, judge, sound, clone_voice)


@command(evaluate, help="answer spoken questions; fraction of right answers, written and spoken", epilog=_SYSTEMS)
def sqa(dataset: Dataset, run: RunOptions, model: ModelOptions, judge: Judge = None, sound: Sound = None) -> None:
    """As `asr`."""
    _evaluate("sqa", dataset, run, model, judge, sound)


@command(evaluate, help="put finished runs over the same samples side by side")
def report(
    runs: Annotated[list[Path], arg("RUN", "folders of runs; the others are held against the first")],
    out: Annotated[Path | None, opt("FILE", "the page (default: standard output)")] = None,
    plot: Annotated[Path | None, opt("FILE", "a picture: svg, png or pdf (extra bench)")] = None,
) -> None:
    """The runs side by side, as a page and, where wanted, a picture."""
    from vita_mctp.evaluation.comparison import compare_runs, draw, read_run, side_by_side
    from vita_mctp.evaluation.journal import cannot_write

    found = [read_run(folder) for folder in runs]
    sides = compare_runs(found)
    page = side_by_side(found, sides)
    files = [(plot, draw(sides, plot))] if plot else []
    if out:
        files.append((out, page.encode()))
    for path, data in files:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise cannot_write(path, error) from None
    write("".join(f"{path}\n" for path, _ in files) if out else page)


@command(evaluate, help="list the benchmarks: samples, licence, source")
def sets() -> None:
    """One line for each benchmark."""
    from vita_mctp.evaluation.datasets import BENCHMARKS

    for one in BENCHMARKS.values():
        size = "size varies" if one.samples is None else f"{one.samples} samples"
        ways = f"layout {one.layout}" + (", streamed" if one.hub else "")
        write(f"{one.name}: {one.task}, {one.language}, {size}; {ways}; {one.licence}; {one.source}\n")


def _evaluate(
    task: str,
    dataset: str,
    run: RunOptions,
    model: ModelOptions,
    judge: str | None = None,
    sound: list[str] | None = None,
    clone_voice: bool = False,
) -> None:
    from vita_mctp.environment import look_around
    from vita_mctp.evaluation.datasets import find_benchmark
    from vita_mctp.evaluation.run import Order
    from vita_mctp.evaluation.run import evaluate as run_benchmark
    from vita_mctp.evaluation.systems import Asking

    benchmark = find_benchmark(dataset, task)
    loading = {name: value for name, value in model.loading.items() if name != "device"}
    asking = Asking(model.model, run.mode, run.seed, run.temperature, run.max_new_tokens, clone_voice, loading)
    chosen = None if judge == _NONE else judge or benchmark.judge
    order = Order(
        benchmark.name,
        asking,
        tuple(run.rules or benchmark.rules),
        chosen,
        None if run.data is None else str(run.data.resolve()),
        tuple(sound or ()),
        run.limit,
        run.partial,
    )
    asking.check()
    folder = run.out or Path("runs/evaluate") / _run_name(order)
    tools = _tools(order, benchmark, model.device)
    with _Bar() as bar:
        outcome = run_benchmark(
            benchmark, order, folder, tools, look_around(), processes=run.processes, progress=bar.show
        )
    write(_figures(outcome, folder))


def _tools(order: Order, benchmark: BenchmarkSet, device: str) -> Tools:
    from vita_mctp.evaluation.judges import judge_version
    from vita_mctp.evaluation.run import Tools

    judge = order.judge
    return Tools(
        functools.partial(_open_system, order.asking, device),
        None if judge is None else functools.partial(_open_judge, judge, benchmark.language, device),
        None if judge is None else judge_version(judge),
        order.asking.weights(),
        device,
    )


def _open_system(asking: Asking, device: str, worker: int) -> System:
    from vita_mctp.cli.talk import quiet_libraries

    quiet_libraries()
    return asking.open(_device_of(device, worker))


def _open_judge(name: str, language: str, device: str, worker: int) -> Listener:
    from vita_mctp.evaluation.judges import open_judge

    return open_judge(name, language, _device_of(device, worker))


def _device_of(device: str, worker: int) -> str:
    """The GPUs in turn for "cuda"; any other device is taken as it is named."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{worker % max(torch.cuda.device_count(), 1)}"


class _Bar:
    """A progress bar for each part of the work, where standard error is a terminal."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, what: str, done: int, total: int) -> None:
        """One more is done."""
        from tqdm import tqdm

        if self._bar is None or what != self._what:
            self.__exit__()
            self._what, self._bar = what, tqdm(desc=what, total=total, initial=done - 1, disable=None)
        self._bar.update()


def _run_name(order: Order) -> str:
    """Such as librispeech-test-clean-nano-boost; characters that no file's name should have become dashes."""
    parts = (order.dataset, Path(order.asking.model).name, order.asking.mode or "own-mode")
    return "".join(sign if sign.isalnum() or sign in "-_.," else "-" for sign in "-".join(parts))


def _unit(figure: Figure) -> str:
    from vita_mctp.evaluation.results import SOUND

    return "" if figure.on == SOUND else " %"


def _figures(outcome: Outcome, folder: Path) -> str:
    from vita_mctp.evaluation.comparison import shown

    summary = outcome.summary
    lines = [f"{each.rule}, of {each.on}: {shown(each.on, each.estimate)}{_unit(each)}" for each in outcome.figures]
    lines.append(f"{summary['n_total']} samples, {summary['n_failed']} failed")
    return "\n".join([*lines, str(folder)]) + "\n"
