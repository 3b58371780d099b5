"""Opens a GLM-4-Voice decoder's folder, as released or converted to safetensors, every stored tensor accounted for.

Construction needs no memory; each tensor goes straight to its place. The released files are read as plain tensors
(`weights_only`), so nothing in them is ever run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vita_mctp.codecs.glm4_voice.decoder_config import CONFIG_FILES, DecoderConfig, load_decoder_config
from vita_mctp.codecs.glm4_voice.flow import Flow
from vita_mctp.codecs.glm4_voice.hift import Hift
from vita_mctp.codecs.glm4_voice.hift_layers import fold_weight_norm
from vita_mctp.errors import CheckpointError, OutputError

HOW_TO_GET = "download the whole of THUDM/glm-4-voice-decoder"
RELEASED, CONVERTED = ".pt", ".safetensors"
"""Endings of the two forms of a part; the converted one is read where both are there."""
_PARTS: dict[str, Callable[[DecoderConfig], nn.Module]] = {
    "flow": lambda config: Flow(config.flow),
    "hift": lambda config: Hift(config.hift),
}


class DecoderParts(NamedTuple):
    """A folder's content, in eval mode and without gradients."""

    config: DecoderConfig
    flow: Flow
    hift: Hift


def load_decoder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DecoderParts:
    """Opens the folder for inference, HiFT's weight norm folded.

    Args:
        folder: holds config.yaml (or config.json), and flow and hift as .pt or .safetensors.
        device: where both parts go.
        dtype: of the flow. HiFT, a small part of the work, stays in float32, which pitch and phases need.

    Raises:
        CheckpointError: a file is not there or cut short, or a tensor is missing, surplus or of another shape.
    """
    config = load_decoder_config(folder)
    flow = cast(Flow, _load_part("flow", config, folder)).to(device, dtype)
    hift = cast(Hift, _load_part("hift", config, folder)).to(device, torch.float32)
    fold_weight_norm(hift)
    return DecoderParts(config, flow, hift)


def convert_decoder(source: Path, target: Path) -> list[Path]:
    """Writes a decoder's folder in safetensors, the configuration as it is; returns the files written.

    `target` may be `source` itself: the released files then stay beside the converted ones.

    Raises:
        CheckpointError: `source` is not whole.
        OutputError: `target` cannot be written.
    """
    config = load_decoder_config(source)
    tensors = {part: _read_part(part, _empty_part(part, config), source) for part in _PARTS}
    try:
        target.mkdir(parents=True, exist_ok=True)
        written = [_write_tensors(target / f"{part}{CONVERTED}", content) for part, content in tensors.items()]
        settings = next(source / name for name in CONFIG_FILES if (source / name).is_file())
        if source.resolve() != target.resolve():
            written.append(Path(shutil.copyfile(settings, target / settings.name)))
    except OSError as error:
        raise OutputError(
            f"cannot write the decoder to {target}: {error}; free some room or name another folder"
        ) from None
    return written


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A file that is there is whole."""
    unfinished = path.with_suffix(".unfinished")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _empty_part(part: str, config: DecoderConfig) -> nn.Module:
    with torch.device("meta"):
        return _PARTS[part](config)


def _load_part(part: str, config: DecoderConfig, folder: Path) -> nn.Module:
    module = _empty_part(part, config)
    module.load_state_dict(_read_part(part, module, folder), assign=True)
    return module.eval().requires_grad_(False)


def _read_part(part: str, module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The tensors of a part, exactly those of `module`."""
    path = next((path for end in (CONVERTED, RELEASED) if (path := folder / f"{part}{end}").is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has neither {part}{RELEASED} nor {part}{CONVERTED}: {HOW_TO_GET}")
    tensors = _read_converted(path) if path.suffix == CONVERTED else _read_released(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(f"{path} lacks {_first(missing)}, which its configuration wants: {HOW_TO_GET}")
    if surplus := [name for name in tensors if name not in wanted]:
        raise CheckpointError(
            f"{path} holds {_first(surplus)}, which its configuration does not describe: {HOW_TO_GET}"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            found = tuple(tensors[name].shape)
            raise CheckpointError(f"{path}: {name} has shape {found}, its configuration wants {shape}: {HOW_TO_GET}")
    return tensors


def _read_converted(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): convert the released decoder again") from None
    return tensors


def _read_released(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        fault = "cut short, damaged, or holds more than tensors"
        raise CheckpointError(f"{path} is {fault} ({type(error).__name__}): {HOW_TO_GET}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds something else than a mapping of names to tensors: {HOW_TO_GET}")
    return content


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


__all__ = ["DecoderParts", "convert_decoder", "load_decoder"]
