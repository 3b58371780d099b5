"""Opens a tokenizer's folder as a network, every stored tensor accounted for.

Two forms of names are met: the released one, and that of the Whisper it was trained in (`model.encoder.` before each
name, with a decoder, a last norm and further layers that play no part). Construction needs no memory; each tensor is
read once, straight to its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vita_mctp.codecs.glm4_voice.tokenizer_config import HOW_TO_GET, EncoderConfig
from vita_mctp.codecs.glm4_voice.whisper_encoder import WhisperVqEncoder
from vita_mctp.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
PREFIX = "model.encoder."


def empty_encoder(config: EncoderConfig) -> WhisperVqEncoder:
    """The network without its numbers, on the meta device."""
    with torch.device("meta"):
        return WhisperVqEncoder(config)


def training_buffers(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codebook's moving averages: released, of no use to a finished codebook, never read."""
    return {
        "ema_count": (config.quantize_vocab_size,),
        "ema_weight": (config.quantize_vocab_size, config.d_model),
    }


def load_encoder(
    config: EncoderConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WhisperVqEncoder:
    """The folder's network, in eval mode and without gradients.

    Raises:
        CheckpointError: the file is not there or cut short, or a tensor is missing, surplus or of another shape.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}: {HOW_TO_GET}")
    encoder = empty_encoder(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    try:
        with safe_open(path, framework="pt", device=str(device)) as stored:
            names = plain_names(stored.keys(), config)
            shapes = {name: tuple(stored.get_slice(key).get_shape()) for name, key in names.items()}
            _check(shapes, wanted, training_buffers(config), path)
            tensors = {name: stored.get_tensor(names[name]).to(dtype) for name in wanted}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): {HOW_TO_GET}") from None
    encoder.load_state_dict(tensors, assign=True)
    return encoder.eval().requires_grad_(False)


def plain_names(stored: Iterable[str], config: EncoderConfig) -> dict[str, str]:
    """Name in the network -> name in the file."""
    stored = list(stored)
    prefixed = [name for name in stored if name.startswith(PREFIX)]
    if not prefixed:
        return {name: name for name in stored}
    names = {name.removeprefix(PREFIX): name for name in prefixed}
    return {name: key for name, key in names.items() if not _behind_quantizer(name, config.quantize_position)}


def _behind_quantizer(name: str, num_layers: int) -> bool:
    layer = re.match(r"layers\.(\d+)\.", name)
    return name.startswith("layer_norm") or (layer is not None and int(layer[1]) >= num_layers)


def _check(
    stored: dict[str, tuple[int, ...]],
    wanted: dict[str, tuple[int, ...]],
    optional: dict[str, tuple[int, ...]],
    path: Path,
) -> None:
    if missing := [name for name in wanted if name not in stored]:
        raise CheckpointError(f"{path} lacks {_first(missing)}, which its config.json wants: {HOW_TO_GET}")
    known = wanted | optional
    if surplus := [name for name in stored if name not in known]:
        raise CheckpointError(f"{path} holds {_first(surplus)}, which its config.json does not describe: {HOW_TO_GET}")
    for name, shape in stored.items():
        if shape != known[name]:
            raise CheckpointError(f"{path}: {name} has shape {shape}, its config.json wants {known[name]}")


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
