"""The one command that makes nano, on the shipped recipes, all shrunk: parts fit together and the result answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vita_mctp.nano.run import make_nano
from vita_mctp.speech_lm import SpeechLM

ROOT = Path(__file__).parents[2]
WIDTHS = ("fine_width", "coarse_width", "vocoder_width")
LAYERS = (
    "encoder_fine_layers",
    "encoder_coarse_layers",
    "decoder_fine_layers",
    "decoder_coarse_layers",
    "vocoder_layers",
)


def shrink_codec(values: dict[str, Any]) -> None:
    values["sizes"] = dict.fromkeys(WIDTHS, 16) | dict.fromkeys(LAYERS, 1)
    values["codec"] |= {"steps": 2, "warmup": 1}
    values["vocoder"] |= {"steps": 2, "own_frames_steps": 1, "warmup": 1, "batch": 2, "crop_codes": 8}
    values["corpus"] = {"questions": 3, "answers": 3, "sentences": 4, "babble": 2}
    values |= {"max_frames": 800, "augmented_variants": 1}
    values["encoder"] = {"questions": 0}


def shrink_stage(values: dict[str, Any]) -> None:
    values["data"] |= {"tokens_per_step": 768, "rows_per_forward": 2, "mixture": "mixture.yaml"}
    values["max_tokens"] = 1536
    if "model" in values:
        values["model"] |= {"hidden_size": 16, "num_layers": 1, "intermediate_size": 16}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for source in (path for name in ("codec", "stage*") for path in (ROOT / "stages" / "nano").glob(f"{name}.yaml")):
        values = yaml.safe_load(source.read_text())
        (shrink_codec if source.stem == "codec" else shrink_stage)(values)
        (folder / source.name).write_text(yaml.safe_dump(values))
    sets = [{"name": name, "ratio": 1.0} for name in ("asr", "tts_sentences", "sqa_text")]
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"seed": 0, "sets": [*sets, {"name": "text", "ratio": 0.01}]}))
    return folder


def test_from_nothing_to_a_folder_that_answers(recipes: Path, tmp_path: Path) -> None:
    folder = make_nano(recipes, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 10
    model = SpeechLM.from_pretrained(folder)
    check = model.settings.self_check
    assert check is not None
    answer = model.ask(folder / check.question, mode="turbo")
    assert answer.done.timings.tokens > 0
    assert len(answer.wave.samples) == len(answer.done.codes) * 1280

    weights = (folder / "model.safetensors").read_bytes()
    assert make_nano(recipes, tmp_path / "run") == folder, "a finished run trains no more"
    assert (folder / "model.safetensors").read_bytes() == weights
