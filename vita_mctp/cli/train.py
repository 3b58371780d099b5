"""`vita-mctp train`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

from vita_mctp.cli import write
from vita_mctp.cli.options import arg, command, flag, new_app, opt
from vita_mctp.errors import ConfigError

app = new_app()

_RECIPE = "a stage's YAML file; nano: from nothing, speech is made with flite and espeak-ng"
_SET = "change a key of the recipe, such as data.row_length=4096; may be repeated"


@command(app)
def train(
    recipe: Annotated[str, arg("RECIPE|nano", _RECIPE)],
    settings: Annotated[list[str] | None, opt("KEY=VALUE", _SET, "--set")] = None,
    plan: Annotated[bool, flag("--plan", "say what it would train and take; train nothing")] = False,
    out: Annotated[Path | None, opt("FOLDER", "for checkpoints (default: runs; for nano runs/nano)")] = None,
    recipes: Annotated[Path, opt("FOLDER", "of nano")] = Path("stages/nano"),
    processes: Annotated[int, opt("N", "for making nano's speech")] = 1,
) -> None:
    """Runs or resumes a stage, or every part of the nano model's making; prints the finished folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    changes = settings or []
    if recipe == "nano" and (plan or changes):
        raise ConfigError("nano is several recipes; --plan and --set want one of them: stages/nano/stage4_sft.yaml")
    folder: Path | None
    if recipe == "nano":
        from vita_mctp.nano.run import make_nano

        folder = make_nano(recipes, out or Path("runs/nano"), processes)
    elif plan:
        from vita_mctp.training.plan import plan as describe

        write(describe(Path(recipe), out or Path("runs"), changes))
        return
    else:
        from vita_mctp.training.stage import files_of, train_stage

        file = Path(recipe)
        folder = train_stage(file, files_of(file.parent), out=out or Path("runs"), settings=changes)
    if folder is None:
        raise KeyboardInterrupt
    if os.environ.get("RANK", "0") == "0":  # of several processes the first
        write(f"{folder}\n")
