"""The conversation page in a real browser, whose microphone plays questions."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
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

SPOKEN = "document.querySelectorAll('#turns .assistant.finished').length"
LAST = "[...document.querySelectorAll('#turns .assistant')].at(-1)"
WATCH_CELLS = """globalThis.seen = []; $grow = live.turns.grow; live.turns.grow = function (...made) {
    $grow.apply(this, made);
    seen.push(document.querySelectorAll('#turns .assistant:not(.finished) .tokens i').length);
}"""
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


def picture(page: Page, name: str) -> None:
    """docs/demo.md says how they are made."""
    if folder := os.environ.get("VITA_MCTP_PICTURES"):
        page.picture(Path(folder) / f"conversation{name}.png")


def told_tokens(page: Page) -> dict[str, list[list[Any]]]:
    """By answer, [kind, level] of each token that came before the answer's end."""
    told: dict[str, list[list[Any]]] = {}
    for event in page.events:
        if event["method"] == "Network.webSocketFrameReceived":
            said = json.loads(event["params"]["response"]["payloadData"])
            if said["type"] == "vita_mctp.response.tokens.delta":
                new = zip(said["kinds"], said["levels"], strict=True)
                told.setdefault(said["item_id"], []).extend(map(list, new))
    return told


def choose(page: Page, selector: str, value: str) -> None:
    page.run(f"$chosen = document.querySelector('{selector}'); $chosen.value = '{value}'; $chosen.onchange?.()")


def test_three_spoken_turns_in_two_modes(demo: str, tmp_path: Path) -> None:
    with chromium(demo, tmp_path / "profile", microphone(tmp_path, 1.0, 7.0)) as page:
        page.run("document.querySelector('#talk').click()")
        page.until("live.hands")
        for turn, mode in enumerate(("boost", "turbo", "vanilla"), 1):
            page.run(f"$mode = document.querySelector('#mode'); $mode.value = '{mode}'; $mode.onchange()")
            page.until(f"{SPOKEN} >= {turn}")
            said = page.run(f"{LAST}.innerText")
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
        made = page.run(
            "[...live.turns.turns.values()].slice(1).map(({ kinds, levels }) => kinds.map((k, i) => [k, levels[i]]))"
        )
        assert made == list(told_tokens(page).values())
        assert "turbo" in page.run(f"{LAST}.innerText")
        assert not page.run("document.querySelector('#status.wrong')")


