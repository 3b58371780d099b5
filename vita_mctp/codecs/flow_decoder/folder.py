"""A flow decoder's folder: one file for the flow and one for HiFT, as released or converted to safetensors; and the
voice it speaks in: a short recording as codes and mel, and its speaker's embedding, in one safetensors file, so that
speaking needs none of the models that made it. P codes, M mel bands, F frames, E embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vita_mctp.arrays import check_shapes
from vita_mctp.codecs.flow_decoder.config import FlowConfig
from vita_mctp.codecs.flow_decoder.flow import Flow
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import fold_weight_norm
from vita_mctp.codecs.released import CONVERTED, load_tensors, shapes_of
from vita_mctp.errors import CheckpointError
from vita_mctp.files import write_output

_REMEDY = "prepare the voice again"


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """What every window of an answer sees in front of it."""

    codes: Tensor
    """(P,) int64."""
    mel: Tensor
    """(M, F), the frames of exactly these codes."""
    embedding: Tensor
    """(E,)."""

    @classmethod
    def none(cls, bands: int, embedding_size: int) -> VoicePrompt:
        """No recording, and the embedding of zeros that the released scripts of GLM-4-Voice give."""
        return cls(torch.zeros(0, dtype=torch.int64), torch.zeros(bands, 0), torch.zeros(embedding_size))

    @classmethod
    def read(cls, path: Path, config: FlowConfig, frames_per_code: int) -> VoicePrompt:
        """Raises CheckpointError: no such file, or not a voice for a flow of these sizes."""
        tensors = load_tensors(path, _REMEDY)
        count = tensors["codes"].numel() if "codes" in tensors else 0
        shapes = {
            "codes": (count,),
            "mel": (config.output_size, count * frames_per_code),
            "embedding": (config.spk_embed_dim,),
        }
        check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, shapes, path, _REMEDY)
        codes = tensors["codes"].long()
        if count and not 0 <= int(codes.min()) <= int(codes.max()) < config.vocab_size:
            raise CheckpointError(f"{path} holds codes beyond 0..{config.vocab_size - 1} of this decoder: {_REMEDY}")
        return cls(codes, tensors["mel"].float(), tensors["embedding"].float())

    def write(self, path: Path) -> None:
        """Raises OutputError when it cannot be written."""
        write_output(path, save({"codes": self.codes, "mel": self.mel.contiguous(), "embedding": self.embedding}))


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
