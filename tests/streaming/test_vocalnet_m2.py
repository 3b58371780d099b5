"""A VocalNet-M2 through the front door: frames of eight codes, heard by XY-Tokenizer, with MTP layers and without."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from naive import say_naive
from safetensors.torch import load_file, save_file

from vita_mctp import SpeechLM
from vita_mctp.answer import Answer
from vita_mctp.bench.first_audio import TALKER_PARTS, first_sound
from vita_mctp.checkpoints.opening import open_model
from vita_mctp.cli import main
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import FrameSpeaking
from vita_mctp.types import Task, TokenKind, Wave, WaveChunk

QUESTION = Wave((0.4 * np.sin(np.arange(9000) / 9)).astype(np.float32), 16000)


@pytest.fixture(scope="module")
def speech_lm(tiny_m2_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(tiny_m2_folder)


@pytest.mark.parametrize("mode", ["1x", "2x", "5x"])
def test_an_answer_is_text_and_its_sound(speech_lm: SpeechLM, mode: str) -> None:
    answer = speech_lm.ask(QUESTION, mode)
    assert answer.done.mode == mode and answer.done.timings.tokens > len(answer.done.codes) > 0
    assert len(answer.wave.samples) == 1280 * len(answer.done.codes) and answer.wave.sample_rate == 16000
    assert {len(frame) for frame in answer.done.codes} == {8}
    assert all(0 <= code < 32 for frame in answer.done.codes for code in frame)
    _, said = answer.turns
    assert list(said.content) == [id for id in said.content if id >= 0] != []


def test_the_frames_are_the_thinkers_own_tokens_and_states_spoken(speech_lm: SpeechLM) -> None:
    """From nothing: the thinker by its whole forward, the talker by its training forward."""
    model, prompt = speech_lm.language_model.model, speech_lm.prompt(speech_lm.hear(QUESTION))
    events = list(speech_lm.generate(prompt, speech_lm.decoding(mode="3x")))
    written = [event.id for event in events if event.kind is not TokenKind.AUDIO]
    with torch.inference_mode():
        embeds = model.listen(model.embed(torch.tensor([[*prompt.ids, *written]])), [prompt.heard])
        states = model.backbone(embeds, torch.arange(embeds.shape[1])[None])[0, len(prompt.ids) - 1 : -1]
        fused = model.talker.fuse(embeds[0, len(prompt.ids) :], states)
        wanted = say_naive(model.talker, fused, 2, 1024)
    assert wanted and wanted == [event.code for event in events if event.kind is TokenKind.AUDIO]


def test_sound_comes_while_text_is_still_made(speech_lm: SpeechLM) -> None:
    prompt = speech_lm.prompt(speech_lm.hear(QUESTION))
    kinds = [event.kind for event in speech_lm.generate(prompt, speech_lm.decoding(mode="3x"))]
    assert kinds[:2] == [TokenKind.TEXT, TokenKind.AUDIO] and TokenKind.TEXT in kinds[2:]


def test_closing_an_answer_stops_talker_and_thinker(speech_lm: SpeechLM) -> None:
    events = speech_lm.stream(QUESTION)
    assert any(isinstance(event, WaveChunk) for event in events)
    events.close()
    assert not speech_lm.worker._outboxes


def test_answers_at_once_are_what_each_is_alone(speech_lm: SpeechLM) -> None:
    """Thinkers share the engine's steps; talkers are each answer's own."""
    waves = [QUESTION, Wave(QUESTION.samples[::-1][:7000].copy(), 16000), Wave(QUESTION.samples[2000:], 16000)]
    alone = [speech_lm.ask(wave).done.codes for wave in waves]
    found: dict[int, Answer] = {}
    threads = [
        threading.Thread(target=lambda i=i, wave=wave: found.update({i: speech_lm.ask(wave)}))
        for i, wave in enumerate(waves)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i].done.codes for i in range(len(waves))] == alone


def test_its_speeds_are_its_modes(speech_lm: SpeechLM, make_m2: Callable[[int], Path]) -> None:
    assert speech_lm.modes == ("1x", "2x", "3x", "4x", "5x") and speech_lm.decoding().mode.name == "1x"
    for wrong in ("6x", "boost", "3x,as_trained"):
        with pytest.raises(ConfigError, match="5x"):
            speech_lm.ask(QUESTION, wrong)
    plain = SpeechLM.from_pretrained(make_m2(0))
    assert plain.modes == ("1x",) and plain.ask(QUESTION).done.codes
    with pytest.raises(ConfigError, match="0 levels"):
        plain.ask(QUESTION, "2x")


def test_what_it_writes_it_may_be_asked_on(speech_lm: SpeechLM) -> None:
    """A history holds text alone: no thinker reads what its talker says."""
    answer = speech_lm.ask(QUESTION)
    turn = speech_lm._chat.turn(Task.SPEECH_TO_SPEECH, speech_lm.hear(QUESTION))
    longer = speech_lm._chat.ask(turn, Task.SPEECH_TO_SPEECH, history=answer.turns)
    assert max(longer.ids) < speech_lm.language_model.model.config.vocab_size
    assert list(speech_lm.generate(longer, speech_lm.decoding()))


def test_the_first_sounds_parts(speech_lm: SpeechLM) -> None:
    found = first_sound(speech_lm, torch.device("cpu"), QUESTION, parse_mode("5x", 0))
    assert len(found.parts) == len(TALKER_PARTS) and min(found.parts) > 0
    assert [event.kind for event in found.events].count(TokenKind.AUDIO) == 10  # two steps


def test_the_command(tiny_m2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "q.wav", QUESTION.samples, QUESTION.sample_rate)
    ask = ["ask", str(tmp_path / "q.wav"), "-o", str(tmp_path / "a.wav"), "--model", str(tiny_m2_folder)]
    assert main([*ask, "--mode", "5x", "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["mode"] == "5x" and soundfile.info(tmp_path / "a.wav").frames > 0


def test_without_speech_json_the_codec_lies_beside_it(tiny_m2_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_m2_folder, tmp_path / "model", ignore=shutil.ignore_patterns("codec", "speech.json"))
    with pytest.raises(CheckpointError, match="fdugyt/XY_Tokenizer"):
        open_model(tmp_path / "model").speech  # noqa: B018
    shutil.copytree(tiny_m2_folder / "codec", tmp_path / "XY_Tokenizer")
    assert SpeechLM.from_pretrained(tmp_path / "model").ask(QUESTION).done.codes


def test_broken_folders(tiny_m2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_m2_folder, folder)
    whole = json.loads((folder / "config.json").read_text())
    for change, fact in (
        ({"thinker_size": 64}, "not of one model"),
        ({"mtp_levels": 5}, "mtp_layers.4"),
        ({"mtp_levels": 3}, "mtp_layers.3"),
        ({"num_codebooks": 7}, "embeddings.7"),
        ({"num_heads": 5}, "heads"),
        ({"act": "relu"}, "unknown key talker.act"),
        ({"stretch": 0}, "stretch"),
    ):
        (folder / "config.json").write_text(json.dumps(whole | {"talker": whole["talker"] | change}))
        with pytest.raises(CheckpointError, match=fact) as caught:
            open_model(folder).load_model()
        assert "\n" not in str(caught.value)
    (folder / "config.json").write_text(json.dumps({name: each for name, each in whole.items() if name != "talker"}))
    with pytest.raises(CheckpointError, match="missing key talker"):
        open_model(folder).load_model()
    (folder / "config.json").write_text(json.dumps(whole))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"speech_generator.more": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds speech_generator.more"):
        open_model(folder).load_model()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "codec" / "ramp.json").write_text('{"codebook_size": 32, "num_codebooks": 4}')
    speech = json.loads((folder / "speech.json").read_text())
    (folder / "speech.json").write_text(json.dumps(speech | {"audio_decoder": {"name": "ramp", "folder": "codec"}}))
    with pytest.raises(CheckpointError, match="says 8 x 32 codes and the audio decoder ramp has 4 x 32"):
        SpeechLM.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        SpeechLM.from_pretrained(folder)


def test_its_rows_are_read_alike_by_training_and_decoding(speech_lm: SpeechLM) -> None:
    speaking, model = speech_lm.speaking, speech_lm.language_model.model
    assert isinstance(speaking, FrameSpeaking)
    states = torch.randn(3, 32)
    with torch.inference_mode():
        together = model.talker.fuse(model.embed(torch.tensor([[5, 6, 7]]))[0], states)
    alone = torch.cat([speaking.fuse(id, state) for id, state in zip((5, 6, 7), states, strict=True)])
    torch.testing.assert_close(alone, together)
