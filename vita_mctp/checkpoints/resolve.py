"""How a model folder hears and speaks: its speech.json, or, for a released folder, which has none, its model_type.

The codecs of a released model are repositories of their own. Each is looked for where the user says, in the model's
folder, beside it (as owner/name or name), and on the hub.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from vita_mctp.checkpoints.hub import HUB_ID, absent, fetch, repository
from vita_mctp.checkpoints.released import AUDIO_DECODER, AUDIO_TOKENIZER, FRONT_END, Repository
from vita_mctp.checkpoints.settings import CodecRef, SpeechSettings
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.text.vocabulary import VocabularyKind

TOKENIZER_VARIABLE = "VITA_MCTP_AUDIO_TOKENIZER"
DECODER_VARIABLE = "VITA_MCTP_AUDIO_DECODER"

_HEARING = {
    "qwen2_mtp": (VocabularyKind.DISCRETE, "glm4_voice", AUDIO_TOKENIZER),
    "qwen2_mtp_sensevoice": (VocabularyKind.CONTINUOUS, "sensevoice", FRONT_END),
}
"""By model_type: the vocabulary, the name in the codec registry and the repository of what hears."""

_VOICE = ("glm4_voice", AUDIO_DECODER)

RELEASED_HISTORY_TURNS = 4
"""Five exchanges of a short question and 20 s of answer, some 400 tokens each, fill the 2,048 of fine-tuning's rows."""


def resolve_settings(
    folder: Path, audio_tokenizer: str | None = None, audio_decoder: str | None = None
) -> SpeechSettings:
    """The settings of a model folder, with absolute codec folders.

    Args:
        folder: as `find_model` gives it.
        audio_tokenizer: folder or hub id of what hears; None: `VITA_MCTP_AUDIO_TOKENIZER`, else the model's own.
        audio_decoder: folder or hub id of what speaks; None: `VITA_MCTP_AUDIO_DECODER`, else the model's own.

    Raises:
        CheckpointError: a codec is nowhere to be had (the message names repository, size, terms and command), or
            speech.json is damaged.
        ConfigError: a folder that was named is not there, or the model is of a kind that has no released codecs.
    """
    hearing = audio_tokenizer or os.environ.get(TOKENIZER_VARIABLE)
    voice = audio_decoder or os.environ.get(DECODER_VARIABLE)
    if (folder / "speech.json").is_file():
        settings = SpeechSettings.from_folder(folder)
        return replace(
            settings,
            audio_tokenizer=_placed(settings.audio_tokenizer, folder, hearing),
            audio_decoder=_placed(settings.audio_decoder, folder, voice),
        )
    kind, name, tokenizer = _HEARING[_model_type(folder)]
    return SpeechSettings(
        tokenizer_kind=kind.value,
        channel=0 if kind is VocabularyKind.DISCRETE else None,
        audio_tokenizer=CodecRef(name, str(_codec_folder(tokenizer, folder, hearing, "--audio-tokenizer"))),
        audio_decoder=CodecRef(_VOICE[0], str(_codec_folder(_VOICE[1], folder, voice, "--audio-decoder"))),
        max_history_turns=RELEASED_HISTORY_TURNS,
        voice_prompts=True,
    )


def _model_type(folder: Path) -> str:
    try:
        kind = json.loads((folder / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged ({error!r}): download it again") from None
    if kind not in _HEARING:
        raise ConfigError(
            f"{folder} holds a {kind} model without speech.json; a model that speaks is one of {', '.join(_HEARING)}, "
            "or says in speech.json how it hears and speaks"
        )
    return str(kind)


def _placed(ref: CodecRef, folder: Path, named: str | None) -> CodecRef:
    if named is None:
        return replace(ref, folder=str((folder / ref.folder).resolve()))
    if not Path(named).is_dir():
        raise ConfigError(f"there is no codec folder {named}; give one, or leave it out to take the model's own")
    return replace(ref, folder=str(Path(named).resolve()))


def _codec_folder(wanted: Repository, folder: Path, named: str | None, option: str) -> Path:
    if named is not None:
        return _named(wanted, named, option)
    above = folder.resolve().parent
    places = [folder, *(base / part for base in (folder, above, above.parent) for part in (wanted.name, wanted.id))]
    whole = (place.resolve() for place in places if place.is_dir() and not absent(place, wanted))
    found = next(whole, None)
    try:
        return found or fetch(wanted)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a copy elsewhere is named with {option}") from error


def _named(wanted: Repository, named: str, option: str) -> Path:
    if not Path(named).is_dir():
        if HUB_ID.fullmatch(named):
            known = repository(named)
            return fetch(replace(known, required=wanted.required, patterns=wanted.patterns))
        raise ConfigError(f"{option} {named} is no folder; {wanted.what} is wanted: {wanted.how_to_get}")
    if lacking := absent(Path(named), wanted):
        raise CheckpointError(
            f"{option} {named} lacks {', '.join(lacking)}; {wanted.what} is wanted: {wanted.how_to_get}"
        )
    return Path(named).resolve()
