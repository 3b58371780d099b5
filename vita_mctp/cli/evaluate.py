"""`vita-mctp evaluate ...`: its options and what it does."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vita_mctp.errors import ConfigError

if TYPE_CHECKING:
    from vita_mctp.evaluation.datasets import BenchmarkSet
    from vita_mctp.evaluation.judge import Listener
    from vita_mctp.evaluation.results import Figure
    from vita_mctp.evaluation.run import Order, Outcome, Tools
    from vita_mctp.evaluation.systems import Asking, System

AddCommand = Callable[[Any, str, str], argparse.ArgumentParser]
"""(sub-commands, name, summary) -> the parser of a new one."""

AddOptions = Callable[[argparse.ArgumentParser], None]

_TASKS = {
    "asr": "write down recordings; word or character error rate",
    "tts": "say sentences; error rate of what a judge hears",
    "sqa": "answer spoken questions; share of right answers, written and spoken",
}
_NONE = "none"


def add_parsers(
    commands: Any, add: AddCommand, parser_class: type[argparse.ArgumentParser], add_model: AddOptions
) -> None:
    """The command's options; add_model adds those that name a model and where it computes."""
    evaluate = add(commands, "evaluate", "measure a model, and write rows and figures")
    kinds = evaluate.add_subparsers(metavar="WHAT", required=True, parser_class=parser_class)
    _add_nano(add, kinds, add_model)
    for task, summary in _TASKS.items():
        _add_task(add(kinds, task, summary), task, add_model)
    report = add(kinds, "report", "put finished runs over the same samples side by side")
    report.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs; the others are held against the first")
    report.add_argument("--out", metavar="FILE", help="the page (default: standard output)")
    report.add_argument("--plot", metavar="FILE", help="a picture: svg, png or pdf (extra bench)")
    report.set_defaults(module=__name__, command="evaluate_report")
    sets = add(kinds, "sets", "list the benchmarks: samples, licence, source")
    sets.set_defaults(module=__name__, command="evaluate_sets")


def _add_nano(add: AddCommand, kinds: Any, add_model: AddOptions) -> None:
    nano = add(kinds, "nano", "the closed domain of nano, heard by an independent recogniser: the whole table")
    modes = ["vanilla", "balance", "boost", "turbo"]
    nano.add_argument("--n", type=int, default=100, help="samples of each group (default: %(default)s)")
    nano.add_argument("--modes", nargs="+", default=modes, metavar="MODE", help="default: all four")
    nano.add_argument("--out", default="docs/results/nano.md", metavar="FILE", help="default: %(default)s")
    where = "for speech, rows.jsonl and summary.json (default: %(default)s)"
    nano.add_argument("--work", default="runs/evaluate-nano", metavar="FOLDER", help=where)
    nano.add_argument("--seed", type=int, default=0, help="of sampling and intervals (default: %(default)s)")
    add_model(nano)
    nano.set_defaults(module=__name__, command="evaluate_nano")


def _add_task(parser: argparse.ArgumentParser, task: str, add_model: AddOptions) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="as `vita-mctp evaluate sets` lists them")
    parser.add_argument("--data", metavar="FOLDER", help="the set as published (default: stream it, extra data)")
    parser.add_argument("--out", metavar="FOLDER", help="of the run (default: runs/evaluate/DATASET-MODEL-MODE)")
    parser.add_argument("--mode", default=None, help="of decoding (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and intervals (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the model's own)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer (default: the model's own limit)")
    parser.add_argument(
        "--rule", action="append", dest="rules", metavar="RULE", help="may be repeated (default: set's)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N samples alone")
    parser.add_argument("--partial", action="store_true", help="a folder with a part of the set will do")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="over which GPUs are shared out")
    if task == "asr":
        parser.set_defaults(judge=None, sound=[])
    else:
        hears = "who writes down the answers' sound, or endpoint:URL#MODEL" + (", or none" if task == "sqa" else "")
        parser.add_argument("--judge", metavar="JUDGE", help=f"{hears} (default: the set's)")
        sounds = "score how it sounds by dnsmos or, with voice prompts, speaker; may be repeated (extra sound)"
        parser.add_argument("--sound", action="append", default=[], metavar="RULE", help=sounds)
    if task == "tts":
        parser.add_argument("--clone-voice", action="store_true", help="speak in the voice of the set's prompts")
    add_model(parser)
    parser.set_defaults(module=__name__, command="evaluate_task", task=task)
    parser.epilog = "--model may also be endpoint:URL#MODEL, or wavs:FOLDER with finished answers (ID.wav, ID.txt)"


