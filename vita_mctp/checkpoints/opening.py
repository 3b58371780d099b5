"""How a name becomes an opened model: a folder, its configuration, its family, and how it hears and speaks.

The codecs of a released model are repositories of their own. Each is looked for where the user says, in the model's
folder, beside it (as owner/name or name), and on the hub. torch is imported by what loads weights, not before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vita_mctp.arrays import Shapes
from vita_mctp.checkpoints.hub import (
    AUDIO_DECODER,
    AUDIO_TOKENIZER,
    HUB_ID,
    WEIGHTS,
    Repository,
    absent,
    fetch,
    missing_files,
    repository,
)
from vita_mctp.checkpoints.options import best_device
from vita_mctp.checkpoints.speech import SPEECH_FILE, CodecRef, SpeechSettings
from vita_mctp.checkpoints.weights import read_weights
from vita_mctp.codecs import registry
from vita_mctp.codecs.base import AudioDecoder, AudioFeatureExtractor, AudioTokenizer
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import ModelFamily, SpeechModel, family_of
from vita_mctp.schema import read_json
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import FloatArray

if TYPE_CHECKING:
    import torch

NANO = "nano"
GENERATION_FILE = "generation_config.json"
ADAPTERS = "adapter_config.json"
TOKENIZER_VARIABLE = "VITA_MCTP_AUDIO_TOKENIZER"
DECODER_VARIABLE = "VITA_MCTP_AUDIO_DECODER"

AudioFrontend = AudioTokenizer | AudioFeatureExtractor
"""A recording becomes codes, or, for a model that hears features, features."""


@dataclass(frozen=True)
class OpenedModel:
    """A model folder; what else is known of it is found once, when it is first asked for.

    name: as the user gave it. audio_tokenizer, audio_decoder: as for `open_model`.
    """

    name: str
    folder: Path
    audio_tokenizer: str | None = None
    audio_decoder: str | None = None

    @cached_property
    def speech(self) -> SpeechSettings:
        """How it hears and speaks, with absolute paths; codecs that are nowhere on this machine are downloaded.

        Raises:
            CheckpointError: a codec is nowhere to be had (the message names repository, size, terms and command), or
                speech.json is damaged.
            ConfigError: a folder that was named is not there, or the model is of a kind that has no released codecs.
        """
        folder = self.folder
        frontend = self.audio_tokenizer or os.environ.get(TOKENIZER_VARIABLE)
        decoder = self.audio_decoder or os.environ.get(DECODER_VARIABLE)
        if not (folder / SPEECH_FILE).is_file():
            return _released_settings(folder, frontend, decoder)
        settings = SpeechSettings.from_folder(folder)
        check = settings.self_check
        return settings.but(
            audio_tokenizer=_resolved(settings.audio_tokenizer, folder, frontend),
            audio_decoder=_resolved(settings.audio_decoder, folder, decoder),
            self_check=check and check.model_copy(update={"question": str(folder / check.question)}),
        )

    @cached_property
    def family(self) -> ModelFamily:
        """Raises ConfigError for a kind of model that no family is."""
        return family_in(self.folder)

    @cached_property
    def graph_values(self) -> Mapping[str, Any]:
        """config.json's values, for graphs made without torch.

        Raises CheckpointError for values that are damaged, ConfigError for a family that has no graphs.
        """
        return self.family.graph_values(self.folder, read_json(self.folder / "config.json"))

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        """What generation_config.json says, nothing where there is none. Raises CheckpointError when it is damaged."""
        path = self.folder / GENERATION_FILE
        values = read_json(path) if path.is_file() else {}
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} is damaged (no JSON object): download it again")
        return values

    @cached_property
    def config(self) -> Any:
        """The model's configuration. Raises CheckpointError for one that is damaged or contradicts itself."""
        from vita_mctp.checkpoints.loading import read_config

        return read_config(self.folder)

    def best_device(self) -> str:
        """Where the model is best loaded on this machine."""
        return best_device(sum(path.stat().st_size for path in self.folder.glob("*.safetensors")))

    def load_model(
        self,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device = "cpu",
        attn: str = "sdpa",
        quantize: str | None = None,
    ) -> SpeechModel:
        """The language model. dtype: None is what config.json names, "auto" as stored. Raises as `load_model`."""
        import torch

        from vita_mctp.checkpoints.loading import load_model, parse_dtype
        from vita_mctp.checkpoints.options import parse_quantization

        precision = (self.config.dtype or torch.float32) if dtype is None else parse_dtype(dtype)
        shrink = None if quantize is None else parse_quantization(quantize)
        return load_model(self.folder, dtype=precision, device=device, attn=attn, quantize=shrink)

    def read_weights(self, needed: Shapes) -> dict[str, FloatArray]:
        """The language model's as float32, without torch. Raises CheckpointError unless they are exactly those."""
        return read_weights(self.folder, needed)

    def load_tokenizer(self, num_codes: int) -> TextTokenizer:
        """num_codes: of the audio vocabulary, which is the codecs'."""
        return self.family.load_tokenizer(self.folder, self.speech.tokenizer_kind, num_codes)

    def load_audio_frontend(self, device: str | torch.device = "cpu") -> AudioFrontend:
        ref = self.speech.audio_tokenizer
        if self.speech.tokenizer_kind is VocabularyKind.CONTINUOUS:
            return registry.feature_extractor(ref.name, Path(ref.folder))
        return registry.audio_tokenizer(ref.name, Path(ref.folder), device)

    def load_audio_decoder(self, device: str | torch.device = "cpu") -> AudioDecoder:
        ref = self.speech.audio_decoder
        return registry.audio_decoder(ref.name, Path(ref.folder), device, ref.options)


