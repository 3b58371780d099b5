"""What is evaluated: a model of this library, a server, a folder of finished answers, or an adapter of one's own.

An adapter is any object with `answer`:

    class Mine:
        def answer(self, question: Question, task: Task) -> Reply:
            ...
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from vita_mctp.answer import Answer, collect
from vita_mctp.audio import read_wave, wav_bytes
from vita_mctp.checkpoints.opening import find_model, open_model
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.environment import weights_hash
from vita_mctp.errors import AudioError, DataError, EndpointError
from vita_mctp.evaluation.benchmarks import Question
from vita_mctp.evaluation.judges import ENDPOINT, open_client, refuses_sample
from vita_mctp.schema import Schema
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import StopReason, Task, Wave

FINISHED = "wavs:"
LONGEST_SECONDS = 3600.0
_SPEAKER = "alloy"
"""The voice that OpenAI's own examples name; servers with one voice take any."""


@dataclass(frozen=True, eq=False)
class Reply:
    """text: what it wrote, empty when it only spoke. wave: None when it only wrote.

    seconds: from the question to the end; first_sound: to the first samples. finished: False when it was cut off.
    mode: of decoding, where it has such.
    """

    text: str = ""
    wave: Wave | None = None
    seconds: float = 0.0
    first_sound: float | None = None
    tokens: int = 0
    finished: bool = True
    mode: str | None = None


class System(Protocol):
    """A VitaError that `answer` raises fails its sample; an EndpointError ends the run, to be gone on with."""

    def answer(self, question: Question, task: Task) -> Reply: ...


class SystemConfig(Schema):
    """What is evaluated, and how it answers. loading: options of `SpeechLM.from_pretrained`, but for the device.

    model: one of this library, `endpoint:URL#MODEL` or `wavs:FOLDER`. None: the model's own. clone_voice: hand over
    the set's voice prompts, to a model trained with such.
    """

    model: str
    mode: str | None = None
    seed: int = Field(default=0, ge=0)
    temperature: float | None = Field(default=None, ge=0)
    max_new_tokens: int | None = Field(default=None, gt=0)
    clone_voice: bool = False
    loading: dict[str, str | None] = Field(default_factory=dict)

    def check(self) -> None:
        """Raises ConfigError for a mode or a model that is not known, before anything is loaded."""
        parse_mode(self.mode, num_blocks=0)
        if self._adapter() is None:
            find_model(self.model)

    def open(self, device: str = "cpu") -> System:
        """device: of a model of this library.

        Raises as `SpeechLM.from_pretrained`, and DataError for a folder of answers that is not there.
        """
        loading: dict[str, Any] = dict(self.loading)
        return self._adapter() or LocalModel(SpeechLM.from_pretrained(self.model, device=device, **loading), self)

    def best_device(self) -> str:
        """Of the model, and so of the judges; the CPU beside a server or finished answers."""
        return "cpu" if self._adapter() else open_model(self.model).best_device()

    def weights(self) -> str:
        """The hash of what answers, where it lies on this machine."""
        return "not here" if self._adapter() else weights_hash(find_model(self.model))

    def _adapter(self) -> System | None:
        """A server or a folder of finished answers; None for a model of this library."""
        if self.model.startswith(ENDPOINT):
            return EndpointSystem(*open_client(self.model.removeprefix(ENDPOINT), "system to evaluate"))
        if not self.model.startswith(FINISHED):
            return None
        folder = Path(self.model.removeprefix(FINISHED))
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; give the one that holds the finished answers, ID.wav each")
        return FinishedAnswers(folder)


@dataclass(eq=False)
class LocalModel:
    """The first answer is made twice, so that every time is that of a warm process."""

    speech_lm: SpeechLM
    config: SystemConfig
    warm: bool = False

    def answer(self, question: Question, task: Task) -> Reply:
        asked = question.audio if task.hears else question.text
        assert asked is not None
        if not self.warm:
            self._collect(asked, question, task)
            self.warm = True
        answer = self._collect(asked, question, task)
        times = answer.done.timings
        finished = answer.done.reason is StopReason.EOS
        measured = (times.total, times.first_sound, times.tokens)
        return Reply(answer.text, answer.wave, *measured, finished, answer.done.mode)

    def _collect(self, asked: str | Path, question: Question, task: Task) -> Answer:
        config = self.config
        voice = question.voice if config.clone_voice and task.speaks else None
        sampling = {name: getattr(config, name) for name in ("seed", "temperature", "max_new_tokens")}
        return collect(self.speech_lm.stream(asked, task, config.mode, voice_prompt=voice, **sampling))


@dataclass(frozen=True)
class FinishedAnswers:
    """FOLDER/ID.wav and, where it also wrote, FOLDER/ID.txt: answers that another program has made."""

    folder: Path

    def answer(self, question: Question, task: Task) -> Reply:
        written = self.folder / f"{question.id}.txt"
        try:
            text = written.read_text(encoding="utf-8-sig").strip() if written.exists() else ""
        except UnicodeDecodeError as error:
            raise DataError(f"{written} is no UTF-8 ({error}); wanted a text in it: convert it") from None
        if not task.speaks:
            return Reply(text)
        try:
            return Reply(text, read_wave(self.folder / f"{question.id}.wav", LONGEST_SECONDS))
        except AudioError:
            if not text:
                raise
            return Reply(text)


@dataclass(frozen=True, eq=False)
class EndpointSystem:
    """An OpenAI-compatible server: transcriptions for asr, speech for tts, a chat in audio for spoken questions."""

    client: Any
    model: str

    def answer(self, question: Question, task: Task) -> Reply:
        from openai import APIConnectionError, OpenAIError

        start = time.perf_counter()
        try:
            text, sound = self._ask(question, task)
        except OpenAIError as error:
            if refuses_sample(error):
                raise DataError(f"the server of {self.model} refused the sample: {error}") from None
            what = "is not reached" if isinstance(error, APIConnectionError) else "failed"
            raise EndpointError(f"the server of {self.model} {what}: {error}; mend it and run again") from None
        seconds = time.perf_counter() - start
        return Reply(text.strip(), read_wave(sound, LONGEST_SECONDS) if sound else None, seconds)

    def _ask(self, question: Question, task: Task) -> tuple[str, bytes]:
        if task is Task.TTS:
            speech = self.client.audio.speech
            made = speech.create(model=self.model, voice=_SPEAKER, input=question.text, response_format="wav")
            return "", made.read()
        assert question.audio is not None
        heard = wav_bytes(read_wave(question.audio, LONGEST_SECONDS))
        if task is Task.ASR:
            file = ("speech.wav", heard, "audio/wav")
            return self.client.audio.transcriptions.create(model=self.model, file=file).text, b""
        return self._converse(heard)

    def _converse(self, heard: bytes) -> tuple[str, bytes]:
        sound = {"data": base64.b64encode(heard).decode(), "format": "wav"}
        completion = self.client.chat.completions.create(
            model=self.model,
            modalities=["text", "audio"],
            audio={"voice": _SPEAKER, "format": "wav"},
            messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}],
        )
        if not completion.choices:
            return "", b""
        message = completion.choices[0].message
        if message.audio is None:
            return message.content or "", b""
        return message.content or message.audio.transcript or "", base64.b64decode(message.audio.data)
