"""docs/architecture.md speaks of what is there: every name on it exists, and the walk is the one an answer takes."""

import re
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import soundfile

from vita_mctp.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
NAMES = sorted(set(re.findall(r"`(vita_mctp[\w.]*:[\w.]+)`", PAGE)))
WALK = re.findall(r"^\| \d+ \| `(vita_mctp[\w.]*:[\w.]+)` \|", PAGE, re.MULTILINE)


def resolve(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name: str) -> None:
    assert resolve(name) is not None


def test_the_walk_is_short_and_true(tmp_path: Path, tiny_speech_folder: Path) -> None:
    assert 0 < len(WALK) <= 10
    question, answer = tmp_path / "question.wav", tmp_path / "answer.wav"
    soundfile.write(question, 0.4 * np.sin(np.arange(16000) / 9), 16000)
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    threading.setprofile(note)  # the engine's own
    try:
        code = main(["ask", str(question), "-o", str(answer), "--seed", "1", "--model", str(tiny_speech_folder)])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert code == 0 and answer.is_file()
    functions = [getattr(resolve(name), "__wrapped__", resolve(name)) for name in WALK]
    assert [function.__qualname__ for function in functions if function.__code__ not in called] == []
