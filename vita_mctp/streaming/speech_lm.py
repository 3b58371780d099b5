"""The library's front door: a speech language model that hears a wave and answers with text and a wave."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vita_mctp.audio import read_wave
from vita_mctp.codec.base import AudioDecoder, AudioTokenizer
from vita_mctp.codec.registry import audio_decoder, audio_tokenizer
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import Mode, parse_mode
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.decoding.state import Request
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.model import VitaMctpForCausalLM, load_model
from vita_mctp.streaming.session import SessionEvent, SoundStream, stream_session
from vita_mctp.streaming.settings import NANO, SpeechSettings, find_model
from vita_mctp.streaming.timing import Stopwatch
from vita_mctp.text.chat import ChatFormat, PromptStyle
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.types import Done, Prompt, Task, Wave, WaveChunk

Recording = Wave | str | os.PathLike[str] | bytes
"""A wave, a path ("-" is standard input), or the bytes of a file."""

ModeSpec = str | Sequence[int] | Mode

HEARS = (Task.SPEECH_TO_SPEECH, Task.ASR)
SPEAKS = (Task.SPEECH_TO_SPEECH, Task.TTS)


@dataclass(frozen=True, eq=False)
class Answer:
    """A finished answer. wave: without samples when the answer has no sound."""

    text: str
    wave: Wave
    done: Done


class SpeechLM:
    """A language model between an audio tokenizer and an audio decoder. Sessions share its weights and nothing else."""

    def __init__(
        self,
        model: VitaMctpForCausalLM,
        tokenizer: TextTokenizer,
        hearing: AudioTokenizer,
        voice: AudioDecoder,
        settings: SpeechSettings,
    ) -> None:
        _check_sizes(model, tokenizer, hearing, voice)
        self.model, self.tokenizer, self.hearing, self.voice, self.settings = model, tokenizer, hearing, voice, settings
        self._engine = Engine(model, classify=tokenizer.vocabulary.kind)
        self._chat = ChatFormat(tokenizer, PromptStyle(settings.system_text, settings.before_speech))
        self._sampling = {task: _sampling(settings, task) for task in Task}

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str] = NANO, *, device: str = "cpu", dtype: str = "float32", attn: str = "sdpa"
    ) -> SpeechLM:
        """Loads "nano" (in this package), a model folder, or a hub id that is in the local Hugging Face cache.

        Raises ConfigError for an unknown model or option, CheckpointError for a folder that lacks something.
        """
        place, precision = _device(device), _dtype(dtype)
        folder = find_model(model)
        settings = SpeechSettings.from_folder(folder)
        hearing = audio_tokenizer(settings.audio_tokenizer.name, folder / settings.audio_tokenizer.folder)
        voice = audio_decoder(settings.audio_decoder.name, folder / settings.audio_decoder.folder)
        tokenizer = TextTokenizer.from_folder(folder, settings.tokenizer_kind, hearing.codebook_size)
        weights = load_model(folder, dtype=precision, attn=attn).to(place)
        return cls(weights, tokenizer, hearing, voice, settings)

    def ask(
        self, question: Recording, mode: ModeSpec = "boost", *, seed: int = 0, temperature: float | None = None
    ) -> Answer:
        """Answers a spoken question aloud."""
        return collect(self.stream(question, Task.SPEECH_TO_SPEECH, mode=mode, seed=seed, temperature=temperature))

    def say(self, text: str, mode: ModeSpec = "boost", *, seed: int = 0, temperature: float | None = None) -> Answer:
        """Speaks a text."""
        return collect(self.stream(text, Task.TTS, mode=mode, seed=seed, temperature=temperature))

    def transcribe(self, speech: Recording, mode: ModeSpec = "vanilla") -> str:
        """Writes down what a recording says; by default without the blocks, which are there for speech."""
        return collect(self.stream(speech, Task.ASR, mode=mode)).text

    def chat(self, text: str, mode: ModeSpec = "vanilla", *, seed: int = 0, temperature: float | None = None) -> str:
        """Answers a written question in writing."""
        return collect(self.stream(text, Task.TEXT, mode=mode, seed=seed, temperature=temperature)).text

    def stream(
        self,
        question: Recording,
        task: Task | str = Task.SPEECH_TO_SPEECH,
        *,
        mode: ModeSpec = "boost",
        seed: int = 0,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Generator[SessionEvent, None, None]:
        """`TextDelta`s and `WaveChunk`s as they form, then one `Done`; closing the generator stops everything.

        question: a recording for the tasks that hear (speech_to_speech, asr), a text for those that read (tts, text).
        temperature: 0 is greedy; None takes the model's own sampling of this task. Times count from the first `next`,
        when the question, already read, is handed over.
        Raises AudioError for an unusable recording, ConfigError for an unknown task, mode or option.
        """
        task = _task(task)
        content = self._read(question, task)
        plan = parse_mode(mode, self.model.config.num_nextn_predict_layers)
        sampling = replace(self._sampling[task], seed=seed)
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        return self._session(content, task, plan, sampling, max_new_tokens or self.settings.max_new_tokens)

    def _session(
        self, question: Wave | str, task: Task, mode: Mode, sampling: SamplingParams, max_new_tokens: int
    ) -> Generator[SessionEvent, None, None]:
        watch = Stopwatch()
        prompt, eos_ids = self._prompt(question, task), frozenset(self.tokenizer.vocabulary.eos_ids)
        tokens = self._engine.stream(Request(prompt.ids, mode, max_new_tokens, sampling, eos_ids))
        sound = SoundStream(self.voice, self.settings.first_block_size, sampling.seed) if task in SPEAKS else None
        yield from stream_session(tokens, self.tokenizer, sound, mode.name, watch)

    def _read(self, question: Recording, task: Task) -> Wave | str:
        if task in HEARS:
            return question if isinstance(question, Wave) else read_wave(question, self.settings.max_question_seconds)
        if not isinstance(question, str) or not question.strip():
            raise ConfigError(f"the task {task.value} wants a text, got {type(question).__name__}; give some words")
        return question

    def _prompt(self, question: Wave | str, task: Task) -> Prompt:
        if isinstance(question, str):
            return self._chat.tts_prompt(question) if task is Task.TTS else self._chat.text_prompt(question)
        codes = self.hearing.encode(question).ids.tolist()
        return self._chat.asr_prompt(codes) if task is Task.ASR else self._chat.speech_to_speech_prompt(codes)


def collect(events: Iterable[SessionEvent]) -> Answer:
    """A whole answer out of its events."""
    chunks: list[WaveChunk] = []
    for event in events:
        if isinstance(event, WaveChunk):
            chunks.append(event)
        elif isinstance(event, Done):
            return Answer(event.text.strip(), join_chunks(chunks), event)
    raise ValueError("the events end without Done")


def join_chunks(chunks: Sequence[WaveChunk]) -> Wave:
    """The wave of an answer; without chunks, one without samples."""
    rate = chunks[0].sample_rate if chunks else 1
    return Wave(np.concatenate([np.zeros(0, np.float32), *(chunk.samples for chunk in chunks)]), rate)


def _check_sizes(
    model: VitaMctpForCausalLM, tokenizer: TextTokenizer, hearing: AudioTokenizer, voice: AudioDecoder
) -> None:
    if hearing.codebook_size != voice.codebook_size:
        raise CheckpointError(
            f"the audio tokenizer {hearing.name} has {hearing.codebook_size} codes and the audio decoder {voice.name} "
            f"has {voice.codebook_size}; give two that share a codebook"
        )
    if tokenizer.vocabulary.size > model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocabulary.size} ids, the model embeds {model.config.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )


def _sampling(settings: SpeechSettings, task: Task) -> SamplingParams:
    try:
        return SamplingParams(**settings.sampling.get(task, {}))
    except TypeError as error:
        raise CheckpointError(f"speech.json, sampling of {task.value}: {error}; leave it out") from None


def _task(name: Task | str) -> Task:
    try:
        return Task(name)
    except ValueError:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(task.value for task in Task)}") from None


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"unknown dtype {name!r}; known: {', '.join(known)}")
    return known[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        raise ConfigError(
            f"the device {name!r} is unknown or not there; give cpu, or cuda where doctor shows one"
        ) from None
    return device
