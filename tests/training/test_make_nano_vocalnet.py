"""The one command that makes a nano VocalNet, shrunk: parts fit together and the result answers aloud."""

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from vita_mctp.checkpoints.opening import open_model
from vita_mctp.codecs.nano import codes_of_digits, digits_of
from vita_mctp.codecs.registry import audio_decoder
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.nano.talker_data import ASKED, HELD_OUT, SENTENCES, WRITTEN, SpokenText, make_spoken_texts
from vita_mctp.nano.talker_training import (
    Lessons,
    TalkerRecipe,
    TalkerSchedule,
    make_nano_vocalnet,
    open_lessons,
    ship,
)
from vita_mctp.nano.voices import Sizes
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import AudioCodes

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 16, "ffn_size": 24, "num_heads": 2, "backbone_layers": 1, "text_chunk": 2, "speech_chunk": 5}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values: dict[str, Any] = yaml.safe_load((ROOT / "stages" / "nano_vocalnet" / "talker.yaml").read_text())
    values["talker"] |= TINY
    values["corpus"] = {"questions": 3, "sentences": 4, "babble": 0}
    values["schedule"] |= {"steps": 3, "batch": 2, "save_every": 2, "log_every": 1}
    path = tmp_path_factory.mktemp("recipe") / "talker.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def made(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nano_vocalnet(recipe, tmp_path_factory.mktemp("run"))


def test_the_folder_answers_a_question_aloud_at_every_speed(made: Path) -> None:
    model = SpeechLM.from_pretrained(made)
    question = made / model.settings.self_check.question
    assert model.modes == ("1x", "2x", "3x", "4x", "5x")
    texts = {model.ask(question, mode).text for mode in ("1x", "3x", "5x,as_trained")}
    assert texts == {model.settings.self_check.answer}
    answer = model.ask(question)
    assert answer.done.mode == "3x,as_trained"
    assert len(answer.wave.samples) == len(answer.done.codes) * 1280
    assert max(answer.done.codes, default=0) < 1000
    with pytest.raises(ConfigError, match="tts"):
        model.say("one two three")
    assert model.chat("what is your name") == "my name is nano"


def test_the_thinker_writes_no_code(made: Path) -> None:
    model = open_model(made).load_model()
    scores = model.logits(torch.randn(3, model.config.hidden_size))
    assert torch.isinf(scores[:, model.config.speech_token_offset :]).all() and torch.isfinite(scores[:, :900]).all()


def test_a_finished_run_trains_no_more(made: Path, recipe: Path) -> None:
    weights = (made / "model.safetensors").read_bytes()
    assert make_nano_vocalnet(recipe, made.parent) == made
    assert (made / "model.safetensors").read_bytes() == weights


def test_another_corpus_in_the_same_folder_is_not_mixed_up(made: Path) -> None:
    sizes = {"questions": 2, "sentences": 6, "babble": 0}
    found = make_spoken_texts(open_model("nano"), made.parent, Sizes.parse(sizes, "the test"), 0)
    assert [len(found[part]) for part in (ASKED, WRITTEN, SENTENCES, HELD_OUT)] == [2, 2, 6, 2]
    vocabulary = open_model("nano").load_tokenizer(1000).vocabulary
    for text in (text for texts in found.values() for text in texts):
        assert len(text.ids) == len(text.states) == len(text.text.split()) + 1 and text.ids[-1] == vocabulary.im_end


