"""Finds golden files of the reference system and hands them to the parity tests.

The folder is named by `VITA_MCTP_GOLDENS` (default: the copy beside this file) and searched recursively: goldens of the
same form with other sizes, numbers or names are found without touching a test. A test takes one of the arguments of
`FOLDERS`, `FILES` or `generate_case` and runs once for each that is found.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDENS = Path(os.environ.get("VITA_MCTP_GOLDENS") or Path(__file__).parent / "goldens").resolve()

FOLDERS = {"lm_folder": "lm_", "stages_folder": "stages"}
FILES = {
    "generate_file": "generate.json",
    "plus_file": "plus.json",
    "interleave_file": "interleave.json",
    "preprocess_file": "preprocess.json",
    "flow_tensors_file": "flow_state_dict.json",
    "hift_tensors_file": "hift_state_dict.json",
    "tokenizer_tensors_file": "tokenizer_state_dict.json",
    "mel_filters_file": "mel_filters.safetensors",
    "block_mask_file": "block_mask.safetensors",
    "mutations_file": "mutations.json",
    "cosyvoice2_full_size": "hift_state_dict.json",
    "s3_batch_file": "batch.json",
    "s3_full_size": "state_dict.json",
    "xy_full_size": "state_dict.json",
    "talker_train_file": "train_*.safetensors",
    "talker_whole_file": "decode_predict.json",
    "talker_stream_file": "decode_streaming.json",
    "spoken_stream_file": "stream_loop*.json",
    "spoken_whole_file": "generate_*.json",
    "predictors_file": "table3_authors.json",
    "variants_file": "table3_variants.json",
    "released_expected_file": "released_tiny_*/expected.json",
    "prompts_file": "prompts.json",
    "sampling_file": "llm_sampling.json",
    "hearing_file": "hearing.json",
    "m2_file": "m2_definition.json",
    "wiring_file": "wiring_train*.safetensors",
    "wiring_infer_file": "wiring_infer.json",
    "units_file": "units.json",
    "lora_file": "merged_expected.safetensors",
}
BESIDE = {
    "flow_tensors_file": "decoder_config.json",
    "hift_tensors_file": "decoder_config.json",
    "cosyvoice2_full_size": "config.json",
    "s3_full_size": "../batch.json",
    "xy_full_size": "../positional_embedding_rows.safetensors",
}
"""What lies beside a file of `FILES` whose name another codec's has too."""
DECODER_CASES = {"flow_case": "flow", "hift_case": "hift", "stream_case": "stream"}
"""Arguments that are (folder of a GLM-4-Voice decoder, one recorded case of its cases.json)."""
INDEXED_CASES = {
    "cosyvoice2_flow": ("noise.safetensors", "flow/"),
    "cosyvoice2_hift": ("noise.safetensors", "hift/"),
    "cosyvoice2_stream": ("calls.json", "stream/(?!noise)"),
    "s3_case": ("batch.json", r"s\d"),
    "s3_long_case": ("batch.json", "long"),
    "voice_case": ("batch.json", "voice_prompt/"),
    "xy_case": ("positional_embedding_rows.safetensors", r"s\d"),
    "xy_long_case": ("positional_embedding_rows.safetensors", "long"),
    "xy_windowed_case": ("positional_embedding_rows.safetensors", "windowed"),
    "xy_positions": ("positional_embedding_rows.safetensors", "positional"),
}
"""Arguments that are an `IndexedCase`: a file that only its codec's goldens have, and how a case's name begins."""


def find_golden_folders(prefix: str) -> list[Path]:
    """Every folder at or under the goldens folder whose name begins with `prefix`, sorted."""
    candidates = [GOLDENS, *GOLDENS.rglob("*")]
    return sorted(path for path in candidates if path.is_dir() and path.name.startswith(prefix))


def find_golden_files(name: str) -> list[Path]:
    """Every file called `name` at or under the goldens folder, sorted."""
    return sorted(path for path in GOLDENS.rglob(name) if path.is_file())


if not find_golden_folders("lm_") + find_golden_folders("stages") + find_golden_files("*.json"):
    raise pytest.UsageError(f"VITA_MCTP_GOLDENS: no golden files in {GOLDENS}")


def label(path: Path) -> str:
    """A path's readable name in a test id."""
    return str(path.relative_to(GOLDENS)) if path != GOLDENS else path.name


@dataclass(frozen=True)
class IndexedCase:
    """One recorded file of a folder whose index.json lists every file with its tolerances."""

    folder: Path
    name: str

    @property
    def index(self) -> dict[str, Any]:
        return _read_index(self.folder)

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def tensors(self) -> dict[str, Tensor]:
        return _read_tensors(self.folder / self.name)

    def check(self, key: str, got: Tensor) -> None:
        """Compares with the recorded tensor, if there is one; of `KEY_everyN` each N-th step of the last axis.

        key: "name", or "name.2" of what is recorded several times.
        """
        stem, dot, number = key.partition(".")
        for name, wanted in self.tensors.items():
            found = re.fullmatch(rf"{stem}(?:_every(\d+))?{re.escape(dot + number)}", name)
            if not found:
                continue
            near = self._tolerance(name)
            got = got[..., :: int(found[1] or 1)].reshape(wanted.shape)
            if near == "exact":
                assert torch.equal(got.to(wanted.dtype), wanted), key
                continue
            difference = (got - wanted).double().abs()
            near = near if isinstance(near, dict) else {"max_abs": near}
            assert difference.max() <= near["max_abs"], f"{key}: {difference.max()}"
            assert difference.square().mean().sqrt() <= near.get("rms", near["max_abs"]), key

    def _tolerance(self, name: str) -> Any:
        """Its entry's keys name a tensor, several with slashes or a star, or tensors numbered behind a dot."""
        near = self.index["files"][self.name]["tolerance"]
        patterns = {part: value for keys, value in near.items() for part in re.split(r" ?/ ?", keys)}
        return next(value for part, value in patterns.items() if fnmatch(name, part) or fnmatch(name, f"{part}.*"))


