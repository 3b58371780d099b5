"""A model that ONNX Runtime's graphs compute is loaded without torch, and torch's loader has the rest."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vita_mctp import SpeechLM
from vita_mctp.arrays import load_arrays
from vita_mctp.checkpoints.opening import find_model, open_model
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners.eager import EagerRunner
from vita_mctp.decoding.runners.onnx import level_shape
from vita_mctp.errors import CheckpointError
from vita_mctp.language_model import load_graphs

QUESTION = str(find_model("nano") / "question.wav")
PLAIN = {"device": "cpu", "dtype": None, "attn": "sdpa", "quantize": None}

_TALK = """
import sys
from vita_mctp.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "huggingface_hub"} & {name.partition(".")[0] for name in sys.modules}
sys.exit(code or str(sorted(heavy)))
"""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ask", QUESTION, "-o", "answer.wav"), "eight plus twelve is twenty"),
        (("say", "seven plus six is thirteen", "-o", "answer.wav"), "seven plus six is thirteen"),
        (("transcribe", QUESTION), "what is eight plus twelve"),
    ],
)
def test_who_talks_with_nano_waits_for_no_torch(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TALK, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stderr, text in done.stdout) == ("[]\n", True)


def test_graphs_made_of_files_answer_as_the_model_does_in_every_mode() -> None:
    opened = open_model("nano")
    language_model = load_graphs(opened, **PLAIN)
    assert language_model is not None
    speech_lm = SpeechLM.from_opened(opened)
    prompt = speech_lm.prompt(speech_lm.hear(QUESTION))
    requests = [Request(prompt.ids, mode, 60, eos_ids=speech_lm.defaults.eos_ids) for mode in MODES.values()]
    own = Engine(EagerRunner(opened.load_model())).generate(requests)
    assert Engine(language_model.runner).generate(requests) == own


@pytest.mark.parametrize("tied", [True, False])
def test_the_graphs_want_the_tensors_that_a_folder_holds(
    make_tiny_model: Callable[..., torch.nn.Module], tmp_path: Path, tied: bool
) -> None:
    make_tiny_model(seed=1, num_blocks=3, tied=tied).save_pretrained(tmp_path)
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert level_shape(json.loads((tmp_path / "config.json").read_text())).weights == stored


def changed(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_a_norm(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (without_a_norm, "lacks model.norm.weight"),
        (cut_short, "cut short"),
        (lambda folder: changed(folder, "config.json", rms_norm_eps=-1), "rms_norm_eps"),
        (lambda folder: changed(folder, "config.json", use_sliding_window=True), "sliding"),
        (lambda folder: changed(folder, "config.json", num_nextn_predict_layers=16), "num_nextn_predict_layers"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), "generation_config.json is damaged"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_by_torchs_loader(
    damage: Callable[[Path], object], complaint: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(find_model("nano"), tmp_path / "nano")
    damage(folder)
    opened = open_model(folder)
    assert load_graphs(opened, **PLAIN) is None
    with pytest.raises(CheckpointError, match=complaint):
        SpeechLM.from_opened(opened)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_of_every_type_are_widened_as_torch_does(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {"a": torch.randn(7, 5).to(dtype), "b": torch.randn(3).half()}
    save_file(weights, tmp_path / "x.safetensors")
    arrays = load_arrays(tmp_path / "x.safetensors")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: weight.float().tolist() for name, weight in weights.items()
    }
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="a is F8_E4M3"):
        load_arrays(tmp_path / "x.safetensors")


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "cuda"}, {"attn": "eager"}])
def test_options_that_concern_torch_are_left_to_it(options: dict[str, str]) -> None:
    assert load_graphs(open_model("nano"), **(PLAIN | options)) is None