def test_a_talker_of_another_thinker_is_refused(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["talker"]["text_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="rows of 32"):
        SpeechLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    def text(number: int) -> SpokenText:
        length = 2 + number % 4
        states = torch.randn(length, 224, generator=torch.Generator().manual_seed(number))
        return SpokenText(str(number), torch.arange(length), states, torch.arange(4 * length) + number)

    parts = {ASKED: range(9), WRITTEN: range(9, 18), SENTENCES: range(18, 40), HELD_OUT: range(40, 47)}
    return Lessons(open_model("nano"), {name: [text(number) for number in part] for name, part in parts.items()})


def test_a_resumed_run_goes_on_with_the_very_next_batch(lessons: Lessons) -> None:
    schedule = TalkerSchedule(batch=3)

    def names(first: int, count: int) -> list[tuple[list[str], list[bool]]]:
        drawn = islice(lessons.order(schedule, 7, first), count)
        return [([text.text for text in texts], streaming) for texts, streaming in drawn]

    whole = names(0, 40)
    assert names(23, 17) == whole[23:]
    assert not any(int(text) >= 40 for texts, _ in whole for text in texts), "held out"
    assert {flag for _, flags in whole for flag in flags} == {True, False}, "both masks in one run"


@pytest.mark.parametrize("predictor", ["vocalnet", "group_linear"])
def test_the_test_is_the_mean_over_all_held_out_targets(lessons: Lessons, predictor: str) -> None:
    grouped = {"group_size": 3, "mtp_levels": 0} if predictor == "group_linear" else {"mtp_levels": 2}
    talker, texts = lessons.new_talker(TalkerRecipe(talker={"predictor": predictor, **grouped, **TINY})), lessons.texts
    found = lessons.test(talker, texts[HELD_OUT], streaming=True)
    with torch.inference_mode():
        losses = lessons.losses(talker, lessons.batch(talker, texts[HELD_OUT], [True] * len(texts[HELD_OUT])))
    assert found["nats"] == pytest.approx([float(losses[f"level{k}"]) for k in range(len(found["nats"]))], rel=1e-3)
    assert float(losses["total"]) == pytest.approx(sum(0.8**k * nats for k, nats in enumerate(found["nats"])), rel=1e-3)
    assert all(0 <= right <= 1 for right in found["right"])


M2 = {"hidden_size": 16, "ffn_size": 24, "num_heads": 2, "num_layers": 1, "fusion_size": 12, "mtp_levels": 2}


def test_digits_are_codebooks_and_sound_the_same(lessons: Lessons) -> None:
    codes, levels = np.arange(1000), (8, 5, 5, 5)
    digits = digits_of(codes, levels)
    assert digits.max(0).tolist() == [7, 4, 4, 4] and codes_of_digits(digits, levels).tolist() == codes.tolist()
    assert codes_of_digits(np.array([(9, 9, 0, 9)]), levels) == codes_of_digits(np.array([(7, 4, 0, 4)]), levels)
    folder = Path(open_model("nano").speech.audio_decoder.folder)
    one, several = audio_decoder("nano", folder), audio_decoder("nano_digits", folder)
    spoken, rate = codes[100:120], one.frame_rate
    wave = one.decode(AudioCodes(spoken, 1000, rate, "nano"))
    same = several.decode(AudioCodes(digits[100:120], 8, rate, "nano_digits"))
    assert np.array_equal(wave.samples, same.samples) and (several.num_codebooks, several.codebook_size) == (4, 8)


def test_losses_of_m2_are_summed(lessons: Lessons) -> None:
    recipe = TalkerRecipe(kind="m2", talker=M2)
    frames = open_lessons(recipe, lessons.texts)
    talker, texts = frames.new_talker(recipe), lessons.texts[HELD_OUT]
    with torch.inference_mode():
        losses = frames.losses(talker, frames.batch(talker, texts, []))
    found = frames.test(talker, texts, streaming=False)
    assert found["nats"] == pytest.approx([float(losses[f"level{k}"]) for k in range(3)], rel=1e-3)
    assert float(losses["total"]) == pytest.approx(sum(found["nats"]), rel=1e-3), "without weights"


def test_m2_answers_aloud_as_in_training(made: Path, tmp_path: Path) -> None:
    recipe = TalkerRecipe(kind="m2", talker=M2)
    talker = open_lessons(recipe, {}).new_talker(recipe)
    folder = ship(open_model("nano"), talker, "m2", tmp_path / "final")
    model = SpeechLM.from_pretrained(folder)
    assert model.modes == ("1x", "2x", "3x")
    answer = model.ask(folder / "question.wav", "3x")
    assert answer.text == model.settings.self_check.answer
    assert len(answer.wave.samples) == len(answer.done.codes) * 1280 and len(answer.done.codes[0]) == 4
    assert model.ask(folder / "question.wav").done.mode == "1x"
    broken = json.loads((folder / "speech.json").read_text())
    broken["audio_decoder"]["name"] = "nano"
    (folder / "speech.json").write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match="4 x 8 codes"):
        SpeechLM.from_pretrained(folder)
