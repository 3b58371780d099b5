"""What a Python user gives and takes: recordings of every kind, options of transformers, folders, players."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from vita_mctp import SpeechLM, Wave
from vita_mctp.audio import read_wave
from vita_mctp.checkpoints import options as placing
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.cli import main
from vita_mctp.errors import AnswerError, ConfigError, OutputError
from vita_mctp.types import Done, Heard, Task

SAMPLES = (0.4 * np.sin(np.arange(32000) / 9)).astype(np.float32)


@pytest.fixture(scope="module")
def speech_lm(tiny_speech_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(tiny_speech_folder)


def as_file() -> io.BytesIO:
    data = io.BytesIO()
    soundfile.write(data, SAMPLES, 16000, format="WAV", subtype="FLOAT")
    data.seek(0)
    return data


STEREO = np.stack([SAMPLES, SAMPLES])


@pytest.mark.parametrize(
    "given",
    [
        lambda: (SAMPLES, 16000),
        lambda: (SAMPLES.astype(np.float64), 16000),
        lambda: ((SAMPLES * 2**31).astype(np.int64).clip(-(2**31), 2**31 - 1).astype(np.int32), 16000),
        lambda: (STEREO, 16000),
        lambda: (STEREO.T, 16000),
        lambda: (torch.tensor(SAMPLES, requires_grad=True), 16000),
        lambda: (torch.tensor(STEREO), 16000),
        lambda: ({"array": SAMPLES, "sampling_rate": 16000, "path": None}, None),
        lambda: (as_file(), None),
        lambda: (as_file().getvalue(), None),
    ],
)
def test_a_recording_comes_in_many_forms(given: Callable[[], Any]) -> None:
    source, rate = given()
    wave = read_wave(source, sample_rate=rate)
    assert wave.sample_rate == 16000
    np.testing.assert_allclose(wave.samples, SAMPLES, atol=1e-6)


def test_an_array_is_asked_with_as_its_file_is(speech_lm: SpeechLM) -> None:
    by_array = speech_lm.ask(SAMPLES, sample_rate=16000, seed=2)
    assert by_array.done.codes == speech_lm.ask(as_file(), seed=2).done.codes
    assert speech_lm.transcribe(SAMPLES, sample_rate=16000) == speech_lm.transcribe(Wave(SAMPLES, 16000))


@pytest.mark.parametrize(
    ("source", "rate", "complaint"),
    [
        (SAMPLES, None, "sample_rate"),
        ("question.wav", 16000, "says its own"),
        (Wave(SAMPLES, 16000), 8000, "says its own"),
        ([0.1, 0.2], 16000, "a list came"),
        (io.StringIO("RIFF"), None, "'rb'"),
        ({"array": SAMPLES}, None, "a dict came"),
    ],
)
def test_what_is_no_recording_is_refused(speech_lm: SpeechLM, source: Any, rate: int | None, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        speech_lm.ask(source, sample_rate=rate)


def test_options_are_those_of_transformers(speech_lm: SpeechLM) -> None:
    greedy = speech_lm.decoding(Task.TTS, do_sample=False, max_new_tokens=7)
    assert (greedy.sampling.temperature, greedy.max_new_tokens) == (0.0, 7)
    drawn = speech_lm.decoding(Task.ASR, do_sample=True, top_p=0.9, seed=3).sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.seed) == (1.0, 50, 0.9, 3)
    assert speech_lm.decoding(Task.TTS, temperature=None, top_k=None) == speech_lm.decoding(Task.TTS)
    prompt = speech_lm.prompt("two plus three", "tts")
    by_options = [event.id for event in speech_lm.generate(prompt, mode="vanilla", do_sample=False, max_new_tokens=5)]
    chosen = speech_lm.decoding(Task.TTS, "vanilla", temperature=0, max_new_tokens=5)
    assert by_options == [event.id for event in speech_lm.generate(prompt, chosen)] and len(by_options) == 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_beams": 4}, "num_beams .* one sequence"),
        ({"max_length": 20}, "max_length .* max_new_tokens"),
        ({"wibble": 1}, "wibble .* temperature"),
        ({"do_sample": True, "temperature": 0.0}, "contradict"),
        ({"do_sample": False, "temperature": 0.7}, "contradict"),
        ({"top_k": 2.5}, "top_k 2.5"),
        ({"temperature": "hot"}, "hot"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(
    speech_lm: SpeechLM, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        speech_lm.ask(SAMPLES, sample_rate=16000, **options)
    with pytest.raises(ConfigError, match=complaint):
        speech_lm.generate(speech_lm.prompt("two", "tts"), **options)


def test_waves_and_answers_are_saved_and_played(speech_lm: SpeechLM, tmp_path: Path) -> None:
    answer = speech_lm.say("two plus three", seed=2)
    answer.save(tmp_path / "a.flac")
    answer.wave.save(tmp_path / "b.wav")
    assert soundfile.info(tmp_path / "a.flac").frames == soundfile.info(tmp_path / "b.wav").frames > 0
    assert "<audio controls" in answer._repr_html_() and "data:audio/wav;base64," in answer.wave._repr_html_()
    silent = Wave(np.zeros(0, np.float32), 16000)
    with pytest.raises(AnswerError, match=r"c\.mp3"):
        silent.save(tmp_path / "c.mp3")
    assert "audio" not in silent._repr_html_() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("options", [{}, {"attn": "eager"}], ids=["graphs", "torch"])
def test_a_saved_model_answers_as_it_did(options: dict[str, str], tiny_speech_folder: Path, tmp_path: Path) -> None:
    model = SpeechLM.from_pretrained(tiny_speech_folder, **options)
    if model.language_model.model is not None:  # what was learned in memory is saved
        with torch.no_grad():
            model.language_model.model.lm_head.weight[5:50] *= 2  # type: ignore[attr-defined]
    model.save_pretrained(tmp_path / "saved")
    again = SpeechLM.from_pretrained(tmp_path / "saved", **options)
    assert again.say("two", seed=1).done.codes == model.say("two", seed=1).done.codes
    assert json.loads((tmp_path / "saved" / "speech.json").read_text())["audio_decoder"]["folder"] == "codec"
    with pytest.raises(OutputError, match="saved"):
        model.save_pretrained(tmp_path / "saved")


def test_codecs_from_elsewhere_are_saved_too(tiny_speech_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ramp").mkdir()
    (tmp_path / "ramp" / "ramp.json").write_text('{"codebook_size": 64, "sample_rate": 8000}')
    SpeechLM.from_pretrained(tiny_speech_folder, audio_decoder=str(tmp_path / "ramp")).save_pretrained(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "moved")
    (tmp_path / "ramp" / "ramp.json").unlink()
    assert SpeechLM.from_pretrained(tmp_path / "moved").audio_decoder.sample_rate == 8000


def test_a_model_is_pushed_whole_or_refused_in_one_line(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, repo_id: str, **options: Any) -> str:
            pushed.update(options)
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
            pushed.update(options, files={path.name for path in folder_path.iterdir()})
            if pushed["private"]:
                raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert speech_lm.push_to_hub("me/model").endswith("me/model")
    assert {"config.json", "model.safetensors", "tokenizer.json", "speech.json", "codec"} <= pushed["files"]
    with pytest.raises(OutputError, match=r"me/model \(no route to host\)"):
        speech_lm.push_to_hub("me/model", private=True)
    with pytest.raises(ConfigError, match="no hub id"):
        speech_lm.push_to_hub("model")


def test_a_device_is_chosen_and_said(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert speech_lm.device == "cpu" and "float32 on cpu" in repr(speech_lm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 << 30, 80 << 30))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = [placing.best_device(size) for size in (14 << 20, 5 << 30, 20 << 30)]
    assert found == ["cpu", "cuda", "mps"]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert placing.best_device(20 << 30) == "cpu"


def test_what_was_heard_is_part_of_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, question = SpeechLM.from_pretrained("nano"), find_model("nano") / "question.wav"
    answer = model.ask(question, transcript=True)
    assert answer.heard == model.transcribe(question) == "what is eight plus twelve"
    assert answer.text == model.ask(question).text and model.ask(question).heard is None
    assert [type(event) for event in model.stream(question, transcript=True)][-2:] == [Heard, Done]
    with pytest.raises(ConfigError, match="hears nothing"):
        model.stream("monday", "tts", transcript=True)
    command = ["ask", str(question), "-o", str(tmp_path / "a.wav"), "--show-heard"]
    assert main(command) == 0 and "\nheard: what is eight plus twelve\n" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-2] == {"event": "heard", "text": "what is eight plus twelve"}


def test_a_typed_question_is_answered_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.wav"
    assert main(["ask", "--text", "What is 7 plus 6?", "-o", str(target), "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["text"] == "seven plus six is thirteen" and read_wave(target).seconds > 1
    assert 0 < done["first_text_seconds"] < done["first_sound_seconds"] < done["total_seconds"]
    assert main(["ask", "--text", "--show-heard", "What is 7 plus 6?", "-o", str(target)]) == 2
    assert "--show-heard" in capsys.readouterr().err


def test_a_model_that_does_not_transcribe_says_so(tiny_vocalnet_folder: Path) -> None:
    with pytest.raises(ConfigError, match="asr"):
        SpeechLM.from_pretrained(tiny_vocalnet_folder).stream(Wave(SAMPLES, 16000), transcript=True)
