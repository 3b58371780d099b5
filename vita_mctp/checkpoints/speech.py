"""`speech.json`: how a model folder's model hears and speaks. Read and written here alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vita_mctp.audio.io import Source, read_wave
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.schema import Schema
from vita_mctp.text.chat import SPEECH_TO_SPEECH_SYSTEM
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import Task, Wave

SPEECH_FILE = "speech.json"

_Count = Annotated[int, Field(ge=0, le=1 << 20)]
_Size = Annotated[int, Field(ge=1, le=1 << 20)]


class CodecRef(Schema):
    """A codec's name in `codecs.registry`, its folder, relative to the model folder, and what else its class takes.

    The decoder "glm4_voice" takes `windows`: how it cuts an answer, with the fields of its `Windows`.
    """

    name: str
    folder: str = "."
    options: dict[str, Any] = Field(default_factory=dict)


class SelfCheck(Schema):
    """A question file in the model folder, and the text of its right answer."""

    question: str
    answer: str


class SpeechSettings(Schema):
    """The file's contents. In an `OpenedModel` the paths are absolute."""

    tokenizer_kind: VocabularyKind
    audio_tokenizer: CodecRef
    """Or, for a model that hears features, the feature extractor."""
    audio_decoder: CodecRef
    max_question_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    channel: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Of a recording, the one to hear; null is the mean of all."""
    cut_to_speech: bool = False
    """Whether a question is cut to the speech in it; silence around it costs nano its answers."""
    max_new_tokens: _Size = 2048
    block_sizes: tuple[_Size, ...] = ()
    """Codes decoded for the first sound, for the next ..., the last size repeating; none: the decoder's own.

    The released command decodes by 10 (its decoder's own), the released page by 25, 50, 100, 150, 200.
    """
    system_text: str | None = SPEECH_TO_SPEECH_SYSTEM
    """Stands before a spoken question, as does `before_speech`; null is no system turn."""
    before_speech: str = "\n"
    rhythms: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] = ()
    """Counts of modes whose rhythm the system text names, since it learnt to interleave in each (`further_ratios`)."""
    max_history_turns: _Count = 0
    """Earlier questions, each with its answer, that the prompt holds; 0: trained on single questions."""
    voice_prompts: bool = False
    """Whether it was trained to speak in the voice of a recording."""
    sampling: dict[Task, dict[str, float | int]] = Field(default_factory=dict)
    """By task, what differs from generation_config.json."""
    spoken_words: tuple[str, ...] = ()
    """All words that it was taught, which are then all that it reads and says; none: any text, as it is written."""
    self_check: SelfCheck | None = None

    @property
    def follows_instructions(self) -> bool:
        """Whether its prompt has room for a system text of the user's; whoever knows few words cannot read one."""
        return not self.spoken_words

    @classmethod
    def from_folder(cls, folder: Path) -> SpeechSettings:
        """Raises CheckpointError naming what the folder lacks or the key that is not known."""
        return cls.read_json(folder / SPEECH_FILE)

    def write(self, folder: Path) -> None:
        """What was set, and nothing that is only a default."""
        values = self.model_dump(mode="json", exclude_unset=True)
        (folder / SPEECH_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def but(self, **changes: Any) -> SpeechSettings:
        return self.model_copy(update=changes)

    def check_voice(self, task: Task, given: bool) -> None:
        """Raises ConfigError for a voice prompt that nothing could be done with."""
        if given and not task.speaks:
            raise ConfigError(f"the task {task.value} makes no speech; leave the voice prompt out")
        if given and not self.voice_prompts:
            raise ConfigError("this model has one voice and was not trained with voice prompts; leave the voice out")

    def check_instructions(self, task: Task, given: str) -> None:
        """Raises ConfigError for instructions that nothing could be done with."""
        if given and task in (Task.ASR, Task.TTS):
            raise ConfigError(f"the task {task.value} answers nothing; leave the instructions out")
        if given and not self.follows_instructions:
            raise ConfigError("this model knows few words and one system text; leave the instructions out")

    def read_recording(self, source: Source, sample_rate: int | None = None) -> Wave:
        """A question or a voice as this model hears it; AudioError for what is unusable or too long."""
        return read_wave(source, self.max_question_seconds, channel=self.channel, sample_rate=sample_rate)


def read_portable(origin: Path) -> tuple[SpeechSettings, tuple[str, ...]] | None:
    """A folder's settings, codecs outside it under their whole paths, and what inside it they name.

    None of a released model, which has no speech.json. Raises CheckpointError when it is damaged, or names a file
    inside `origin` that is not there.
    """
    path = origin / SPEECH_FILE
    if not path.is_file():
        return None
    settings = SpeechSettings.from_folder(origin)
    names = [] if settings.self_check is None else [settings.self_check.question]
    for key in ("audio_tokenizer", "audio_decoder"):
        ref: CodecRef = getattr(settings, key)
        folder = (origin / ref.folder).resolve()
        if origin.resolve() in folder.parents:
            names.append(ref.folder)
        else:
            settings = settings.but(**{key: ref.model_copy(update={"folder": str(folder)})})
    if outside := [name for name in names if origin.resolve() not in (origin / name).resolve().parents]:
        raise CheckpointError(f"{path} names {outside[0]}, which is not inside {origin}; put it there")
    if lost := [name for name in names if not (origin / name).exists()]:
        raise CheckpointError(f"{path} names {lost[0]}, which {origin} has not; get it again")
    return settings, tuple(names)


def copy_speech(origin: Path, folder: Path) -> None:
    """Makes `folder` hear and speak as `origin` does. Raises as `read_portable`."""
    if (found := read_portable(origin)) is None:
        return
    settings, names = found
    for name in names:
        if (origin / name).is_dir():
            shutil.copytree(origin / name, folder / name, dirs_exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, folder / name)
    settings.write(folder)
