"""The study of modes counts what an answer costs, and finds the stages of a training run."""

from pathlib import Path

import pytest

from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.request import Request
from vita_mctp.errors import ConfigError
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.study import StudyOptions
from vita_mctp.study.samples import stage_models
from vita_mctp.study.stages import cost_of
from vita_mctp.types import Task


def options(tmp_path: Path, model: Path, runs: Path | None = None) -> StudyOptions:
    return StudyOptions(str(model), 2, tmp_path / "work", runs=runs)


def test_passes_are_those_of_the_backbone(tiny_speech_folder: Path) -> None:
    speech_lm = SpeechLM.from_pretrained(tiny_speech_folder)
    prompt = speech_lm.prompt("what is two plus three", Task.TTS)
    found = {}
    for mode in ("vanilla", "verified", "1,1"):
        decoding = speech_lm.decoding(Task.TTS, mode, temperature=0.0)
        request = Request(prompt.ids, decoding.mode, 60, decoding.sampling, speech_lm.defaults.eos_ids)
        [answer] = Engine(speech_lm.language_model.runner).generate([request])
        found[mode] = cost_of(speech_lm, request)
        assert found[mode].tokens == len(answer.events)
    assert found["vanilla"].passes == found["vanilla"].tokens == found["verified"].tokens
    assert found["1,1"].passes == -(-found["1,1"].tokens // 2)
    assert found["verified"].passes <= found["vanilla"].passes
    assert all(1 <= each.first_passes <= each.passes for each in found.values())


def test_stages_of_a_run_get_the_codec_of_the_model(tmp_path: Path, tiny_speech_folder: Path) -> None:
    assert list(stage_models(options(tmp_path, tiny_speech_folder))) == []
    runs = tmp_path / "runs"
    with pytest.raises(ConfigError, match="stage"):
        list(stage_models(options(tmp_path, tiny_speech_folder, runs)))
    final = runs / "stage3_chain" / "final"
    final.mkdir(parents=True)
    for path in tiny_speech_folder.iterdir():
        if path.name not in ("speech.json", "codec"):
            (final / path.name).symlink_to(path)
    for _ in range(2):  # what is there already is taken
        [(name, folder)] = stage_models(options(tmp_path, tiny_speech_folder, runs))
    assert name == "stage3_chain"
    assert SpeechLM.from_pretrained(folder).language_model.runner.num_blocks == 2
