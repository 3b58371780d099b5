"""What a checkpoint does when the user does not say."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from vita_mctp import SpeechLM
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.errors import CheckpointError
from vita_mctp.types import Done, StopReason, Task, Wave

QUESTION = Wave((0.4 * np.sin(np.arange(16000) / 9)).astype(np.float32), 16000)
RELEASED = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "mtp_inference_mode": [1, 4, 3, 8, 4, 10],
}


def checkpoint(source: Path, target: Path, generation: dict[str, Any], **speech: Any) -> SpeechLM:
    """The tiny model with another generation_config.json, and a speech.json that says nothing of sampling."""
    shutil.copytree(source, target)
    settings = json.loads((target / "speech.json").read_text())
    (target / "speech.json").write_text(json.dumps(settings | {"sampling": {}} | speech))
    (target / "generation_config.json").write_text(json.dumps(generation))
    return SpeechLM.from_pretrained(target)


def test_the_released_file_is_followed(tiny_speech_folder: Path, tmp_path: Path) -> None:
    model = checkpoint(tiny_speech_folder, tmp_path / "model", RELEASED)
    released = SamplingParams(0.7, 20, 0.8, 1.05)
    assert model.defaults.sampling == dict.fromkeys(Task, released)
    first, again, other = (model.ask(QUESTION, seed=seed) for seed in (1, 1, 2))
    assert first.turns == again.turns and first.turns != other.turns
    assert first.done.mode == "balance" and model.say("two plus three").done.mode == "balance"


def test_an_option_beats_the_file(tiny_speech_folder: Path, tmp_path: Path) -> None:
    model = checkpoint(tiny_speech_folder, tmp_path / "model", RELEASED)
    assert model.ask(QUESTION, "turbo").done.mode == "turbo"
    greedy = [model.ask(QUESTION, seed=seed, temperature=0) for seed in (1, 2)]
    assert greedy[0].turns == greedy[1].turns != model.ask(QUESTION, seed=1).turns


def test_speech_json_beats_generation_config_for_its_task(tiny_speech_folder: Path, tmp_path: Path) -> None:
    own = {"tts": {"temperature": 0.2, "top_k": 5}}
    model = checkpoint(tiny_speech_folder, tmp_path / "model", RELEASED, sampling=own)
    assert model.defaults.sampling[Task.TTS] == SamplingParams(0.2, 5, 0.8, 1.05)
    assert model.defaults.sampling[Task.ASR] == SamplingParams(0.7, 20, 0.8, 1.05)


@pytest.mark.parametrize(
    ("generation", "sampling", "mode"),
    [
        ({}, SamplingParams(), "1,2"),
        (RELEASED | {"do_sample": False, "mtp_inference_mode": [8192, 0]}, SamplingParams(0, 20, 0.8, 1.05), "vanilla"),
        ({"do_sample": True, "mtp_inference_mode": [1, 6]}, SamplingParams(1.0, 50), "1,6"),
    ],
)
def test_what_a_file_leaves_out_is_as_in_transformers(
    tiny_speech_folder: Path, tmp_path: Path, generation: dict[str, Any], sampling: SamplingParams, mode: str
) -> None:
    model = checkpoint(tiny_speech_folder, tmp_path / "model", generation)
    assert model.defaults.sampling[Task.TTS] == sampling and model.defaults.mode(Task.TTS).name == mode


def test_text_alone_is_written_by_the_backbone_unless_asked(tiny_speech_folder: Path, tmp_path: Path) -> None:
    model = checkpoint(tiny_speech_folder, tmp_path / "model", RELEASED)
    assert [model.defaults.mode(task) for task in (Task.ASR, Task.TEXT)] == [MODES["vanilla"]] * 2
    modes = [[event for event in model.stream("two", Task.TEXT, mode)][-1].mode for mode in (None, "boost")]
    assert modes == ["vanilla", "boost"]


def test_a_recording_is_heard_in_the_channel_that_is_set(tiny_speech_folder: Path, tmp_path: Path) -> None:
    both = np.stack([QUESTION.samples, np.zeros_like(QUESTION.samples)], axis=1)
    soundfile.write(tmp_path / "both.wav", both, 16000, subtype="FLOAT")
    for channel, loudness in ((0, 1.0), (None, 0.5)):
        model = checkpoint(tiny_speech_folder, tmp_path / f"model-{channel}", RELEASED, channel=channel)
        alone = Wave((QUESTION.samples * loudness).astype(np.float32), 16000)
        assert model.transcribe(tmp_path / "both.wav") == model.transcribe(alone)
        np.testing.assert_allclose(model.settings.read_recording(tmp_path / "both.wav").samples, alone.samples)


def test_weights_are_of_the_type_that_the_config_names_unless_asked(tiny_speech_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_speech_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for named, asked, expected in (
        ("bfloat16", None, "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "auto", "float32"),  # as stored
        (None, None, "float32"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"dtype": named}))
        model = SpeechLM.from_pretrained(folder, dtype=asked)
        assert model.language_model.dtype == expected
        assert len(model.say("two", seed=1).done.codes) > 0
    assert SpeechLM.from_pretrained("nano").language_model.dtype == "float32"


def test_an_end_token_of_the_file_ends_an_answer(tiny_speech_folder: Path, tmp_path: Path) -> None:
    free = SpeechLM.from_pretrained(tiny_speech_folder).say("two", temperature=0).turns[1].content
    place = next(i for i, token in enumerate(free) if i > 3 and token not in free[:i])
    model = checkpoint(tiny_speech_folder, tmp_path / "model", {"eos_token_id": free[place]})
    *_, done = model.stream("two", Task.TTS, "boost")
    assert isinstance(done, Done) and done.reason is StopReason.EOS
    assert done.turns[1].content[:place] == free[:place] and done.timings.tokens == place + 1
    vocabulary = model.tokenizer.vocabulary
    assert model.defaults.eos_ids == {*vocabulary.eos_ids, free[place]}


@pytest.mark.parametrize(
    ("generation", "complaint"),
    [
        ({"mtp_inference_mode": [1, 10, 4]}, "mtp_inference_mode .*3 counts"),
        ({"mtp_inference_mode": 4}, "mtp_inference_mode 4"),
        ({"eos_token_id": "end"}, "eos_token_id 'end'"),
        ({"do_sample": True, "top_p": 3.0}, "top_p 3.0"),
        ({"do_sample": True, "temperature": "hot"}, "sampling of speech_to_speech"),
    ],
)
def test_values_that_make_no_sense_are_named(
    tiny_speech_folder: Path, tmp_path: Path, generation: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=f"generation_config.json.*{complaint}"):
        checkpoint(tiny_speech_folder, tmp_path / "model", generation)
