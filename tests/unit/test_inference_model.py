"""The model that only decodes, in plain torch: transformers' twin gives the same numbers to the bit."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vita_mctp.checkpoints.inference import load_for_inference
from vita_mctp.checkpoints.loading import load_model
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import MODES, parse_mode
from vita_mctp.decoding.state import Request
from vita_mctp.models.vita import VitaMctpForCausalLM
from vita_mctp.models.vita.inference import VitaMctpForInference

CPU = torch.device("cpu")
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)


@pytest.fixture(params=[(2, False), (3, True), (0, False)], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path: Path, make_tiny_model: Callable[..., VitaMctpForCausalLM]) -> Path:
    blocks, tied = request.param
    make_tiny_model(7 + blocks, blocks, tied=tied).to(torch.float32).save_pretrained(tmp_path)
    return tmp_path


def pair(folder: Path, dtype: str = "float32") -> tuple[VitaMctpForInference, VitaMctpForCausalLM]:
    plain = load_for_inference(folder, dtype, CPU)
    assert plain is not None
    return plain, load_model(folder, dtype=getattr(torch, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_level_gives_its_twins_numbers(folder: Path, dtype: str) -> None:
    plain, twin = pair(folder, dtype)
    assert plain.dtype == twin.dtype and {n for n, _ in plain.named_parameters()} == {
        n for n, _ in twin.named_parameters()
    }
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    positions = torch.arange(len(PROMPT)).expand_as(ids)
    mask = torch.ones(2, 1, len(PROMPT), len(PROMPT), dtype=torch.bool).tril()
    mask[1, :, 2:, 0] = False
    for given in (None, mask):
        found = []
        for model in (plain, twin):
            with torch.inference_mode():
                embeds = model.embed(ids)
                levels = [model.backbone(embeds, positions, given)]
                for k in range(twin.config.num_nextn_predict_layers):
                    levels.append(model.block(k, embeds, levels[-1], positions, given))
                found.append(torch.stack([model.logits(hidden) for hidden in levels]))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_answers_are_its_twins(folder: Path) -> None:
    plain, twin = pair(folder)
    blocks = twin.config.num_nextn_predict_layers
    for counts in ([1, blocks], [1, blocks, 2, blocks], [100, 0]):
        requests = [Request(PROMPT[:n], parse_mode(counts, blocks), 40) for n in (2, 5, 8)]
        first, second = (Engine(model).generate(requests) for model in (plain, twin))  # type: ignore[arg-type]
        assert first == second


def test_the_embedded_model_decodes_as_its_twin() -> None:
    folder = Path(sys.modules["vita_mctp"].__file__ or "").parent / "assets" / "nano"
    plain, twin = pair(folder)
    for mode in MODES.values():
        request = Request(tuple(range(20, 40)), mode, 60)
        first, second = (Engine(model).generate([request]) for model in (plain, twin))  # type: ignore[arg-type]
        assert first == second


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"model_type": "qwen2_mtp_sensevoice"},
        {"hidden_size": 24},
        {"num_nextn_predict_layers": 9},
        {"rms_norm_eps": None},
        {"vocab_size": 47},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_plain_is_left_to_the_twin(folder: Path, change: dict[str, Any]) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    assert load_for_inference(folder, None, CPU) is None


@pytest.mark.parametrize("fault", ["missing", "surplus", "misshapen"])
def test_other_tensors_than_its_own_are_left_to_the_twin(folder: Path, tmp_path: Path, fault: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.norm.weight"
    if fault == "surplus":
        tensors["model.other.weight"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(5)
    if fault == "missing":
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    assert load_for_inference(folder, None, CPU) is None


def test_damaged_generation_settings_are_left_to_the_twin(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    assert load_for_inference(folder, None, CPU) is None


def test_weights_are_mapped_not_copied(folder: Path, tmp_path: Path) -> None:
    plain, _ = pair(folder)
    shutil.rmtree(folder)
    assert torch.isfinite(plain.model.norm.weight).all()


HEAVY = ["transformers", "torch._dynamo", "sympy", "scipy", "torchao", "huggingface_hub", "accelerate", "pandas"]
HEAVY += ["torch.distributed.tensor", "torch._inductor", "datasets", "gradio", "sklearn", "matplotlib", "httpx"]

_LIST = """
import sys
from vita_mctp.cli import main
code = main(sys.argv[1:])
sys.stderr.write(" ".join(sys.modules))
sys.exit(code)
"""


def _imported(*arguments: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", _LIST, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_an_answer_needs_no_heavy_package(tmp_path: Path) -> None:
    question = Path(__file__).parents[2] / "demo" / "examples" / "question.wav"
    imported = _imported("ask", str(question), "-o", str(tmp_path / "answer.wav"))
    assert "torch" in imported and not imported & set(HEAVY)


def test_help_imports_no_numbers_at_all() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vita_mctp.cli", "--help"], capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "typer" in imported
    assert not imported & {"torch", "numpy", "pydantic", "yaml", "soundfile", *HEAVY}
