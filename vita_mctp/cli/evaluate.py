"""`vita-mctp evaluate ...`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vita_mctp.checkpoints.options import AUTO
from vita_mctp.cli import write
from vita_mctp.cli.options import MaxNewTokens, Mode, ModelOptions, Seed, Temperature, arg, command, flag, new_app, opt
from vita_mctp.progress import bars

if TYPE_CHECKING:
    from vita_mctp.evaluation.run import RunConfig

app, evaluate = new_app(), new_app()
app.add_typer(evaluate, name="evaluate")

_NONE, _MODES = "none", ("vanilla", "balance", "boost", "turbo")
_SYSTEMS = "--model may also be endpoint:URL#MODEL, or wavs:FOLDER with finished answers (ID.wav, ID.txt)"
_JUDGE = "the transcriber of the answers' sound, or endpoint:URL#MODEL, or, for sqa, none (default: the set's)"
_SOUND = "score how it sounds by dnsmos or, with voice prompts, speaker; may be repeated (extra sound)"

Dataset = Annotated[str, arg("DATASET", "as `vita-mctp evaluate sets` lists them, or a manifest of your own (.jsonl)")]
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
    limit: Annotated[int | None, opt("N", "the first N samples alone", min=1, max=1 << 31)] = None
    partial: Annotated[bool, flag("--partial", "a folder with a part of the set will do")] = False
    processes: Annotated[int, opt("N", "over which GPUs are shared out", min=1)] = 1


@command(evaluate, help="the closed domain of nano, heard by an independent recogniser: the whole table")
def nano(
    model: ModelOptions,
    n: Annotated[int, opt("N", "samples of each group", "--n", min=1)] = 100,
    modes: Annotated[list[str] | None, opt("MODE...", "default: all four")] = None,
    out: Annotated[Path, opt("FILE", "the page")] = Path("docs/results/nano.md"),
    work: Annotated[Path, opt("FOLDER", "for speech, runs and summary.json")] = Path("runs/evaluate-nano"),
    seed: Seed = 0,
) -> None:
    """Runs every nano benchmark in every mode; writes the page, and prints its path."""
    from vita_mctp.cli.talk import load_model
    from vita_mctp.files import check_output
    from vita_mctp.nano.benchmark import NanoOptions, evaluate_nano

    check_output(out)
    chosen = NanoOptions(model.model, n, tuple(modes or _MODES), work, out, seed)
    with bars() as show:
        evaluate_nano(load_model(model), chosen, progress=show)
    write(f"{out}\n")


@command(evaluate, help="a nano VocalNet, streamed and whole, at every speed: the whole table")
def nano_vocalnet(
    model: Annotated[str, opt("FOLDER", "as train nano-vocalnet or nano-vocalnet-m2 made it")],
    n: Annotated[int, opt("N", "held-out questions", "--n", min=1)] = 50,
    out: Annotated[Path, opt("FILE", "the page")] = Path("docs/results/vocalnet_nano.md"),
    work: Annotated[Path, opt("FOLDER", "for speech")] = Path("runs/evaluate-nano"),
) -> None:
    """Prints the page's path."""
    from vita_mctp.nano.talker_benchmark import evaluate_nano_vocalnet

    evaluate_nano_vocalnet(model, n, work, out)
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
) -> None:
    """The runs side by side, as a page."""
    from vita_mctp.evaluation.report import compare_runs, read_run, side_by_side
    from vita_mctp.files import check_output, write_output

    if out:
        check_output(out)
    found = [read_run(folder) for folder in runs]
    page = side_by_side(found, compare_runs(found))
    if out:
        write_output(out, page.encode())
    write(f"{out}\n" if out else page)


@command(evaluate, help="list the benchmarks: samples, licence, source")
def sets() -> None:
    """One line for each benchmark."""
    from vita_mctp.evaluation.benchmarks import all_benchmarks

    write("".join(f"{benchmark.describe()}\n" for benchmark in all_benchmarks().values()))


def _evaluate(
    task: str,
    dataset: str,
    run: RunOptions,
    model: ModelOptions,
    judge: str | None = None,
    sound: list[str] | None = None,
    clone_voice: bool = False,
) -> None:
    from vita_mctp.evaluation.benchmarks import MANIFEST_SUFFIX, find_benchmark
    from vita_mctp.evaluation.report import outcome
    from vita_mctp.evaluation.run import RunConfig
    from vita_mctp.evaluation.run import evaluate as run_benchmark

    is_own = dataset.endswith(MANIFEST_SUFFIX)
    name = str(Path(dataset).absolute()) if is_own else dataset
    find_benchmark(name, task)
    system = {"model": model.model, "clone_voice": clone_voice}
    system |= {name: getattr(run, name) for name in ("mode", "seed", "temperature", "max_new_tokens")}
    system["loading"] = {name: value for name, value in model.loading.items() if name != "device"}
    values = {
        "benchmark": name,
        "task": task if is_own else None,
        "system": system,
        "rules": run.rules,
        "judges": None if judge is None else [] if judge == _NONE else [judge],
        "data": None if run.data is None else str(run.data.resolve()),
        "sound": sound or (),
        "limit": run.limit,
        "partial": run.partial,
    }
    config = RunConfig.parse(values, "the command")
    folder = run.out or Path("runs/evaluate") / _run_name(config)
    device = config.system.best_device() if model.device == AUTO else model.device
    with bars() as show:
        result = run_benchmark(config, folder, device=device, processes=run.processes, progress=show)
    write(outcome(result, folder))


def _run_name(config: RunConfig) -> str:
    """Such as librispeech-test-clean-nano-boost; characters that no file's name should have become dashes."""
    benchmark = f"{Path(config.benchmark).stem}-{config.task}" if config.task else config.benchmark
    parts = (benchmark, Path(config.system.model).name, config.system.mode or "own-mode")
    return "".join(sign if sign.isalnum() or sign in "-_.," else "-" for sign in "-".join(parts))
