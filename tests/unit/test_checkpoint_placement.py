"""Weights on their way into memory: type, device, what fits, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vita_mctp.checkpoints import loading
from vita_mctp.checkpoints.loading import explained_out_of_memory, load_model, memory_needed, parse_dtype
from vita_mctp.checkpoints.weights import stored_dtype, tensor_shapes
from vita_mctp.errors import ConfigError, OutOfMemoryError
from vita_mctp.models.vita import VITA, VitaMctpForCausalLM

MakeModel = Callable[..., VitaMctpForCausalLM]
CPU = torch.device("cpu")


@pytest.fixture
def saved(make_tiny_model: MakeModel, tmp_path: Path) -> Path:
    make_tiny_model(1, 2).bfloat16().save_pretrained(tmp_path, max_shard_size="8KB")
    return tmp_path


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "auto"])
def test_weights_get_the_type_asked_for_and_rotary_frequencies_keep_theirs(saved: Path, name: str) -> None:
    wanted = parse_dtype(name)
    model = load_model(saved, dtype=wanted)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted or torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    stored = load_model(saved, dtype=None)
    for (key, ours), theirs in zip(model.named_parameters(), stored.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype)), key


def test_mixed_types_are_read_as_the_widest(saved: Path, make_tiny_model: MakeModel) -> None:
    from safetensors.torch import load_file, save_file

    assert stored_dtype(saved) == torch.bfloat16
    shard = min(saved.glob("model-*.safetensors"))
    save_file({name: tensor.float() for name, tensor in load_file(shard).items()}, shard)
    assert stored_dtype(saved) == torch.float32


def test_what_is_needed_is_counted_before_anything_is_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = tensor_shapes(saved)
    elements = sum(parameter.numel() for parameter in load_model(saved).parameters())
    assert memory_needed(shapes, torch.float32) == 4 * elements
    assert 0 < memory_needed(shapes, torch.float32, "int8", VITA.shrinks) < memory_needed(shapes, torch.float32)
    monkeypatch.setattr(loading, "memory_available", lambda device: 4 * elements - 1)
    with pytest.raises(OutOfMemoryError, match=r"--dtype bfloat16, --quantize int8 .* --device") as error:
        load_model(saved)
    assert str(saved) in str(error.value) and "0.00 GB of memory on cpu" in str(error.value)
    assert load_model(saved, dtype=None).dtype == torch.bfloat16


def test_this_machine_says_how_much_memory_is_free() -> None:
    free = loading.memory_available(CPU)
    assert free is None or 10**7 < free < 10**14


def exhaust_the_allocator() -> None:
    torch.empty(2**50, dtype=torch.float32)


def exhaust_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def exhaust_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("exhaust", [exhaust_the_allocator, exhaust_the_gpu, exhaust_python])
def test_every_allocators_error_ends_in_one_line(exhaust: Callable[[], None]) -> None:
    with pytest.raises(OutOfMemoryError) as error, explained_out_of_memory("big", 41_300_000_000, CPU):
        exhaust()
    assert str(error.value) == (
        "big does not fit: its weights alone take 41.3 GB of memory on cpu, and the rest is taken; "
        "try --dtype bfloat16, --quantize int8 or int4, or another --device"
    )


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained_out_of_memory("big", 1, CPU):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_unknown_types_and_devices(saved: Path) -> None:
    with pytest.raises(ConfigError, match="known: float32, bfloat16, float16, auto"):
        parse_dtype("float7")
    with pytest.raises(ConfigError, match="'quantum' is unknown or not there"):
        load_model(saved, device="quantum")
    with pytest.raises(ConfigError, match="take --dtype bfloat16, or int8"):
        load_model(saved, quantize="int4")
    with pytest.raises(ConfigError, match="leave one out"):
        load_model(saved, quantize="int8", num_mctp_blocks=4)
