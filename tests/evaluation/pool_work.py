"""Work for `test_pool`'s processes, in a module that they can import."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from vita_mctp.errors import ConfigError, EndpointError
from vita_mctp.evaluation.benchmarks import Case
from vita_mctp.evaluation.pool import Entry


class Count(Entry):
    references: int


@dataclass(frozen=True)
class OpenCount:
    """Counts a case's references. at: the id at which it fails, by `failing`: an error, or an end without a word."""

    at: str = ""
    failing: str = "error"

    def __call__(self, worker: int) -> Callable[[Case], Count]:
        if self.failing == "opening":
            raise ConfigError("there is nothing to open")
        return self._entry

    def _entry(self, case: Case) -> Count:
        if case.id == self.at and self.failing == "death":
            os._exit(9)
        if case.id == self.at:
            raise EndpointError("the server is gone")
        return Count(id=case.id, references=len(case.references))
