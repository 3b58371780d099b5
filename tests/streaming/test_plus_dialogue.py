"""VITA-Audio-Plus through the front door: questions, voices and dialogues are heard as features, in their places."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vita_mctp import SpeechLM
from vita_mctp.audio.mel import FEATURE_SIZE
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.request import Request
from vita_mctp.errors import CheckpointError
from vita_mctp.models.vita import VitaMctpPlusConfig, VitaMctpPlusForCausalLM
from vita_mctp.text.tokenizer import train_tokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import Task, Wave

ENCODER = {"output_size": 8, "attention_heads": 2, "linear_units": 12, "num_blocks": 2, "tp_blocks": 1, "ctc_size": 5}


def recording(period: float, seconds: float) -> Wave:
    return Wave((0.4 * np.sin(np.arange(int(16000 * seconds)) / period)).astype(np.float32), 16000)


FIRST, SECOND, VOICE = recording(9, 0.5), recording(14, 0.8), recording(31, 1.1)


def write_folder(folder: Path, **speech: object) -> Path:
    tokenizer = train_tokenizer(["two plus three is five"], 500, folder, 64, kind=VocabularyKind.CONTINUOUS)
    torch.manual_seed(0)
    config = VitaMctpPlusConfig(
        vocab_size=tokenizer.vocabulary.padded_size,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=4,
        num_nextn_predict_layers=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        audio_config=ENCODER,
    )
    VitaMctpPlusForCausalLM(config).save_pretrained(folder)
    numbers = " ".join(["0.5"] * FEATURE_SIZE)
    (folder / "am.mvn").write_text(f"<Nnet> <AddShift> 560 560 [ {numbers} ] <Rescale> 560 560 [ {numbers} ] </Nnet>")
    (folder / "ramp.json").write_text("{}")
    settings = {
        "tokenizer_kind": "sensevoice_glm4voice",
        "audio_tokenizer": {"name": "sensevoice"},
        "audio_decoder": {"name": "ramp"},
        "max_new_tokens": 30,
        "max_history_turns": 3,
        "voice_prompts": True,
    }
    (folder / "speech.json").write_text(json.dumps(settings | speech))
    return folder


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory) -> SpeechLM:
    return SpeechLM.from_pretrained(write_folder(tmp_path_factory.mktemp("plus")))


@pytest.fixture
def requests() -> Iterator[list[Request]]:
    seen: list[Request] = []
    add = Engine.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "add", lambda self, request: seen.append(request) or add(self, request))
        yield seen


def test_each_recording_is_heard_where_its_placeholders_stand(plus: SpeechLM, requests: list[Request]) -> None:
    history = plus.ask(FIRST).turns
    plus.ask(SECOND, history=history, voice_prompt=VOICE)
    context = plus.tokenizer.vocabulary.context_of_audio
    for request, waves in zip(requests, [(FIRST,), (VOICE, FIRST, SECOND)], strict=True):
        places = [place for place, token in enumerate(request.prompt_ids) if token == context]
        assert places == [place for audio in request.heard for place in range(audio.start, audio.end)]
        for audio, wave in zip(request.heard, waves, strict=True):
            np.testing.assert_array_equal(audio.features.frames, plus.audio_frontend.encode(wave).frames)


def test_what_is_heard_changes_the_answer_and_earlier_turns_are_heard_too(plus: SpeechLM) -> None:
    one, other = plus.ask(FIRST, temperature=0), plus.ask(SECOND, temperature=0)
    assert one.turns[1] != other.turns[1] and plus.ask(FIRST, temperature=0).turns[1] == one.turns[1]
    continued = [
        plus.ask(SECOND, temperature=0, history=[turns[0], one.turns[1]]) for turns in (one.turns, other.turns)
    ]
    assert continued[0].turns[1] != continued[1].turns[1]


def test_it_transcribes_speaks_and_chats(plus: SpeechLM) -> None:
    answer = plus.say("two plus three", voice_prompt=VOICE)
    assert len(answer.wave.samples) == 1280 * len(answer.done.codes)
    assert isinstance(plus.transcribe(FIRST), str) and isinstance(plus.chat("two plus three"), str)
    assert plus.defaults.mode(Task.TTS).counts == (1, 2)


def test_an_audio_front_end_that_does_not_fit_is_refused(tmp_path: Path, tiny_speech_folder: Path) -> None:
    codes = {"name": "ramp"}
    folder = write_folder(tmp_path, tokenizer_kind="glm4voice", audio_tokenizer=codes)
    with pytest.raises(CheckpointError, match="sensevoice_glm4voice; wanted glm4voice"):
        SpeechLM.from_pretrained(folder)
    plain, plus = SpeechLM.from_pretrained(tiny_speech_folder), SpeechLM.from_pretrained(write_folder(tmp_path))
    with pytest.raises(CheckpointError, match=r"qwen2_mtp model.* do not go together"):
        SpeechLM(plain.language_model, plus.tokenizer, plus.audio_frontend, plus.audio_decoder, plus.settings)
    with pytest.raises(CheckpointError, match="ramp do not go together"):
        SpeechLM(plus.language_model, plus.tokenizer, plain.audio_frontend, plus.audio_decoder, plus.settings)
