"""`vita-mctp study ...`: the papers' claims, made again at small scale."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
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
        from vita_mctp.study import SIZES, StudyOptions

        n = self.n or SIZES[name][quick]
        return StudyOptions(self.model, n, self.work, self.seed, quick, self.runs, self.device, self.dtype)


def _study(name: str, help: str) -> None:
    """Adds the command of a study."""

    @command(study, name, help)
    def run(chosen: Chosen) -> None:
        from vita_mctp.study import make

        page = chosen.out / f"{name}.md"
        make(name, chosen.options(name), page)
        write(f"{page}\n")


_study("attention", "do codes look at the words they say? (VITA-Audio, figure 1a)")
_study("masking", "which written words does the sound need? (VITA-Audio, figure 1b)")
_study("blocks", "what does each block know, and what from? (VITA-Audio, sections 3.2 and 3.3)")
_study("inputs", "what can a first block learn from its inputs? (VITA-Audio, section 3.2)")
_study("stages", "how good and how fast is each mode, each stage? (VITA-Audio, tables 4 to 8)")


@dataclass(frozen=True)
class Budget:
    """Of studies that train."""

    seeds: Annotated[int, opt("N", "that every variant is trained with, from --seed on", min=1)] = 2
    steps: Annotated[int | None, opt("N", "of each variant and seed (default: the recipe's)", min=1)] = None
    quick: Annotated[bool, flag("--quick", "a few steps on a few sentences, to see that it works")] = False


def _training_study(name: str, recipe: Path, help: str) -> None:
    """Adds the command of a study that trains."""

    @command(study, name, help)
    def run(chosen: Chosen, budget: Budget) -> None:
        from vita_mctp.study import predictors
        from vita_mctp.study import write as write_page

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        n = chosen.n or (2 if budget.quick else 100)
        options = replace(chosen, n=n).options(name, budget.quick)
        result = predictors.run(name, options, predictors.TrainingBudget(recipe, budget.seeds, budget.steps))
        page = chosen.out / f"{name}.md"
        write_page(result, name, options, page)
        write(f"{page}\n")


_training_study(
    "predictors",
    Path("stages/nano_vocalnet/study.yaml"),
    "which predictor of several codes a step speaks best? (VocalNet, table 3)",
)
_training_study(
    "depth", Path("stages/nano_vocalnet_m2/study.yaml"), "how many MTP layers does VocalNet-M2 want? (its table 3)"
)


@command(study, "all", "every study but predictors and depth, and the page of all claims; run again, it goes on")
def everything(
    chosen: Chosen, quick: Annotated[bool, flag("--quick", "a few answers each, to see that it works")] = False
) -> None:
    """Prints the path of the page. A quick page goes below --work, unless --out is given."""
    from vita_mctp.study.claims import study_everything

    out = chosen.work / "quick" if quick and chosen.out == _RESULTS else chosen.out
    write(f"{study_everything(chosen.options, out, _RESULTS, quick=quick)}\n")