def open_model(
    name: str | os.PathLike[str], audio_tokenizer: str | None = None, audio_decoder: str | None = None
) -> OpenedModel:
    """Finds a model, downloading what is nowhere on this machine.

    Args:
        name: "nano" (the embedded model), a local folder, or a hub id; of the folder of a training run, its finished
            model is taken.
        audio_tokenizer: folder or hub id of it, or of the feature extractor; None: `VITA_MCTP_AUDIO_TOKENIZER`, else
            the model's own.
        audio_decoder: folder or hub id; None: `VITA_MCTP_AUDIO_DECODER`, else the model's own.

    Raises:
        CheckpointError: the folder holds something else or not all of a model, or the hub does not give it.
        ConfigError: the name is none of the three.
    """
    return OpenedModel(str(name), find_model(name), audio_tokenizer, audio_decoder)


def find_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a model that `open_model` opens; raises as it does."""
    name = str(model)
    if name == NANO:
        return Path(str(resources.files("vita_mctp"))) / "assets" / NANO
    folder = Path(model)
    if not os.path.isdir(folder):  # noqa: PTH112 (pathlib's raises for a name that is too long)
        if HUB_ID.fullmatch(name):
            return fetch(repository(name))
        raise ConfigError(f"unknown model {name!r}; give {NANO}, a model folder, or a hub id such as owner/name")
    if not (folder / "config.json").exists() and (folder / "final" / "config.json").is_file():
        folder = folder / "final"
    if missing := absent(folder, repository(name)):
        raise CheckpointError(
            f"the model folder {folder} lacks {', '.join(missing)}{_mistaken_for(folder)}; "
            "get these files or name another one"
        )
    return folder


def model_type_of(folder: Path) -> str:
    """What the folder's config.json says that it is. Raises CheckpointError when it says nothing that can be read."""
    values = read_json(folder / "config.json")
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str):
        raise CheckpointError(f"{folder / 'config.json'} is damaged (it names no model_type): download it again")
    return kind


def family_in(folder: Path) -> ModelFamily:
    """Raises ConfigError for a kind of model that no family is, CheckpointError as `model_type_of`."""
    try:
        return family_of(model_type_of(folder))
    except ConfigError as error:
        raise ConfigError(f"{folder} holds {error}") from None


def _released_settings(folder: Path, frontend: str | None, decoder: str | None) -> SpeechSettings:
    family = family_in(folder)
    if family.audio_frontend is None or family.audio_decoder is None:
        raise ConfigError(f"{folder} holds a {model_type_of(folder)} model without {SPEECH_FILE}; write one")
    refs = [
        CodecRef(name=codec.name, folder=str(_codec_folder(codec.hub_id, folder, named, option)))
        for codec, named, option in (
            (family.audio_frontend, frontend, "--audio-tokenizer"),
            (family.audio_decoder, decoder, "--audio-decoder"),
        )
    ]
    return SpeechSettings(
        tokenizer_kind=family.input_kind,
        channel=family.channel,
        audio_tokenizer=refs[0],
        audio_decoder=refs[1],
        max_history_turns=family.max_history_turns,
        voice_prompts=family.voice_prompts,
        **family.settings,
    )


def _resolved(ref: CodecRef, folder: Path, named: str | None) -> CodecRef:
    if named is not None and not Path(named).is_dir():
        raise ConfigError(f"there is no codec folder {named}; give one, or leave it out to take the model's own")
    return ref.model_copy(update={"folder": str((Path(named) if named else folder / ref.folder).resolve())})


def _codec_folder(hub_id: str | None, folder: Path, named: str | None, option: str) -> Path:
    if hub_id is None:
        return Path(named) if named is not None else folder
    codec = repository(hub_id)
    if named is not None:
        return _named(codec, named, option)
    above = folder.resolve().parent
    own = [] if any(WEIGHTS[0] in names for names in codec.required) else [folder]  # that file there is the model's
    paths = [*own, *(base / part for base in (folder, above, above.parent) for part in (codec.name, codec.id))]
    whole = (path.resolve() for path in paths if path.is_dir() and not absent(path, codec))
    try:
        return next(whole, None) or fetch(codec)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a copy elsewhere is named with {option}") from error


def _named(codec: Repository, named: str, option: str) -> Path:
    if not Path(named).is_dir():
        if HUB_ID.fullmatch(named):
            return fetch(replace(repository(named), required=codec.required, patterns=codec.patterns))
        raise ConfigError(f"{option} {named} is no folder; {codec.what} is wanted: {codec.how_to_get}")
    if lacking := absent(Path(named), codec):
        raise CheckpointError(
            f"{option} {named} lacks {', '.join(lacking)}; {codec.what} is wanted: {codec.how_to_get}"
        )
    return Path(named).resolve()


def _mistaken_for(folder: Path) -> str:
    names = {path.name for path in folder.iterdir()}
    if not names:
        return ": it is empty"
    for codec, option in ((AUDIO_DECODER, "--audio-decoder"), (AUDIO_TOKENIZER, "--audio-tokenizer")):
        if not missing_files(names, codec.required):
            return f": it holds {codec.id} ({codec.what}), which goes with {option}"
    if ADAPTERS in names:
        return f": it holds adapters; merge them first: vita-mctp convert lora BASE {folder} OUT"
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    return f": {pickled[0]} is pickled and is never loaded, weights in safetensors are wanted" if pickled else ""
