"""What a user may say of a model's type, device and quantisation: wrong words are named before torch is imported."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

from vita_mctp.errors import ConfigError, MissingExtraError

Quantization = Literal["int8", "int4"]

AUTO = "auto"
"""Of a type: as stored. Of a device: the best one."""
_SMALL_BYTES = 64 << 20
DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(name: str) -> None:
    """Raises ConfigError for an unknown name."""
    if name not in (*DTYPES, AUTO):
        raise ConfigError(f"unknown dtype {name!r}; known: {', '.join([*DTYPES, AUTO])}")


def check_device(name: str) -> None:
    """AUTO is none yet, and always there. Raises ConfigError for a device that is unknown or not there."""
    if name in ("cpu", AUTO):
        return
    import torch

    try:
        torch.zeros(1, device=name).tolist()  # "meta" holds no numbers
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise ConfigError(
            f"the device {name!r} is unknown or not there; give cpu, or cuda where doctor shows one"
        ) from None


def best_device(weight_bytes: int) -> str:
    """cuda, mps or cpu, for weights of so many bytes: a GPU that is there and has room for them.

    Of small ones it is the CPU at once: their answer is there before torch, which knows the GPUs, is imported.
    """
    if weight_bytes <= _SMALL_BYTES:
        return "cpu"
    import torch

    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > weight_bytes:
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def parse_quantization(name: str) -> Quantization:
    """Raises ConfigError for another name, MissingExtraError when the library is not installed."""
    if name not in get_args(Quantization):
        raise ConfigError(f"unknown quantisation {name!r}; known: {', '.join(get_args(Quantization))}")
    if find_spec("torchao") is None:
        raise MissingExtraError(f"--quantize {name} wants torchao: pip install 'vita-mctp[quant]'")
    return "int8" if name == "int8" else "int4"
