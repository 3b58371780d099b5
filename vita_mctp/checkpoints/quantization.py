"""Weight-only int8 and int4: linear layers of backbone and blocks shrink; embeddings, head and norms stay as stored.

The head is shared by all blocks and often tied to the embeddings, and its errors would touch every token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn

from vita_mctp.errors import ConfigError, MissingExtraError

Quantization = Literal["int8", "int4"]

BYTES_PER_WEIGHT: dict[str, float] = {"int8": 1.0, "int4": 0.5 + 4 / 128}
"""int4 also keeps a scale and a zero point, of two bytes each, for a group of 128."""

_GROUP_SIZES = (128, 64, 32)

_SHRINKS = re.compile(r"(?:model\.layers\.\d+\..*_proj|mtp_projs\.\d+)(?:\.weight)?")


def parse_quantization(name: str) -> Quantization:
    """Raises ConfigError for another name, MissingExtraError when the library is not installed."""
    if name not in get_args(Quantization):
        raise ConfigError(f"unknown quantisation {name!r}; known: {', '.join(get_args(Quantization))}")
    if find_spec("torchao") is None:
        raise MissingExtraError(f"--quantize {name} wants torchao: pip install 'vita-mctp[quant]'")
    return "int8" if name == "int8" else "int4"


def shrinks(name: str) -> bool:
    """Whether a linear layer, or its weight, is made smaller: those of decoder layers and blocks' projections."""
    return _SHRINKS.fullmatch(name) is not None


def quantizer(kind: Quantization, device: torch.device) -> Callable[[nn.Linear], None]:
    """What quantises one linear layer in place, on its device.

    int8 has a scale for each output; int4 a scale and a zero point for each group of 128 inputs (64 or 32 where these
    do not divide them; a layer that 32 does not divide stays as it is). int4 computes in bfloat16.
    """
    from torchao.quantization import quantize_

    config = _int8 if kind == "int8" else _int4

    def quantize(layer: nn.Linear) -> None:
        settings = config(layer, device)
        if settings is not None:
            quantize_(layer, settings, filter_fn=lambda module, name: True)

    return quantize


def _int8(layer: nn.Linear, device: torch.device) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def _int4(layer: nn.Linear, device: torch.device) -> Any:
    group = next((size for size in _GROUP_SIZES if layer.in_features % size == 0), None)
    if group is None:
        return None
    if device.type == "cuda":
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(group, set_inductor_config=False, int4_packing_format="tile_packed_to_4d")
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group, set_inductor_config=False)
