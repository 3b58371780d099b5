"""Audio tokenizers, feature extractors and decoders by name; a module is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vita_mctp.codecs.base import AudioDecoder, AudioFeatureExtractor, AudioTokenizer
from vita_mctp.errors import ConfigError

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "audio tokenizer": {
        "glm4_voice": "vita_mctp.codecs.glm4_voice.tokenizer:Glm4VoiceTokenizer",
        "nano": "vita_mctp.codecs.nano:NanoTokenizer",
        "s3_tokenizer": "vita_mctp.codecs.s3_tokenizer:S3Tokenizer",
        "xy_tokenizer": "vita_mctp.codecs.xy_tokenizer:XyTokenizer",
    },
    "audio decoder": {
        "cosyvoice2": "vita_mctp.codecs.cosyvoice2.decoder:CosyVoice2Decoder",
        "glm4_voice": "vita_mctp.codecs.glm4_voice.decoder:Glm4VoiceDecoder",
        "nano": "vita_mctp.codecs.nano:NanoDecoder",
        "nano_digits": "vita_mctp.codecs.nano:NanoDigitsDecoder",
        "xy_tokenizer": "vita_mctp.codecs.xy_tokenizer:XyDecoder",
    },
    "feature extractor": {
        "sensevoice": "vita_mctp.codecs.features:SenseVoiceFrontEnd",
        "whisper": "vita_mctp.codecs.features:WhisperFrontEnd",
    },
}
_NO_OPTIONS = ("device", "dtype")
"""What a class may take that its folder cannot settle."""


def register(
    name: str, *, tokenizer: str | None = None, decoder: str | None = None, extractor: str | None = None
) -> None:
    """Makes "module:Class" known under `name`; the class has `from_folder(Path)`, perhaps with `device=`."""
    for kind, target in (("audio tokenizer", tokenizer), ("audio decoder", decoder), ("feature extractor", extractor)):
        if target is not None and _CLASSES[kind].setdefault(name, target) != target:
            raise ConfigError(f"the codec name {name} already stands for {_CLASSES[kind][name]}; choose another one")


def audio_tokenizer(name: str, folder: Path, device: torch.device | str = "cpu") -> AudioTokenizer:
    """Loads a tokenizer from its folder; ConfigError for an unknown name, CheckpointError for a bad folder.

    device: for a class whose `from_folder` takes one; the others, small, stay on the CPU.
    """
    tokenizer: AudioTokenizer = _open("audio tokenizer", name, folder, device)
    return tokenizer


def feature_extractor(name: str, folder: Path) -> AudioFeatureExtractor:
    """As `audio_tokenizer`, for a model without input codes."""
    extractor: AudioFeatureExtractor = _open("feature extractor", name, folder)
    return extractor


def feature_positions(name: str, frames: int) -> int:
    """Positions of a prompt that so many frames of this feature extractor take."""
    positions: int = _class_of("feature extractor", name).positions(frames)
    return positions


def audio_decoder(
    name: str, folder: Path, device: torch.device | str = "cpu", options: Mapping[str, Any] | None = None
) -> AudioDecoder:
    """As `audio_tokenizer`; options: what else its `from_folder` takes by name."""
    decoder: AudioDecoder = _open("audio decoder", name, folder, device, options or {})
    return decoder


def _open(
    kind: str, name: str, folder: Path, device: torch.device | str = "cpu", options: Mapping[str, Any] | None = None
) -> Any:
    from_folder = _class_of(kind, name).from_folder
    _, *taken = signature(from_folder).parameters
    known = [option for option in taken if option not in _NO_OPTIONS]
    if unknown := sorted(set(options or {}) - set(known)):
        raise ConfigError(f"the {kind} {name} has no option {unknown[0]}; it has: {', '.join(known) or 'none'}")
    return from_folder(folder, **({"device": device} if "device" in taken else {}), **(options or {}))


def _class_of(kind: str, name: str) -> Any:
    if name not in _CLASSES[kind]:
        raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(sorted(_CLASSES[kind]))}")
    module, _, attribute = _CLASSES[kind][name].partition(":")
    return getattr(import_module(module), attribute)
