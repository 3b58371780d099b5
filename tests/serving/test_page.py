"""The page: its event function alone, and the served page as a browser's client uses it."""

import io
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.serving.conftest import serving
from vita_mctp import SpeechLM
from vita_mctp.answer import collect
from vita_mctp.audio import write_wave
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES, parse_mode
from vita_mctp.errors import AudioError, ConfigError, MissingExtraError
from vita_mctp.nano.domain import build_domain
from vita_mctp.serving import page as page_module
from vita_mctp.serving.demo import build_demo
from vita_mctp.serving.page import answer, build_page, metrics_table
from vita_mctp.serving.words import EXAMPLES
from vita_mctp.types import Done, StopReason, Timings, Turn, Wave

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def speech_lm(tiny_speech_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(tiny_speech_folder)


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("question") / "question.wav"
    write_wave(path, Wave((0.4 * np.sin(np.arange(32000) / 9)).astype(np.float32), 16000))
    return str(path)


class Outside(list[str]):
    """The hosts that were asked for and are not this machine."""


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    hosts, connect, look_up = Outside(), socket.socket.connect, socket.getaddrinfo
    local = ("127.0.0.1", "localhost", "::1", "0.0.0.0", None)

    def watched_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in local:
            hosts.append(address[0])
            raise OSError("no network in this test")
        connect(self, address)

    def watched_look_up(host: Any, *rest: Any, **named: Any) -> Any:
        if host not in local:
            hosts.append(str(host))
            raise socket.gaierror("no network in this test")
        return look_up(host, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched_connect)
        patch.setattr(socket, "getaddrinfo", watched_look_up)
        yield hosts


@pytest.fixture(scope="module")
def address(speech_lm: SpeechLM, outside: Outside) -> Iterator[str]:
    with serving(build_demo(speech_lm, model="tiny")) as served_at:
        yield f"{served_at}/recordings"


@pytest.fixture
def visitors(address: str) -> Iterator[Iterator[Any]]:
    """One client after the other, each a visit of its own; they do not themselves tell the hub that they were used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradio_client.client, "build_hf_headers", lambda **options: {})
        patch.setattr(gradio_client.client, "send_telemetry", lambda **options: None)
        yield (gradio_client.Client(address, verbose=False, analytics_enabled=False) for _ in itertools.count())


@pytest.fixture
def client(visitors: Iterator[Any]) -> Any:
    return next(visitors)


def values(updates: list[tuple[Any, Any, Any, Any]], column: int) -> list[Any]:
    return [update[column] for update in updates if update[column] != gradio.skip()]


def test_text_grows_sound_streams_and_figures_end_it(speech_lm: SpeechLM, question: str) -> None:
    updates = list(answer(speech_lm, question, "boost", 1, streams=True))
    expected = speech_lm.ask(question, "boost", seed=1)
    texts, sounds, figures, histories = (values(updates, column) for column in range(4))
    assert histories == [expected.turns]
    assert texts[-1] == expected.text and len(texts) > 3
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(texts[1:-1]))
    streamed = np.concatenate([soundfile.read(io.BytesIO(sound), dtype="float32")[0] for sound in sounds[1:]])
    assert len(sounds) > 3 and sounds[0] is None
    np.testing.assert_allclose(streamed, expected.wave.samples.clip(-1, 1), atol=1e-4)
    assert figures[0] == "" and f"| tokens | {expected.done.timings.tokens} |" in figures[-1]


def test_without_ffmpeg_the_sound_comes_whole_at_the_end(speech_lm: SpeechLM, question: str) -> None:
    updates = list(answer(speech_lm, question, "turbo", 1, streams=False))
    expected = speech_lm.ask(question, "turbo", seed=1).wave
    sounds = values(updates, 1)
    assert sounds[0] is None and len(sounds) == 2
    rate, samples = sounds[1]
    assert rate == expected.sample_rate and samples.dtype == np.int16
    np.testing.assert_allclose(samples / 32767, expected.samples.clip(-1, 1), atol=1e-4)


def test_closing_the_updates_stops_generation(
    speech_lm: SpeechLM, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = count_steps(monkeypatch, seconds=0.05)
    updates = answer(speech_lm, question, "vanilla", 1, streams=True)
    assert next(updates)[:3] == ("", None, "")
    next(updates)
    taken = len(steps)
    updates.close()
    time.sleep(0.3)
    assert 0 < taken < 60 and len(steps) <= taken + 2


def count_steps(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[float]:
    steps, advance = list[float](), Engine.advance

    def counted(self: Engine, states: Any) -> Any:
        time.sleep(seconds)
        steps.append(time.monotonic())
        return advance(self, states)

    monkeypatch.setattr(Engine, "advance", counted)
    return steps


def test_bad_input_is_refused_before_anything_changes(speech_lm: SpeechLM, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not a sound")
    with pytest.raises(ConfigError, match="record or upload one"):
        next(answer(speech_lm, None, "boost", 0, streams=True))
    with pytest.raises(AudioError, match="the recording"):
        next(answer(speech_lm, str(tmp_path / "notes.wav"), "boost", 0, streams=True))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="gradio streams sound with ffmpeg")
def test_the_served_page_answers(client: Any, speech_lm: SpeechLM, question: str, outside: Outside) -> None:
    job = client.submit(gradio_client.handle_file(question), "balance", 3, api_name="/ask")
    text, _, figures = job.result(timeout=60)
    expected = speech_lm.ask(question, "balance", seed=3)
    assert text == expected.text and "| mode | balance |" in figures
    assert len(job.outputs()) > 3
    assert outside == []


def test_the_pages_have_the_projects_name(client: Any) -> None:
    conversation = (Path(page_module.__file__).parent / "browser" / "index.html").read_text()
    assert client.config["title"] == "vita-mctp: recordings" and "<title>vita-mctp: talk to it</title>" in conversation


def test_the_served_page_complains_in_one_line(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    write_wave(path, Wave(np.zeros(16000, np.float32), 16000))
    with pytest.raises(gradio_client.exceptions.AppError, match="silent") as error:
        client.predict(gradio_client.handle_file(str(path)), "boost", 0, api_name="/ask")
    assert "\n" not in str(error.value) and str(tmp_path.parent) not in str(error.value)


def test_a_mode_that_is_not_offered_is_refused(client: Any, question: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match="warp"):
        client.predict(gradio_client.handle_file(question), "warp", 0, api_name="/ask")


def test_a_visitor_who_leaves_stops_generation(client: Any, question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(monkeypatch, seconds=0.1)
    job = client.submit(gradio_client.handle_file(question), "vanilla", 1, api_name="/ask")
    wait_for(lambda: len(steps) > 3)
    job.cancel()
    wait_for(lambda: time.monotonic() - steps[-1] > 1.0)
    assert len(steps) < 100


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_two_visitors_are_answered_as_each_alone(visitors: Any, speech_lm: SpeechLM, question: str) -> None:
    seeds, asked = {next(visitors): 5, next(visitors): 6}, gradio_client.handle_file(question)
    histories = dict.fromkeys(seeds, ())
    for _ in range(2):
        jobs = {client: client.submit(asked, "boost", seed, api_name="/ask") for client, seed in seeds.items()}
        for client, seed in seeds.items():
            expected = speech_lm.ask(question, seed=seed, history=histories[client])
            assert jobs[client].result(timeout=60)[0] == expected.text
            histories[client] += expected.turns


def test_a_new_conversation_forgets_the_old_one(client: Any, speech_lm: SpeechLM, question: str) -> None:
    asked = (gradio_client.handle_file(question), "boost", 5)
    first = client.predict(*asked, api_name="/ask")[0]
    assert client.predict(*asked, api_name="/ask")[0] != first
    client.predict(api_name="/forget")
    assert client.predict(*asked, api_name="/ask")[0] == first == speech_lm.ask(question, seed=5).text


def test_a_conversation_keeps_what_the_model_is_given(speech_lm: SpeechLM, question: str) -> None:
    histories: list[tuple[Turn, ...]] = [()]
    for seed in range(4):
        *_, (_, _, _, kept) = answer(speech_lm, question, "turbo", seed, True, histories[-1])
        histories.append(kept)
    assert [len(kept) for kept in histories] == [0, 2, 4, 4, 4]
    assert histories[-1][:2] == histories[-2][2:]


def test_a_model_of_single_questions_is_given_no_history(
    tiny_speech_folder: Path, tmp_path: Path, question: str
) -> None:
    folder = shutil.copytree(tiny_speech_folder, tmp_path / "model")
    settings = json.loads((folder / "speech.json").read_text())
    (folder / "speech.json").write_text(json.dumps(settings | {"max_history_turns": 0}))
    *_, (_, _, _, kept) = answer(SpeechLM.from_pretrained(folder), question, "turbo", 1, streams=True)
    assert kept == ()


def test_the_page_starts_in_the_models_own_mode(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for own, offered in (("turbo", list(MODES)), ("2,5", [*MODES, "2,5"])):
        monkeypatch.setattr(speech_lm, "defaults", replace(speech_lm.defaults, spoken_mode=parse_mode(own, 2)))
        (radio,) = (block for block in build_page(speech_lm).blocks.values() if isinstance(block, gradio.Radio))
        assert radio.value == own and [value for _, value in radio.choices] == offered


def test_a_recording_is_transcribed_and_text_read_aloud(client: Any, speech_lm: SpeechLM, question: str) -> None:
    assert client.predict(gradio_client.handle_file(question), api_name="/transcribe") == speech_lm.transcribe(question)
    spoken, _ = soundfile.read(client.predict("four is five", api_name="/say"), dtype="float32")
    expected = collect(speech_lm.stream("four is five", "tts")).wave.samples
    np.testing.assert_allclose(spoken, expected.clip(-1, 1), atol=1e-4)


def test_a_voice_is_uploaded_where_the_model_can_speak_in_it(
    client: Any, nano: SpeechLM, speech_lm: SpeechLM, question: str
) -> None:
    voice = gradio_client.handle_file(question)
    *_, (text, *_) = answer(speech_lm, question, "turbo", 5, streams=False, voice=question)
    assert client.predict(voice, "turbo", 5, voice, api_name="/ask")[0] == text
    assert text == speech_lm.ask(question, "turbo", seed=5, voice_prompt=question).text
    assert client.predict("four is five", voice, api_name="/say")
    for model, shown in ((speech_lm, [True, True]), (nano, [False, False])):
        blocks = build_page(model).blocks.values()
        assert [block.visible for block in blocks if getattr(block, "label", "") == "Voice to speak in"] == shown


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="m4a is ffmpeg's")
def test_a_telephones_recording_is_understood(speech_lm: SpeechLM, question: str, tmp_path: Path) -> None:
    path = tmp_path / "question.m4a"
    subprocess.run(["ffmpeg", "-v", "error", "-i", question, "-c:a", "aac", str(path)], check=True)
    assert list(page_module.written(speech_lm, str(path)))[-1]


def test_an_error_keeps_the_servers_folders_to_itself(client: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not a sound")
    with pytest.raises(gradio_client.exceptions.AppError, match="the recording") as error:
        client.predict(gradio_client.handle_file(str(tmp_path / "notes.wav")), api_name="/transcribe")
    assert tempfile.gettempdir() not in str(error.value)


def test_without_gradio_the_extra_is_named(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vita-mctp\[demo\]'"):
        build_page(speech_lm)


def test_the_example_question_is_the_models_own(tiny_speech_folder: Path, question: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_speech_folder, tmp_path / "model")
    settings = json.loads((folder / "speech.json").read_text())
    settings["self_check"] = {"question": "question.wav", "answer": "five"}
    (folder / "speech.json").write_text(json.dumps(settings))
    shutil.copy(question, folder)
    rate, samples = page_module._example(SpeechLM.from_pretrained(folder))
    expected, expected_rate = soundfile.read(question, dtype="int16")
    assert rate == expected_rate
    np.testing.assert_allclose(samples, expected, atol=1)


def test_the_examples_on_the_page_are_of_the_domain() -> None:
    kind_of = {qa.question: qa.kind for qa in build_domain().questions}
    assert {question: kind_of.get(question) for question in EXAMPLES.values()} == {q: k for k, q in EXAMPLES.items()}
    assert set(EXAMPLES) == set(kind_of.values())


def test_figures_of_an_answer_without_sound_say_so() -> None:
    table = metrics_table(Done(StopReason.EOS, "turbo", "yes", Timings(total=2.0, tokens=10)))
    assert {"| mode | turbo |", "| tokens/s | 5.0 |", "| first sound | none |", "| real-time factor | none |"} <= {
        *table.splitlines()
    }
