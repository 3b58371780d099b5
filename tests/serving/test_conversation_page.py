"""The conversation page in a real browser, whose microphone plays questions."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.serving.chromium import BINARY, Page, chromium
from tests.serving.conftest import serving
from tests.serving.realtime_client import RATE, SPEECH
from vita_mctp.audio import write_wave
from vita_mctp.serving.demo import build_demo
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import Wave

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BINARY is None and "CI" not in os.environ, reason="chromium is not installed"),
]

SPOKEN = "[...document.querySelectorAll('#turns > li.assistant .metrics')].length"
CONTIGUOUS = """live.player.schedule.every((chunk, i, all) =>
    i === 0 || chunk.late || chunk.start === all[i - 1].start + all[i - 1].samples)"""


@pytest.fixture(scope="module")
def demo(nano: SpeechLM) -> Iterator[str]:
    with serving(build_demo(nano)) as address:
        yield address


def microphone(folder: Path, before: float, after: float) -> Path:
    """A file that plays the question with so much near-silence around it, in seconds."""
    noise = np.random.default_rng(0)
    quiet = [noise.normal(0, 1e-4, int(seconds * RATE)).astype(np.float32) for seconds in (before, after)]
    path = folder / "microphone.wav"
    write_wave(path, Wave(np.concatenate([quiet[0], SPEECH, quiet[1]]), RATE))
    return path


def hosts(page: Page) -> set[str]:
    """Asked for by the page."""
    sent = (event["params"] for event in page.events if event["method"] == "Network.requestWillBeSent")
    return {urlsplit(params["request"]["url"]).hostname or "" for params in sent}


def errors(page: Page) -> list[str]:
    wanted = ("Runtime.exceptionThrown", "Log.entryAdded")
    return [json.dumps(event) for event in page.events if event["method"] in wanted]


def test_three_spoken_turns_in_two_modes(demo: str, tmp_path: Path) -> None:
    with chromium(demo, tmp_path / "profile", microphone(tmp_path, 1.0, 7.0)) as page:
        page.run("document.querySelector('#talk').click()")
        page.until("live.hands")
        for turn, mode in enumerate(("boost", "turbo", "vanilla"), 1):
            page.run(f"$mode = document.querySelector('#mode'); $mode.value = '{mode}'; $mode.onchange()")
            page.until(f"{SPOKEN} >= {turn}")
            said = page.run("document.querySelector('#turns > li.assistant:last-of-type').innerText")
            assert mode in said and "first sound" in said and "tokens/s" in said
            assert page.run("live.player.schedule.length") > 1 and page.run(CONTIGUOUS)
            assert page.run("live.player.late") == 0
        heard = page.until("document.querySelector('#turns > li.user').innerText.match(/twelve/)?.[0]")
        assert heard == "twelve" and "twenty" in page.run("document.querySelector('#turns').innerText")
        assert page.run("document.querySelectorAll('.tokens i').length") > 30
        assert errors(page) == [] and hosts(page) <= {urlsplit(demo).hostname, ""}


def test_a_question_is_asked_again_in_another_mode(demo: str, tmp_path: Path) -> None:
    with chromium(demo, tmp_path / "profile", None, "--deny-permission-prompts") as page:
        page.run("document.querySelector('#examples button').click()")
        page.until(f"{SPOKEN} >= 1")
        page.run("$mode = document.querySelector('#mode'); $mode.value = 'turbo'; $mode.onchange()")
        page.run("document.querySelector('[title^=\"the same question\"]').click()")
        page.until(f"{SPOKEN} >= 2")
        assert page.run("document.querySelectorAll('#turns > li.user').length") == 1
        assert "turbo" in page.run("document.querySelector('#turns > li.assistant:last-of-type').innerText")
        assert not page.run("document.querySelector('#status.wrong')")


def test_the_visitors_voice_stops_the_sound(demo: str, tmp_path: Path) -> None:
    with chromium(demo, tmp_path / "profile", microphone(tmp_path, 0.2, 0.9)) as page:
        page.run("document.querySelector('#talk').click()")
        cut = page.until("live.interruptions.find(({ played }) => played > 0)")
        assert cut["after"] >= 0
        shown = f"[...live.turns.get('{cut['item']}').entry.classList].join()"
        assert page.run(shown) == "assistant"
        assert errors(page) == []


def test_holding_the_button_asks(demo: str, tmp_path: Path) -> None:
    with chromium(demo, tmp_path / "profile", microphone(tmp_path, 0.2, 0.2)) as page:
        page.run("document.querySelector('#hold').focus()")
        key = {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32}
        page.call("Input.dispatchKeyEvent", type="keyDown", text=" ", **key)
        page.until("live.recording && live.sent() > 24000 * 4")
        page.call("Input.dispatchKeyEvent", type="keyUp", **key)
        page.until(f"{SPOKEN} >= 1")
        assert page.run("live.player.schedule.length") > 1 and not page.run("live.hands")


def test_a_refused_microphone_is_said_and_typing_still_works(demo: str, tmp_path: Path) -> None:
    with chromium(demo, tmp_path / "profile", None, "--deny-permission-prompts") as page:
        page.run("document.querySelector('#talk').click()")
        page.until("document.querySelector('#status').innerText.includes('refused')")
        page.run("document.querySelector('#examples button').click()")
        page.until(f"{SPOKEN} >= 1")
        assert "thirteen" in page.run("document.querySelector('#turns').innerText")


@pytest.mark.parametrize("name, width, height, dark", [("phone", 390, 844, False), ("dark", 1100, 800, True)])
def test_the_answer_is_in_sight(demo: str, tmp_path: Path, name: str, width: int, height: int, dark: bool) -> None:
    with chromium(demo, tmp_path / "profile", None, "--deny-permission-prompts") as page:
        page.size(width, height, dark=dark)
        page.run("document.querySelector('#examples button').click()")
        page.until(f"{SPOKEN} >= 1")
        box = page.run("document.querySelector('#turns > li.assistant').getBoundingClientRect().toJSON()")
        assert box["top"] >= 0 and box["bottom"] <= height
        assert page.run("document.documentElement.scrollWidth") <= width
        luminance = page.run("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)")
        assert (max(luminance[:3]) < 60) == dark
