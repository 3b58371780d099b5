"""The front door, on a model of random weights and a codec that shows every sample."""

import gc
import json
import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vita_mctp import SpeechLM
from vita_mctp.answer import collect
from vita_mctp.audio import write_wave
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.checkpoints.speech import SpeechSettings
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.request import SequenceState
from vita_mctp.errors import AudioError, CheckpointError, ConfigError
from vita_mctp.types import AudioCodes, Done, Task, TextDelta, TokenEvent, Wave, WaveChunk

HOP = 1280
QUESTION = Wave((0.4 * np.sin(np.arange(32000) / 9)).astype(np.float32), 16000)


@pytest.fixture(scope="module")
def speech_lm(tiny_speech_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(tiny_speech_folder)


@pytest.mark.parametrize("mode", ["vanilla", "balance", "boost", "turbo", "2,3,1,5", [1, 2]])
def test_the_streamed_wave_is_the_decoded_codes(speech_lm: SpeechLM, mode: str | list[int]) -> None:
    answer = speech_lm.ask(QUESTION, mode, seed=1)
    codes = np.array(answer.done.codes, np.int64)
    assert len(codes) > 3 and len(answer.wave.samples) == len(codes) * HOP
    offline = speech_lm.audio_decoder.decode(AudioCodes(codes, 64, speech_lm.audio_decoder.frame_rate, "ramp"))
    np.testing.assert_array_equal(answer.wave.samples, offline.samples)


def test_the_questions_own_codes_are_not_spoken(speech_lm: SpeechLM) -> None:
    answer = speech_lm.ask(QUESTION, seed=1)
    asked = len(speech_lm.audio_frontend.encode(QUESTION).ids)
    assert asked == 25 and answer.done.timings.tokens <= 120
    assert len(answer.done.codes) <= answer.done.timings.tokens - 1
    assert len(answer.wave.samples) == HOP * len(answer.done.codes)


def test_stream_is_its_public_stages_one_after_another(speech_lm: SpeechLM) -> None:
    prompt = speech_lm.prompt(speech_lm.hear(QUESTION))
    decoding = speech_lm.decoding(mode="boost", seed=1)
    by_hand = collect(speech_lm.speak(speech_lm.generate(prompt, decoding), prompt, mode="boost", seed=1))
    streamed = collect(speech_lm.stream(QUESTION, mode="boost", seed=1))
    assert (by_hand.text, by_hand.done.codes, by_hand.turns) == (streamed.text, streamed.done.codes, streamed.turns)
    np.testing.assert_array_equal(by_hand.wave.samples, streamed.wave.samples)
    times = streamed.done.timings
    assert times.heard is not None and times.first_token is not None and 0 < times.heard < times.first_token


def test_a_rhythm_is_asked_for_by_the_system_text(
    speech_lm: SpeechLM, tiny_speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, balance = speech_lm.hear(QUESTION), MODES["balance"]
    assert speech_lm.prompt(heard, mode=balance) == speech_lm.prompt(heard)
    folder = edited(tiny_speech_folder, tmp_path / "model", rhythms=[balance.counts])
    speech_lm = SpeechLM.from_pretrained(folder)
    asked = speech_lm.tokenizer.decode(speech_lm.prompt(heard, mode=balance).ids)
    assert asked.startswith("system\n") and "manner. 1,4,3,8,4,10\n" in asked
    assert speech_lm.prompt(heard, mode=MODES["boost"]) == speech_lm.prompt(heard)
    prompts = []
    monkeypatch.setattr(speech_lm, "generate", lambda prompt, *_: prompts.append(prompt) or iter(()))
    speech_lm.ask(QUESTION, "balance")
    assert prompts == [speech_lm.prompt(heard, mode=balance)]


def test_silence_around_a_question_is_cut_off_and_said(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = QUESTION.samples * np.abs(np.sin(np.arange(32000) / 4000)).astype(np.float32)
    silent = np.zeros(16000, np.float32)
    plain = speech_lm.ask(Wave(np.concatenate([silent[:4000], asked, silent[:4000]]), 16000), seed=1)
    monkeypatch.setattr(speech_lm, "settings", speech_lm.settings.but(cut_to_speech=True))
    padded = speech_lm.ask(Wave(np.concatenate([silent, asked, silent, silent]), 16000), seed=1)
    assert padded.done.timings.cut == pytest.approx((0.75, 1.75), abs=0.04)
    assert plain.done.timings.cut == (0, 0) and len(plain.turns[0].content) == len(padded.turns[0].content)
    noise = Wave(np.random.default_rng(0).normal(0, 0.05, 32000).astype(np.float32), 16000)
    with pytest.raises(AudioError, match="no speech heard"):
        speech_lm.stream(noise)


def test_a_seed_settles_an_answer(speech_lm: SpeechLM) -> None:
    first, again, other = (speech_lm.ask(QUESTION, seed=seed) for seed in (3, 3, 4))
    assert first.done.codes == again.done.codes and first.text == again.text
    assert (first.done.codes, first.text) != (other.done.codes, other.text)


def test_temperature_zero_is_greedy_whatever_the_seed(speech_lm: SpeechLM) -> None:
    first, other = (speech_lm.ask(QUESTION, seed=seed, temperature=0) for seed in (1, 2))
    assert first.done.text == other.done.text and first.done.codes == other.done.codes


def test_two_sessions_side_by_side_equal_each_alone(speech_lm: SpeechLM) -> None:
    alone = [speech_lm.say(text, seed=5).done for text in ("two plus three", "monday")]
    running = [speech_lm.stream(text, Task.TTS, seed=5) for text in ("two plus three", "monday")]
    ends: dict[int, Done] = {}
    while len(ends) < 2:
        for number, events in enumerate(running):
            event = next(events, None)
            if isinstance(event, Done):
                ends[number] = event
    assert [(ends[n].text, ends[n].codes) for n in range(2)] == [(done.text, done.codes) for done in alone]


def test_visitors_in_two_threads_share_each_step(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, sizes, advance = ("two plus three", "monday"), list[int](), Engine.advance
    alone = [speech_lm.say(text, seed=5) for text in texts]

    def watched(self: Engine, states: list[SequenceState]) -> list[list[TokenEvent]]:
        time.sleep(0.01)
        sizes.append(len(states))
        return advance(self, states)

    monkeypatch.setattr(Engine, "advance", watched)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda text: speech_lm.say(text, seed=5), texts))
    for one, other in zip(alone, together, strict=True):
        assert (other.text, other.done.codes) == (one.text, one.done.codes)
        np.testing.assert_array_equal(other.wave.samples, one.wave.samples)
    assert sizes.count(2) > 3


def test_nothing_is_left_of_a_model_that_is_dropped(tiny_speech_folder: Path) -> None:
    speech_lm = SpeechLM.from_pretrained(tiny_speech_folder)
    events = speech_lm.stream(QUESTION, seed=1)
    next(events)
    left = weakref.ref(speech_lm.language_model.runner)
    del speech_lm, events
    end = time.monotonic() + 10
    while left() is not None and time.monotonic() < end:
        time.sleep(0.05)
        gc.collect()
    assert left() is None


def test_closing_a_stream_stops_the_engine(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    advance = Engine.advance

    def slowly(self: Engine, states: list[SequenceState]) -> list[list[TokenEvent]]:
        time.sleep(0.02)
        steps.append(1)
        return advance(self, states)

    monkeypatch.setattr(Engine, "advance", slowly)
    events = speech_lm.stream(QUESTION, seed=1)
    next(events)
    events.close()
    taken = len(steps)
    speech_lm.worker.close()
    assert 0 < len(steps) <= taken + 1 < 100 and next(events, None) is None


def test_written_tasks_make_no_sound(speech_lm: SpeechLM) -> None:
    for task, question in ((Task.ASR, QUESTION), (Task.TEXT, "what is two plus three")):
        events = list(speech_lm.stream(question, task))
        assert {type(event) for event in events} == {TextDelta, Done}
    assert speech_lm.transcribe(QUESTION) == speech_lm.transcribe(QUESTION) != ""


def test_a_recording_may_be_a_path_or_bytes(speech_lm: SpeechLM, tmp_path: Path) -> None:
    path = tmp_path / "question.wav"
    write_wave(path, QUESTION)
    by_path, by_bytes = speech_lm.ask(path, seed=2), speech_lm.ask(path.read_bytes(), seed=2)
    assert by_path.done.codes == by_bytes.done.codes


def test_the_last_chunk_is_marked(speech_lm: SpeechLM) -> None:
    chunks = [event for event in speech_lm.stream(QUESTION, seed=1) if isinstance(event, WaveChunk)]
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize(
    ("question", "options", "complaint"),
    [
        (QUESTION, {"mode": "warp"}, "unknown mode 'warp'"),
        (QUESTION, {"mode": [1, 2, 3]}, "3 counts"),
        (QUESTION, {"task": "sing"}, "sing"),
        (QUESTION, {"task": "tts"}, "Wave came; wanted a text"),
        ("  ", {"task": "tts"}, "an empty text came"),
        (QUESTION, {"temperature": -1.0}, "temperature -1.0"),
        (QUESTION, {"seed": -1}, "seed -1"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    speech_lm: SpeechLM, question: Wave | str, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        speech_lm.stream(question, **options)  # type: ignore[arg-type]


def test_a_bad_recording_is_refused_before_anything_runs(speech_lm: SpeechLM) -> None:
    with pytest.raises(AudioError, match="empty"):
        speech_lm.stream(b"")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"device": "quantum"}, "device"), ({"dtype": "float7"}, "dtype"), ({"attn": "magic"}, "attention kernel")],
)
def test_unknown_loading_options_are_refused(tiny_speech_folder: Path, options: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        SpeechLM.from_pretrained(tiny_speech_folder, **options)


def edited(folder: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(folder, target)
    speech = json.loads((target / "speech.json").read_text()) | changes
    (target / "speech.json").write_text(json.dumps({key: value for key, value in speech.items() if value != "drop"}))
    return target


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"speed": 3}, "unknown key speed; known: .*audio_decoder"),
        ({"audio_decoder": "drop"}, "audio_decoder"),
        ({"audio_decoder": "ramp"}, "audio_decoder: got 'ramp'"),
        ({"audio_decoder": {"name": "ramp", "file": "x"}}, r"unknown key audio_decoder\.file"),
        ({"sampling": {"sing": {}}}, "sing"),
        ({"sampling": {"tts": {"top_z": 3}}}, "top_z"),
        ({"block_sizes": 8}, "block_sizes: got 8"),
        ({"block_sizes": [8, 0]}, r"block_sizes\.1: got 0"),
    ],
)
def test_speech_json_is_strict(
    tiny_speech_folder: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        SpeechLM.from_pretrained(edited(tiny_speech_folder, tmp_path / "model", **changes))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_names_it(tiny_speech_folder: Path, tmp_path: Path, name: str) -> None:
    folder = edited(tiny_speech_folder, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        SpeechLM.from_pretrained(folder)


def test_codecs_with_two_codebooks_are_refused(tiny_speech_folder: Path, tmp_path: Path) -> None:
    folder = edited(tiny_speech_folder, tmp_path / "model", audio_decoder={"name": "ramp", "folder": "other"})
    (folder / "other").mkdir()
    (folder / "other" / "ramp.json").write_text('{"codebook_size": 8}')
    with pytest.raises(CheckpointError, match=r"64 codes and .* has 8"):
        SpeechLM.from_pretrained(folder)


def test_a_model_that_is_nowhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown model 'giant'; give nano"):
        find_model("giant")
    with pytest.raises(CheckpointError, match="hf download nobody/nothing-here"):
        find_model("nobody/nothing-here")


def test_settings_have_the_released_prompt_unless_said(tiny_speech_folder: Path, tmp_path: Path) -> None:
    settings = SpeechSettings.from_folder(tiny_speech_folder)
    assert settings.system_text is not None and settings.system_text.startswith("Your Name: Luke")
    folder = edited(tiny_speech_folder, tmp_path / "model", system_text=None)
    assert SpeechSettings.from_folder(folder).system_text is None


def test_importing_the_package_is_light() -> None:
    code = "import sys, vita_mctp; print({'torch', 'transformers', 'soundfile'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
