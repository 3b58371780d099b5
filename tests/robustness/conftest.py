"""How many damaged inputs are tried of each kind: `VITA_MCTP_CASES` (200 in full), 8 otherwise.

`VITA_MCTP_REPORT=docs/results/robustness.md` writes what came of them as a page.
"""

import os
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from damage import EXIT_CODE

CASES = int(os.environ.get("VITA_MCTP_CASES", "8"))

_PAGE = """# Damaged input

What the program reads was damaged, and what it is asked was made odd, case by case from the case's number. A case
passes with a right result (exit code 0), a check that says what is wrong (1), or one line (2). A traceback, more than
one line, ten seconds of computing, a file left half-written or outside `--out` fails it
([the test](../../tests/robustness/test_any_input.py)). CI tries eight of each kind. This page was written on {date} by

    VITA_MCTP_CASES={each} VITA_MCTP_REPORT=docs/results/robustness.md pytest tests/robustness

| what was damaged | cases | exit 0 | exit 1 | exit 2 | failed |
|---|---|---|---|---|---|
"""


def pytest_generate_tests(metafunc: Any) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", range(CASES))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Of all processes of the run together."""
    if target := os.environ.get("VITA_MCTP_REPORT"):
        reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, ())]
        Path(target).write_text(_page(reports))


def _page(reports: list[Any]) -> str:
    found: dict[str, Counter[Any]] = {}
    for report in reports:
        test, _, parameters = report.nodeid.rpartition("::")[2].removesuffix("]").partition("[")
        if parameters:
            _case, *kind = parameters.split("-")
            name = " ".join([test.removeprefix("test_").replace("_", " "), *kind])
            codes = [value for key, value in report.user_properties if key == EXIT_CODE]
            found.setdefault(name, Counter()).update(["failed"] if report.failed else codes)
    rows = [[sum(each.values()), *(each[key] for key in (0, 1, 2, "failed"))] for each in found.values()]
    lines = [f"| {name} | {' | '.join(map(str, row))} |" for name, row in sorted(zip(found, rows, strict=True))]
    sums = " | ".join(str(sum(column)) for column in zip(*rows, strict=True))
    return _PAGE.format(date=date.today(), each=CASES) + "\n".join([*lines, f"| all | {sums} |"]) + "\n"
