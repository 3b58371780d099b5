"""A flow decoder's folder: one file for the flow and one for HiFT, as released or converted to safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vita_mctp.arrays import check_shapes
from vita_mctp.codecs.flow_decoder.flow import Flow
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import fold_weight_norm
from vita_mctp.codecs.released import CONVERTED, load_tensors, shapes_of
from vita_mctp.errors import CheckpointError

RELEASED = ".pt"
_TRAINED_IN = "generator."
"""Before each of HiFT's names in files of the whole GAN."""


def read_part(name: str, part: nn.Module, folder: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a part, exactly those it has, from the converted file where both are there."""
    path = next((path for end in (CONVERTED, RELEASED) if (path := folder / f"{name}{end}").is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has neither {name}{RELEASED} nor {name}{CONVERTED}: {remedy}")
    tensors = {name.removeprefix(_TRAINED_IN): tensor for name, tensor in load_tensors(path, remedy).items()}
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, shapes_of(part), path, remedy)
    return tensors


def fill_parts(
    flow: Flow, hift: Hift, folder: Path, remedy: str, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Reads both into networks without numbers, for inference, HiFT's weight norm folded.

    dtype: of the flow. HiFT, a small part of the work, stays in float32, which pitch and phases need.
    Raises CheckpointError when a file is not there or cut short, or a tensor missing, surplus or of another shape.
    """
    for name, part in (("flow", flow), ("hift", hift)):
        part.load_state_dict(read_part(name, part, folder, remedy), assign=True)
        part.eval().requires_grad_(False)
    flow.to(device, dtype)
    hift.to(device, torch.float32)
    fold_weight_norm(hift)
