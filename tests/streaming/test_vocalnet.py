"""A VocalNet through the front door: text and sound, at every speed, of both contracts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from naive import speak_naive

from vita_mctp import SpeechLM
from vita_mctp.bench.first_audio import TALKER_PARTS, first_sound
from vita_mctp.checkpoints.opening import open_model
from vita_mctp.cli import main
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.decoding.speaking import SpokenStream, speak_whole
from vita_mctp.decoding.talker import TalkerOptions
from vita_mctp.errors import AudioError, CheckpointError, ConfigError
from vita_mctp.types import TokenKind, Wave, WaveChunk

QUESTION = Wave((0.4 * np.sin(np.arange(9000) / 9)).astype(np.float32), 16000)


@pytest.fixture(scope="module")
def speech_lm(tiny_vocalnet_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(tiny_vocalnet_folder)


@pytest.mark.parametrize("mode", ["1x", "3x", "5x", "3x,as_trained"])
def test_an_answer_is_text_and_its_sound(speech_lm: SpeechLM, mode: str) -> None:
    answer = speech_lm.ask(QUESTION, mode)
    assert answer.done.mode == mode and answer.done.timings.tokens > len(answer.done.codes) > 0
    assert answer.wave.seconds == pytest.approx(len(answer.done.codes) / 12.5)
    assert answer.done.codes == speech_lm.ask(QUESTION, mode).done.codes
    assert max(answer.done.codes) < 64


def test_sound_comes_while_text_is_still_made(speech_lm: SpeechLM) -> None:
    prompt = speech_lm.prompt(speech_lm.hear(QUESTION))
    events = list(speech_lm.generate(prompt, speech_lm.decoding(mode="3x")))
    kinds = [event.kind for event in events]
    assert [event.index for event in events] == list(range(len(events)))
    assert [event.ends for event in events[:-1]] == [None] * (len(events) - 1) and events[-1].ends
    first = kinds.index(TokenKind.AUDIO)
    assert first % 5 == 0 and kinds[:first] == [TokenKind.TEXT] * first and TokenKind.TEXT in kinds[first:]


def test_the_events_are_the_thinkers_own_rows_spoken(speech_lm: SpeechLM) -> None:
    """From nothing: the thinker by its whole forward, the talker by what it read."""
    model, prompt = speech_lm.language_model.model, speech_lm.prompt(speech_lm.hear(QUESTION))
    events = list(speech_lm.generate(prompt, speech_lm.decoding(mode="3x")))
    written = [event.id for event in events if event.kind is not TokenKind.AUDIO]
    with torch.inference_mode():
        embeds = model.listen(model.embed(torch.tensor([[*prompt.ids, *written]])), [prompt.heard])
        hidden = model.backbone(embeds, torch.arange(embeds.shape[1])[None])[0, len(prompt.ids) - 1 : -1]
        assert model.logits(hidden).argmax(-1).tolist() == written
    stream = SpokenStream(speech_lm._speaking, TalkerOptions(2))
    parts = [part for id, row in zip(written, hidden, strict=True) for part in stream.push(id, row)]
    if written[-1] != speech_lm.tokenizer.vocabulary.eos_ids[0]:
        parts += stream.end()
    codes = [code for part in parts for code in part.codes]
    assert codes == [event.code for event in events if event.kind is TokenKind.AUDIO]


def test_as_trained_speaks_the_rows_of_training(speech_lm: SpeechLM) -> None:
    speaking, rows = speech_lm._speaking, list(torch.randn(6, 32))
    options = TalkerOptions(2, "as_trained", 40)
    (wanted,) = speak_naive(speaking.talker, [torch.stack([*rows[1:], speaking.text_end])], options, streaming=False)
    units = speak_whole(speaking, options, [1, 2, 3, 4, 5, speaking.end_id], rows)
    assert list(units) == [unit for unit in wanted if unit < speaking.talker.sizes.num_units]


def test_closing_an_answer_stops_the_thinker(speech_lm: SpeechLM) -> None:
    events = speech_lm.stream(QUESTION)
    assert any(isinstance(event, WaveChunk) for event in events)
    events.close()
    assert not speech_lm.worker._outboxes


def test_text_alone(speech_lm: SpeechLM) -> None:
    assert speech_lm.chat("what is two") == speech_lm.chat("what is two")


@pytest.mark.parametrize("mode", ["6x", "0x", "boost", "3x,fast"])
def test_speeds_that_the_talker_has_not(speech_lm: SpeechLM, mode: str) -> None:
    with pytest.raises(ConfigError, match="5x"):
        speech_lm.ask(QUESTION, mode)


def test_what_it_was_not_trained_for(speech_lm: SpeechLM) -> None:
    with pytest.raises(ConfigError, match="asr"):
        speech_lm.transcribe(QUESTION)
    with pytest.raises(AudioError, match="tenth"):
        speech_lm.ask(Wave(np.full(800, 0.1, np.float32), 16000))


def test_broken_folders(tiny_vocalnet_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_vocalnet_folder, folder)
    whole = json.loads((folder / "config.json").read_text())
    for change, fact in (
        ({"llm_hidden_size": 64}, "64"),
        ({"speech_eos_token_id": 1}, "special speech ids"),
        ({"mtp_num": 5}, "mtp_layers.4"),
        ({"mtp_num": 3}, "mtp_layers.3"),
        ({"decoder_num_heads": 5}, "heads"),
        ({"speech_generator_type": "ctc"}, "ar_mtp"),
        ({"mtp_num": "many"}, "mtp_num"),
    ):
        (folder / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(CheckpointError, match=fact):
            open_model(folder).load_model()
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "codec" / "ramp.json").write_text('{"codebook_size": 63}')
    with pytest.raises(CheckpointError, match="says 1 x 64 codes"):
        SpeechLM.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["content"] != "<|im_end|>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="im_end"):
        SpeechLM.from_pretrained(folder)


def test_the_commands(tiny_vocalnet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "q.wav", QUESTION.samples, QUESTION.sample_rate)
    ask = ["ask", str(tmp_path / "q.wav"), "-o", str(tmp_path / "a.wav"), "--model", str(tiny_vocalnet_folder)]
    assert main([*ask, "--mode", "5x", "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["mode"] == "5x" and soundfile.info(tmp_path / "a.wav").frames > 0
    assert main([*ask, "--mode", "6x"]) == 2
    assert "1x to 5x" in capsys.readouterr().err


def test_its_speeds_are_its_modes(speech_lm: SpeechLM) -> None:
    assert speech_lm.modes == ("1x", "2x", "3x", "4x", "5x")
    assert speech_lm.decoding().mode.name == "3x"
    with pytest.raises(ConfigError, match="talker's"):
        SpeechLM.from_pretrained().decoding(mode="3x")


def test_the_first_sounds_parts(speech_lm: SpeechLM) -> None:
    found = first_sound(speech_lm, torch.device("cpu"), QUESTION, parse_mode("3x", 0))
    assert len(found.parts) == len(TALKER_PARTS) and min(found.parts) > 0
    written = [event for event in found.events if event.kind is not TokenKind.AUDIO]
    assert 5 <= len(written) < len(found.events)
