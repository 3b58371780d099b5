"""The voice that a flow decoder speaks in: a short recording as codes and mel, and its speaker's embedding.

One safetensors file holds it, so that speaking needs none of the models that made it. P codes, M mel bands, F frames,
E embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from vita_mctp.arrays import check_shapes
from vita_mctp.codecs.flow_decoder.config import FlowConfig
from vita_mctp.codecs.released import load_tensors
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
