"""`study all`: each study that is not done yet for this model, then the page of all claims."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from vita_mctp.checkpoints.opening import find_model
from vita_mctp.environment import weights_hash
from vita_mctp.files import write_output
from vita_mctp.study import StudyOptions
from vita_mctp.study.claims import Evidence, page
from vita_mctp.study.pages import read, write
from vita_mctp.study.registry import STUDIES

_PICTURES = ("attention-questions.svg", "masking-questions.svg", "blocks-questions.svg", "stages.svg")
"""Those that the page of claims shows."""


def study_everything(
    options_of: Callable[[str, bool], StudyOptions], out: Path, benches: Path, *, quick: bool = False
) -> Path:
    """Runs what `out` has no findings of, writes each study's page as it is done, and claims.md; its path.

    options_of: (study, quick) -> its options. benches: the folder of recorded benches.
    Findings of other weights, sizes or seeds are made again.
    """
    for name, kind in STUDIES.items():
        options = options_of(name, quick)
        target = out / f"{name}.md"
        if not _is_done(options, target):
            sys.stderr.write(f"study {name}: {options.n} answers\n")
            write(kind.load()(options), target)
    words = ["vita-mctp", "study", "all", "--model", options.model, "--seed", str(options.seed)]
    words += (["--quick"] if quick else []) + ([] if options.runs is None else ["--runs", str(options.runs)])
    words += [] if options.n == kind.size(quick) else ["--n", str(options.n)]
    shown = [name for name in _PICTURES if (out / name).exists()]
    target = out / "claims.md"
    write_output(target, page(Evidence.gather(out, benches), shlex.join(words), shown).encode())
    return target


def _is_done(options: StudyOptions, target: Path) -> bool:
    found = read(target)
    if found is None:
        return False
    asked = {"weights": weights_hash(find_model(options.model)), "n": options.n, "seed": options.seed}
    runs = "" if options.runs is None else str(options.runs)
    return all(found.about.get(key) == value for key, value in asked.items()) and found.about.get("runs", "") == runs