def evaluate_nano(options: argparse.Namespace) -> int:
    """Asks every sample in every mode; writes the rows, their summary and the page, and prints the page's place."""
    from vita_mctp.cli.talk import load_model, write_text
    from vita_mctp.nano import benchmark as nano

    def show(done: int, total: int) -> None:
        if done == total or done % 100 == 0:
            write_text(sys.stderr, f"{done} of {total} samples\n")

    places = (Path(options.work), Path(options.out))
    wanted = nano.NanoOptions(options.model, options.n, tuple(options.modes), *places, options.seed)
    nano.evaluate_nano(load_model(options), wanted, progress=show)
    write_text(sys.stdout, f"{options.out}\n")
    return 0


def evaluate_task(options: argparse.Namespace) -> int:
    """Runs a benchmark, or goes on with it; prints its figures and its folder."""
    from vita_mctp.cli.talk import write_text
    from vita_mctp.environment import look_around
    from vita_mctp.evaluation.datasets import find_benchmark
    from vita_mctp.evaluation.run import evaluate

    for name in ("limit", "processes", "max_new_tokens"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} was {value}; give a whole number from 1 on")
    benchmark = find_benchmark(options.dataset, options.task)
    order = _order(options, benchmark)
    order.asking.check()
    folder = Path(options.out or Path("runs/evaluate") / _run_name(order))
    tools = _tools(order, benchmark, options.device)
    with _Bar() as bar:
        outcome = evaluate(
            benchmark, order, folder, tools, look_around(), processes=options.processes, progress=bar.show
        )
    write_text(sys.stdout, _figures(outcome, folder))
    return 0


def evaluate_report(options: argparse.Namespace) -> int:
    """The runs side by side, as a page and, where wanted, a picture."""
    from vita_mctp.cli.talk import write_text
    from vita_mctp.evaluation.comparison import compare_runs, draw, read_run, side_by_side
    from vita_mctp.evaluation.journal import cannot_write

    runs = [read_run(Path(folder)) for folder in options.runs]
    sides = compare_runs(runs)
    page = side_by_side(runs, sides)
    wanted = [(Path(options.plot), draw(sides, Path(options.plot)))] if options.plot else []
    if options.out:
        wanted.append((Path(options.out), page.encode()))
    for path, data in wanted:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise cannot_write(path, error) from None
    write_text(sys.stdout, "".join(f"{path}\n" for path, _ in wanted) if options.out else page)
    return 0


def evaluate_sets(options: argparse.Namespace) -> int:
    """One line for each benchmark."""
    from vita_mctp.cli.talk import write_text
    from vita_mctp.evaluation.datasets import BENCHMARKS

    for one in BENCHMARKS.values():
        size = "size varies" if one.samples is None else f"{one.samples} samples"
        ways = f"layout {one.layout}" + (", streamed" if one.hub else "")
        write_text(sys.stdout, f"{one.name}: {one.task}, {one.language}, {size}; {ways}; {one.licence}; {one.source}\n")
    return 0


def _order(options: argparse.Namespace, benchmark: BenchmarkSet) -> Order:
    from vita_mctp.evaluation.run import Order
    from vita_mctp.evaluation.systems import Asking

    loading = {name: getattr(options, name) for name in ("dtype", "attn", "quantize")}
    loading |= {name: getattr(options, name) for name in ("audio_tokenizer", "audio_decoder")}
    asking = Asking(
        options.model,
        options.mode,
        options.seed,
        options.temperature,
        options.max_new_tokens,
        getattr(options, "clone_voice", False),
        loading,
    )
    judge = None if options.judge == _NONE else options.judge or benchmark.judge
    rules = tuple(options.rules or benchmark.rules)
    data, sound = options.data and str(Path(options.data).resolve()), tuple(options.sound)
    return Order(benchmark.name, asking, rules, judge, data, sound, options.limit, options.partial)


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
