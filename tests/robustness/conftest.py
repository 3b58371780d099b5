"""How many damaged inputs are tried of each kind: `VITA_MCTP_CASES` (200 in full), 8 otherwise."""

import os

CASES = int(os.environ.get("VITA_MCTP_CASES", "8"))


def pytest_generate_tests(metafunc: object) -> None:
    if "case" in metafunc.fixturenames:  # type: ignore[attr-defined]
        metafunc.parametrize("case", range(CASES))  # type: ignore[attr-defined]