@cache
def _read_index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return index


@cache
def _read_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def _indexed_cases(marker: str, prefix: str) -> list[Any]:
    around = [(file.parent, file.parents[1]) for file in find_golden_files(marker)]
    nearest = (next((path for path in near if (path / "index.json").is_file()), None) for near in around)
    return [
        pytest.param(IndexedCase(folder, name), id=f"{label(folder)}-{name}")
        for folder in filter(None, dict.fromkeys(nearest))
        for name in _read_index(folder)["files"]
        if re.match(prefix, name) and name.endswith(".safetensors") and (folder / name).is_file()
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument, prefix in FOLDERS.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, find_golden_folders(prefix), ids=label)
    for argument, name in FILES.items():
        if argument in metafunc.fixturenames:
            found = [file for file in find_golden_files(name) if (file.parent / BESIDE.get(argument, "")).exists()]
            metafunc.parametrize(argument, found, ids=label)
    for argument, kind in DECODER_CASES.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, _decoder_cases(kind))
    for argument, (marker, prefix) in INDEXED_CASES.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, _indexed_cases(marker, prefix))
    if "tokenizer_case" in metafunc.fixturenames:
        metafunc.parametrize("tokenizer_case", _tokenizer_cases())
    if "generate_case" in metafunc.fixturenames:
        metafunc.parametrize("generate_case", _generate_cases())


def _generate_cases() -> list[Any]:
    """(folder of the model, the recorded case) for each case of each generate.json that lies beside a model."""
    return [
        pytest.param((file.parent, case), id=f"{label(file.parent)}-{index}-{'_'.join(map(str, case['mode']))}")
        for file in find_golden_files("generate.json")
        for index, case in enumerate(json.loads(file.read_text())["cases"])
    ]


def _tokenizer_cases() -> list[Any]:
    """(folder, the recorded case) for each case of each speech tokenizer, which lies in the folder's `model`."""
    return [
        pytest.param((file.parent, case), id=f"{label(file.parent)}-{case['file']}")
        for preprocessor in find_golden_files("preprocessor_config.json")
        if (file := preprocessor.parents[1] / "cases.json").is_file()
        for case in json.loads(file.read_text())
    ]


def _decoder_cases(kind: str) -> list[Any]:
    return [
        pytest.param((file.parent, case), id=f"{label(file.parent)}-{case['file']}")
        for weights in find_golden_files("flow.safetensors")
        if (file := weights.with_name("cases.json")).is_file()
        for case in json.loads(file.read_text()).get(kind, [])
    ]


@pytest.fixture(scope="session")
def two_tones() -> Callable[[dict[str, Tensor], int], Tensor]:
    """(recorded tables, samples) -> the int16 samples of a long recording, as its index.json writes them out."""

    def made(given: dict[str, Tensor], count: int) -> Tensor:
        steps = torch.arange(count)
        total = torch.zeros(count, dtype=torch.int32)
        for name, every in (("a", 800), ("b", 1100)):
            base, gain = given[f"base_{name}"].int(), given[f"gain_{name}"].int()
            total += base[steps % len(base)] * gain[steps // every]
        return total >> 8

    return made


@pytest.fixture
def tolerances() -> Callable[[Path], dict[str, Any]]:
    """The tolerances that the nearest index.json at or above a folder of goldens states."""

    def find(folder: Path) -> dict[str, Any]:
        index = next(path for parent in (folder, *folder.parents) if (path := parent / "index.json").is_file())
        return json.loads(index.read_text())["tolerances"]

    return find


@pytest.fixture
def check_gradients() -> Callable[[Any, dict[str, Any]], None]:
    """Compares each parameter's gradient with the recorded None or {norm, sum, cosdot}, within the tolerances."""
    return _check_gradients


def _check_gradients(model: Any, recorded: dict[str, Any]) -> None:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == recorded.keys()
    for name, expected in recorded.items():
        assert (gradients[name] is None) == (expected is None), name
        if expected is None:
            continue
        flat = gradients[name].double().flatten()
        near = 5e-4 * expected["norm"] + 1e-9
        assert flat.norm().item() == pytest.approx(expected["norm"], abs=near), name
        assert flat.sum().item() == pytest.approx(expected["sum"], abs=near), name
        index = torch.arange(len(flat), dtype=torch.float64)
        assert (flat * index.cos()).sum().item() == pytest.approx(expected["cosdot"], abs=near), name
