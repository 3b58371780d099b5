"""`vita-mctp study ...`: the papers' claims, made again at small scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vita_mctp.cli import write
from vita_mctp.cli.options import Device, Seed, command, flag, new_app, opt

if TYPE_CHECKING:
    from vita_mctp.study import StudyOptions

app, study = new_app(), new_app()
app.add_typer(study, name="study")

_RESULTS = Path("docs/results")


@dataclass(frozen=True)
class Chosen:
    """What is studied, and where it is written."""

    model: Annotated[str, opt("nano|FOLDER|HUB_ID")] = "nano"
    n: Annotated[int | None, opt("N", "answers of each kind (default: the study's own)", min=2)] = None
    seed: Seed = 0
    runs: Annotated[Path | None, opt("FOLDER", "of a training run by stages, whose checkpoints are studied too")] = None
    work: Annotated[Path, opt("FOLDER", "for speech and runs; a killed study goes on there")] = Path("runs/study")
    out: Annotated[Path, opt("FOLDER", "for pages, JSON and pictures")] = _RESULTS
    device: Device = "cpu"
    dtype: Annotated[str | None, opt("DTYPE", "of the language model (default: as config.json)")] = None

    def options(self, name: str, quick: bool = False) -> StudyOptions:
        from vita_mctp.study import StudyOptions
        from vita_mctp.study.registry import find_study

        n = self.n or find_study(name).size(quick)
        return StudyOptions(self.model, n, self.work, self.seed, quick, self.runs, self.device, self.dtype)


@command(study, help="do codes look at the words they say? (VITA-Audio, figure 1a)")
def attention(chosen: Chosen) -> None:
    """Prints the path of the page."""
    _study("attention", chosen)


@command(study, help="which written words does the sound need? (VITA-Audio, figure 1b)")
def masking(chosen: Chosen) -> None:
    """As `attention`."""
    _study("masking", chosen)


@command(study, help="what does each block know, and what from? (VITA-Audio, sections 3.2 and 3.3)")
def blocks(chosen: Chosen) -> None:
    """As `attention`."""
    _study("blocks", chosen)


@dataclass(frozen=True)
class Budget:
    """Of studies that train."""

    seeds: Annotated[int, opt("N", "that every variant is trained with, from --seed on", min=1)] = 2
    steps: Annotated[int | None, opt("N", "of each variant and seed (default: the recipe's)", min=1)] = None
    quick: Annotated[bool, flag("--quick", "a few steps on a few sentences, to see that it works")] = False


@command(study, help="which predictor of several codes a step speaks best? (VocalNet, table 3)")
def predictors(chosen: Chosen, budget: Budget) -> None:
    """As `attention`."""
    _train("predictors", chosen, budget, Path("stages/nano_vocalnet/study.yaml"))


@command(study, help="how many MTP layers does VocalNet-M2 want? (its table 3)")
def depth(chosen: Chosen, budget: Budget) -> None:
    """As `attention`."""
    _train("depth", chosen, budget, Path("stages/nano_vocalnet_m2/study.yaml"))


def _train(name: str, chosen: Chosen, budget: Budget, recipe: Path) -> None:
    import logging
    from dataclasses import replace

    from vita_mctp.study import predictors as studies
    from vita_mctp.study.pages import write as write_page

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quick_n = 2 if budget.quick and chosen.n is None else chosen.n
    options = replace(replace(chosen, n=quick_n or 100).options(name), quick=budget.quick)
    run = {"predictors": studies.run_predictors, "depth": studies.run_depth}[name]
    page = chosen.out / f"{name}.md"
    write_page(run(options, studies.TrainingBudget(recipe, budget.seeds, budget.steps)), page)
    write(f"{page}\n")


@command(study, help="what can a first block learn from its inputs? (VITA-Audio, section 3.2)")
def inputs(chosen: Chosen) -> None:
    """As `attention`."""
    _study("inputs", chosen)


@command(study, help="how good and how fast is each mode, each stage? (VITA-Audio, tables 4 to 8)")
def stages(chosen: Chosen) -> None:
    """As `attention`."""
    _study("stages", chosen)


@command(study, "all", "every study but predictors and depth, and the page of all claims; run again, it goes on")
def everything(
    chosen: Chosen, quick: Annotated[bool, flag("--quick", "a few answers each, to see that it works")] = False
) -> None:
    """Prints the path of the page. A quick page goes below --work, unless --out is given."""
    from vita_mctp.study.everything import study_everything

    out = chosen.work / "quick" if quick and chosen.out == _RESULTS else chosen.out
    write(f"{study_everything(chosen.options, out, _RESULTS, quick=quick)}\n")


def _study(name: str, chosen: Chosen) -> None:
    from vita_mctp.study.pages import write as write_page
    from vita_mctp.study.registry import find_study

    page = chosen.out / f"{name}.md"
    write_page(find_study(name).load()(chosen.options(name)), page)
    write(f"{page}\n")
