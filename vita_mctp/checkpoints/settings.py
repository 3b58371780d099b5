"""A model folder: where it is, what it must hold, and `speech.json`, which says how the model hears and speaks."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from vita_mctp.audio import read_wave
from vita_mctp.checkpoints.hub import HUB_ID, absent, fetch, repository
from vita_mctp.checkpoints.released import AUDIO_DECODER, AUDIO_TOKENIZER, missing_files
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.text.chat import SPEECH_TO_SPEECH_SYSTEM
from vita_mctp.types import Task, Wave

NANO = "nano"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_PURPOSE = "it says how a model that is not one of the released hears and speaks"


@dataclass(frozen=True)
class CodecRef:
    """A codec's name in the registry, its folder, relative to the model folder, and what else its class takes.

    The decoder "glm4_voice" takes `windows`: how it cuts an answer, with the fields of its `Windows`.
    """

    name: str
    folder: str = "."
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfCheck:
    """A question file in the model folder, and the text of its right answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class SpeechSettings:
    """`speech.json`.

    channel: of a recording, the one to hear; null is the mean of all.
    sampling: by task, what differs from generation_config.json.
    block_sizes: codes decoded for the first sound, for the next ..., the last size repeating; none: the decoder's own.
    The released command decodes by 10 (its decoder's own), the released page by 25, 50, 100, 150, 200.
    system_text, before_speech: what stands around a spoken question, as released unless said; null is no system turn.
    max_history_turns: earlier questions, each with its answer, that the prompt holds; 0: trained on single questions.
    voice_prompts: whether it was trained to speak in the voice of a recording.
    """

    tokenizer_kind: str
    audio_tokenizer: CodecRef
    audio_decoder: CodecRef
    max_question_seconds: float = 60.0
    channel: int | None = None
    max_new_tokens: int = 2048
    block_sizes: tuple[int, ...] = ()
    system_text: str | None = SPEECH_TO_SPEECH_SYSTEM
    before_speech: str = "\n"
    max_history_turns: int = 0
    voice_prompts: bool = False
    sampling: dict[Task, dict[str, Any]] = field(default_factory=dict)
    self_check: SelfCheck | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> SpeechSettings:
        """Raises CheckpointError naming what the folder lacks or the key that is not known."""
        path = folder / "speech.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"the model folder {folder} lacks speech.json: {_PURPOSE}") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}; {_PURPOSE}") from None
        values = _known(cls, values, path)
        for key, kind in (("audio_tokenizer", CodecRef), ("audio_decoder", CodecRef), ("self_check", SelfCheck)):
            if values.get(key) is not None:
                values[key] = kind(**_known(kind, values[key], path))
        values["sampling"] = {_task(name, path): kept for name, kept in values.get("sampling", {}).items()}
        values["block_sizes"] = _block_sizes(values.get("block_sizes", []), path)
        return cls(**values)

    def read_recording(self, source: str | os.PathLike[str] | bytes) -> Wave:
        """A question or a voice as this model hears it; AudioError for what is unusable or too long."""
        return read_wave(source, self.max_question_seconds, channel=self.channel)


def find_model(model: str | os.PathLike[str]) -> Path:
    """The folder of "nano" (the embedded model), of a local folder, or of a hub id, downloaded when it is not cached.

    Raises:
        CheckpointError: the folder holds something else or not all of a model, or the hub does not give it.
        ConfigError: it is none of the three.
    """
    name = str(model)
    if name == NANO:
        return Path(str(resources.files("vita_mctp"))) / "assets" / NANO
    if not Path(model).is_dir():
        if HUB_ID.fullmatch(name):
            return fetch(repository(name))
        raise ConfigError(f"unknown model {name!r}; give {NANO}, a model folder, or a hub id such as owner/name")
    folder = Path(model)
    if missing := absent(folder, repository(name)):
        raise CheckpointError(
            f"the model folder {folder} lacks {', '.join(missing)}{_mistaken_for(folder)}; "
            "get these files or name another one"
        )
    return folder


def _mistaken_for(folder: Path) -> str:
    names = {path.name for path in folder.iterdir()}
    if not names:
        return ": it is empty"
    for codec, option in ((AUDIO_DECODER, "--audio-decoder"), (AUDIO_TOKENIZER, "--audio-tokenizer")):
        if not missing_files(names, codec.required):
            return f": it holds {codec.id} ({codec.what}), which goes with {option}"
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    return f": {pickled[0]} is pickled and is never loaded, weights in safetensors are wanted" if pickled else ""


def _known(kind: type, values: Any, path: Path) -> dict[str, Any]:
    """A copy of a JSON object whose keys are all fields of the dataclass, none without a default left out."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} wants an object for {kind.__name__}, got {values!r}")
    names = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - names):
        raise CheckpointError(f"{path} has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    try:
        kind(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is incomplete: {error}; add it") from None
    return dict(values)


def _block_sizes(sizes: Any, path: Path) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise CheckpointError(
            f"{path} has block_sizes {sizes!r}; a list of numbers of codes, each at least 1, is wanted"
        )
    return tuple(sizes)


def _task(name: str, path: Path) -> Task:
    try:
        return Task(name)
    except ValueError:
        known = ", ".join(task.value for task in Task)
        raise CheckpointError(f"{path} sets the sampling of an unknown task {name!r}; known: {known}") from None