def test_two_modes_beside_each_other_and_conversations_that_are_kept(demo: str, tmp_path: Path) -> None:
    answers = "[...document.querySelectorAll('#turns .answers')].at(-1).querySelectorAll('.assistant')"
    cells = "[...entry.querySelectorAll('.tokens i')].map((cell) => [cell.classList[0], +cell.dataset.level])"
    with chromium(demo, tmp_path / "profile", microphone(tmp_path, 1.0, 7.0)) as page:
        page.size(1100, 760)
        choose(page, "#mode", "boost")
        choose(page, "#beside", "verified")
        page.run(WATCH_CELLS)
        page.run("document.querySelector('#talk').click()")
        page.until("!!document.querySelector('#turns .user.finished')")
        page.run("document.querySelector('#talk').click()")
        page.until(f"{SPOKEN} === 2 && !live.player.playing")
        shown = page.run(
            f"[...{answers}].map((entry) => [entry.innerText, {cells}, entry.getBoundingClientRect().toJSON()])"
        )
        (boost, _, left), (verified, _, right) = shown
        assert boost.count("boost") == 1 and "verified" in verified and left["top"] == right["top"]
        assert left["right"] < right["left"]
        assert all("first sound" in text and "tokens/s" in text and "real-time factor" in text for text, *_ in shown)
        turns = page.run("[...live.turns.turns.values()].map(({ sound, ...turn }) => turn)")
        assert turns[0]["words"] == "what is eight plus twelve" and "twenty" in turns[2]["words"]
        seen = page.run("seen")
        assert 0 < seen[0] < seen[1] < len(shown[0][1]) and max(seen) == max(len(tokens) for _, tokens, _ in shown)
        assert list(told_tokens(page).values()) == [tokens for _, tokens, _ in shown]
        assert [turn["levels"] for turn in turns[1:]] == [[level for _, level in tokens] for _, tokens, _ in shown]
        tree = page.call("Accessibility.getFullAXTree")["nodes"]
        parts = [(node["role"]["value"], node["name"]["value"]) for node in tree if node.get("name")]
        assert all(name for role, name in parts if role in ("button", "textbox", "combobox", "image"))
        assert any(role == "image" and name.startswith(f"{len(turns[1]['levels'])} tokens") for role, name in parts)

        choose(page, "#beside", "")
        page.run("document.querySelector('#anew').click()")
        page.until("live.turns.turns.size === 0")
        page.run("document.querySelector('#examples button').click()")
        page.until("live.player.playing")
        page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
        page.until(f"{SPOKEN} === 1 && !live.player.playing")
        page.run("globalThis.before = true")
        page.call("Page.reload")
        names = "[...document.querySelectorAll('#kept li button:first-child')].map((entry) => entry.firstChild.data)"
        page.until(f"!globalThis.before && {names}.length === 2")
        assert page.run(names) == ["how much is seven plus six", "what is eight plus twelve"]
        page.run("document.querySelectorAll('#kept li')[1].querySelector('button').click()")
        page.until(f"{SPOKEN} === 2 && document.activeElement.id === 'log'")
        assert page.run(f"[...{answers}].map((entry) => [entry.innerText, {cells}])") == [
            [text, tokens] for text, tokens, _ in shown
        ]
        picture(page, "")
        page.run(f"{answers}[0].querySelector('button').click()")
        page.until("live.player.playing")
        samples = "live.turns.get('{}').sound.reduce((sum, chunk) => sum + chunk.length, 0)".format(turns[1]["id"])
        assert page.run("live.player.end - live.player.schedule[0].start") == page.run(samples) > 20000
        page.run(f"{answers}[0].querySelector('button[title]').click()")
        page.until(f"{SPOKEN} === 3")
        assert "twenty" in page.run(f"{LAST}.innerText") and not page.run("document.querySelector('#status.wrong')")
        page.run("document.querySelector('#kept [aria-label=\"Remove: what is eight plus twelve\"]').click()")
        page.until(f"{names}.length === 1 && live.turns.turns.size === 0")
        page.until("document.activeElement.tagName === 'SUMMARY'")
        assert errors(page) == [] and hosts(page) <= {urlsplit(demo).hostname, ""}


def test_the_visitors_voice_stops_the_sound(demo: str, tmp_path: Path) -> None:
    with chromium(demo, tmp_path / "profile", microphone(tmp_path, 0.2, 0.9)) as page:
        page.run("document.querySelector('#talk').click()")
        cut = page.until("live.interruptions.find(({ played }) => played > 0)")
        assert cut["after"] >= cut["told"] and 0 <= cut["told"] < 200  # ms
        assert page.run(f"live.turns.get('{cut['item']}').role") == "assistant"
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
    elsewhere = "--host-resolver-rules=MAP demo.test 127.0.0.1"
    with chromium(demo, tmp_path / "profile", None, "--deny-permission-prompts", elsewhere) as page:
        page.run("document.querySelector('#talk').click()")
        page.until("document.querySelector('#status').innerText.includes('refused')")
        page.run("document.querySelector('#examples button').click()")
        page.until(f"{SPOKEN} >= 1")
        assert "thirteen" in page.run("document.querySelector('#turns').innerText")
        page.call("Page.navigate", url=demo.replace("127.0.0.1", "demo.test"))
        page.until("globalThis.live && document.querySelector('#mode').options.length")
        page.run("document.querySelector('#talk').click()")
        page.until("document.querySelector('#status').innerText.includes('HTTPS')")


@pytest.mark.parametrize("name, width, height, dark", [("_phone", 390, 844, False), ("_dark", 1100, 760, True)])
def test_the_answer_is_in_sight(demo: str, tmp_path: Path, name: str, width: int, height: int, dark: bool) -> None:
    with chromium(demo, tmp_path / "profile", None, "--deny-permission-prompts") as page:
        page.size(width, height, dark=dark)
        page.run("document.querySelector('#examples button').click()")
        page.until(f"{SPOKEN} >= 1")
        box = page.run("document.querySelector('#turns .assistant').getBoundingClientRect().toJSON()")
        assert box["top"] >= 0 and box["bottom"] <= height
        assert page.run("document.documentElement.scrollWidth") <= width
        picture(page, name)
        luminance = page.run("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)")
        assert (max(luminance[:3]) < 60) == dark
