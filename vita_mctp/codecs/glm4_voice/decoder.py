"""The GLM-4-Voice decoder: its folder, as released or converted to safetensors, and its streaming in windows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import fold_weight_norm
from vita_mctp.codecs.flow_decoder.windows import WindowedDecoder, Windows
from vita_mctp.codecs.glm4_voice.config import DECODER_FILES, DECODER_REMEDY, DecoderConfig, load_decoder_config
from vita_mctp.codecs.glm4_voice.flow import Glm4Flow
from vita_mctp.codecs.released import CONVERTED, read_tensors, shapes_of, without_memory
from vita_mctp.errors import CheckpointError, OutputError
from vita_mctp.files import write_whole

RELEASED = ".pt"
_PARTS: dict[str, Callable[[DecoderConfig], nn.Module]] = {
    "flow": lambda config: Glm4Flow(config.flow),
    "hift": lambda config: Hift(config.hift),
}


class Glm4VoiceDecoder(WindowedDecoder):
    """Codes -> wave, offline or in blocks; the samples do not depend on how a stream is cut."""

    name = "glm4_voice"
    flow: Glm4Flow

    def __init__(self, flow: Glm4Flow, hift: Hift, windows: Windows | None = None) -> None:
        super().__init__(flow, hift, flow.config.encoder.block_size, windows)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        windows: Mapping[str, Any] | None = None,
    ) -> Glm4VoiceDecoder:
        """dtype: the flow's. windows: fields of `Windows` that differ from its defaults, as JSON gives them.

        Raises CheckpointError for a folder that is not a whole decoder, ConfigError for windows that cannot work.
        """
        cut = Windows.parse(windows or {}, f"windows of the audio decoder {cls.name}")
        parts = load_decoder(folder, device=device, dtype=dtype)
        return cls(parts.flow, parts.hift, cut)


class DecoderParts(NamedTuple):
    """A folder's content, in eval mode and without gradients."""

    config: DecoderConfig
    flow: Glm4Flow
    hift: Hift


def load_decoder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DecoderParts:
    """Opens the folder for inference, HiFT's weight norm folded; each tensor goes straight where it belongs.

    Args:
        folder: holds config.yaml (or config.json), and flow and hift as .pt or .safetensors.
        device: where both parts go.
        dtype: of the flow. HiFT, a small part of the work, stays in float32, which pitch and phases need.

    Raises:
        CheckpointError: a file is not there or cut short, or a tensor is missing, surplus or of another shape.
    """
    config = load_decoder_config(folder)
    flow = cast(Glm4Flow, _load_part("flow", config, folder)).to(device, dtype)
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
    written = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for part, content in tensors.items():
            written.append(target / f"{part}{CONVERTED}")
            write_whole(written[-1], save({name: tensor.contiguous() for name, tensor in content.items()}))
        settings = next(source / name for name in DECODER_FILES if (source / name).is_file())
        if source.resolve() != target.resolve():
            written.append(Path(shutil.copyfile(settings, target / settings.name)))
    except OSError as error:
        raise OutputError(
            f"cannot write the decoder to {target}: {error}; free some room or name another folder"
        ) from None
    return written


def _empty_part(part: str, config: DecoderConfig) -> nn.Module:
    return without_memory(lambda: _PARTS[part](config))


def _load_part(part: str, config: DecoderConfig, folder: Path) -> nn.Module:
    module = _empty_part(part, config)
    module.load_state_dict(_read_part(part, module, folder), assign=True)
    return module.eval().requires_grad_(False)


def _read_part(part: str, module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The tensors of a part, exactly those of `module`, from the converted file where both are there."""
    path = next((path for end in (CONVERTED, RELEASED) if (path := folder / f"{part}{end}").is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has neither {part}{RELEASED} nor {part}{CONVERTED}: {DECODER_REMEDY}")
    again = DECODER_REMEDY if path.suffix == RELEASED else "convert the released decoder again"
    return read_tensors(path, shapes_of(module), again)
