"""The studies by name. One more is a file with `run(StudyOptions) -> Result`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from vita_mctp.environment import require
from vita_mctp.errors import ConfigError
from vita_mctp.study import Result, StudyOptions


@dataclass(frozen=True)
class StudyKind:
    """run: "module:function". n, quick_n: answers, in full and to see that it works."""

    run: str
    summary: str
    n: int
    quick_n: int

    def size(self, quick: bool) -> int:
        return self.quick_n if quick else self.n

    def load(self) -> Callable[[StudyOptions], Result]:
        require("a study", "bench", "matplotlib")  # before minutes of work, not after them
        module, _, name = self.run.partition(":")
        found: Callable[[StudyOptions], Result] = getattr(import_module(module), name)
        return found


STUDIES = {
    "attention": StudyKind("vita_mctp.study.attention:run", "do codes look at the words they say", 100, 6),
    "masking": StudyKind("vita_mctp.study.masking:run", "which written words does the sound need", 80, 4),
    "blocks": StudyKind("vita_mctp.study.blocks:run", "what each block knows, and what from", 100, 6),
    "inputs": StudyKind("vita_mctp.study.inputs:run", "what a first block can learn from its inputs", 100, 4),
    "stages": StudyKind("vita_mctp.study.stages:run", "modes and stages: how good, how fast", 100, 6),
}


def find_study(name: str) -> StudyKind:
    if name not in STUDIES:
        raise ConfigError(f"{name!r} is no study; known are {', '.join(STUDIES)}")
    return STUDIES[name]
