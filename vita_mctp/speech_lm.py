"""The library's front door: a speech language model that hears a wave and answers with text and a wave."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vita_mctp.answer import SessionEvent, SoundStream, stream_session
from vita_mctp.checkpoints.loading import load_model, read_config
from vita_mctp.checkpoints.placement import parse_device, parse_dtype
from vita_mctp.checkpoints.quantization import parse_quantization
from vita_mctp.checkpoints.resolve import resolve_settings
from vita_mctp.checkpoints.settings import NANO, SpeechSettings, find_model
from vita_mctp.codecs import registry
from vita_mctp.codecs.base import AudioDecoder, AudioFeatureExtractor, AudioTokenizer
from vita_mctp.decoding.defaults import GenerationDefaults
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import Mode, parse_mode
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.decoding.state import Request
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.vita import VitaMctpForCausalLM, VitaMctpPlusForCausalLM
from vita_mctp.text.chat import ChatFormat, PromptStyle
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.timing import Stopwatch
from vita_mctp.types import AudioFeatures, Done, Role, Task, Turn, Wave, WaveChunk

Recording = Wave | str | os.PathLike[str] | bytes
"""A wave, a path ("-" is standard input), or the bytes of a file."""

ModeSpec = str | Sequence[int] | Mode

Hearing = AudioTokenizer | AudioFeatureExtractor
"""What hears: as codes, or, for VITA-Audio-Plus, as features."""


@dataclass(frozen=True, eq=False)
class Answer:
    """A finished answer. wave: without samples when the answer has no sound."""

    text: str
    wave: Wave
    done: Done

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The question and this answer: `history=(*history, *answer.turns)` goes on from here."""
        return self.done.turns


@dataclass(frozen=True, eq=False)
class _Job:
    """A question, read and checked, and how to answer it."""

    task: Task
    question: Wave | str
    voice: Wave | None
    history: tuple[Turn, ...]
    mode: Mode
    sampling: SamplingParams
    max_new_tokens: int


class SpeechLM:
    """A language model between what hears and what speaks. Sessions share its weights and nothing else."""

    def __init__(
        self,
        model: VitaMctpForCausalLM,
        tokenizer: TextTokenizer,
        hearing: Hearing,
        voice: AudioDecoder,
        settings: SpeechSettings,
    ) -> None:
        _check_ears(model, tokenizer, hearing)
        _check_sizes(model, tokenizer, hearing, voice)
        self.model, self.tokenizer, self.hearing, self.voice, self.settings = model, tokenizer, hearing, voice, settings
        self._engine = Engine(model, classify=tokenizer.vocabulary.kind)
        self._chat = ChatFormat(tokenizer, PromptStyle(settings.system_text, settings.before_speech))
        self.defaults = GenerationDefaults.of(model, settings, tokenizer.vocabulary)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = NANO,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        attn: str = "sdpa",
        quantize: str | None = None,
        audio_tokenizer: str | None = None,
        audio_decoder: str | None = None,
    ) -> SpeechLM:
        """Loads "nano" (in this package), a model folder, or a hub id, downloaded when it is not cached.

        dtype: float32, bfloat16, float16 or auto (as stored); None is what config.json names, float32 for nano.
        quantize: int8 or int4. Neither concerns what hears and what speaks, which compute in float32.
        audio_tokenizer, audio_decoder: folder or hub id of what hears and what speaks, as for `resolve_settings`.
        Raises ConfigError for an unknown model or option, CheckpointError for a folder that lacks something,
        MissingExtraError and OutOfMemoryError as `load_model`.
        """
        place, shrink = parse_device(device), None if quantize is None else parse_quantization(quantize)
        precision = None if dtype is None else parse_dtype(dtype)
        folder = find_model(model)
        if dtype is None:
            precision = read_config(folder).dtype or torch.float32
        settings = resolve_settings(folder, audio_tokenizer, audio_decoder)
        hearing = _open_ears(settings, place)
        speaks = settings.audio_decoder
        voice = registry.audio_decoder(speaks.name, Path(speaks.folder), place, speaks.options)
        codes = hearing.codebook_size if isinstance(hearing, AudioTokenizer) else voice.codebook_size
        tokenizer = TextTokenizer.from_folder(folder, settings.tokenizer_kind, codes)
        weights = load_model(folder, dtype=precision, device=place, attn=attn, quantize=shrink)
        return cls(weights, tokenizer, hearing, voice, settings)

    def ask(
        self,
        question: Recording,
        mode: ModeSpec | None = None,
        *,
        seed: int = 0,
        temperature: float | None = None,
        history: Sequence[Turn] = (),
        voice_prompt: Recording | None = None,
    ) -> Answer:
        """Answers a spoken question aloud."""
        task, voice = Task.SPEECH_TO_SPEECH, voice_prompt
        return collect(
            self.stream(question, task, mode, seed=seed, temperature=temperature, history=history, voice_prompt=voice)
        )

    def say(
        self,
        text: str,
        mode: ModeSpec | None = None,
        *,
        seed: int = 0,
        temperature: float | None = None,
        history: Sequence[Turn] = (),
        voice_prompt: Recording | None = None,
    ) -> Answer:
        """Speaks a text."""
        task, voice = Task.TTS, voice_prompt
        return collect(
            self.stream(text, task, mode, seed=seed, temperature=temperature, history=history, voice_prompt=voice)
        )

    def transcribe(self, speech: Recording, mode: ModeSpec | None = None) -> str:
        """Writes down what a recording says."""
        return collect(self.stream(speech, Task.ASR, mode)).text

    def chat(self, text: str, mode: ModeSpec | None = None, *, seed: int = 0, temperature: float | None = None) -> str:
        """Answers a written question in writing."""
        return collect(self.stream(text, Task.TEXT, mode, seed=seed, temperature=temperature)).text

    def stream(
        self,
        question: Recording,
        task: Task | str = Task.SPEECH_TO_SPEECH,
        mode: ModeSpec | None = None,
        *,
        seed: int = 0,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        history: Sequence[Turn] = (),
        voice_prompt: Recording | None = None,
    ) -> Generator[SessionEvent, None, None]:
        """`TextDelta`s and `WaveChunk`s as they form, then one `Done`; closing the generator stops everything.

        question: a recording for the tasks that hear (speech_to_speech, asr), a text for those that read (tts, text).
        mode, temperature: None takes the checkpoint's own for this task; temperature 0 is greedy.
        history: the turns of earlier answers, oldest first; the prompt holds the last `max_history_turns` questions of
        them with what followed. Nothing is kept here between calls.
        voice_prompt: a recording of the voice to speak in.
        Times count from the first `next`, when the question, already read, is handed over.
        Raises AudioError for an unusable recording, ConfigError for an unknown task, mode or option, or one that the
        model was not trained for.
        """
        task = _task(task)
        sampling = replace(self.defaults.sampling[task], seed=seed)
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        blocks = self.model.config.num_nextn_predict_layers
        return self._session(
            _Job(
                task,
                self._read(question, task),
                self._read_voice(voice_prompt, task),
                recent_turns(history, self.settings.max_history_turns),
                self.defaults.mode(task) if mode is None else parse_mode(mode, blocks),
                sampling,
                max_new_tokens or self.settings.max_new_tokens,
            )
        )

    def _session(self, job: _Job) -> Generator[SessionEvent, None, None]:
        watch = Stopwatch()
        question = self._chat.turn(
            job.task, job.question if isinstance(job.question, str) else self._hear(job.question)
        )
        voice = None if job.voice is None else self._hear(job.voice)
        prompt = self._chat.ask(question, job.task, voice=voice, history=job.history)
        eos_ids = self.defaults.eos_ids
        request = Request(prompt.ids, job.mode, job.max_new_tokens, job.sampling, eos_ids, heard=prompt.heard)
        sound = SoundStream(self.voice, self.settings.block_sizes, job.sampling.seed) if job.task.speaks else None
        yield from stream_session(self._engine.stream(request), self.tokenizer, sound, job.mode.name, watch, question)

    def _hear(self, wave: Wave) -> Sequence[int] | AudioFeatures:
        """A recording as content of a prompt: the ids of its codes, or features."""
        heard = self.hearing.encode(wave)
        return heard if isinstance(heard, AudioFeatures) else self._chat.speech(heard.ids.tolist())

    def _read(self, question: Recording, task: Task) -> Wave | str:
        if task.hears:
            return self._read_wave(question)
        if not isinstance(question, str) or not question.strip():
            raise ConfigError(f"the task {task.value} wants a text, got {type(question).__name__}; give some words")
        return question

    def _read_voice(self, voice: Recording | None, task: Task) -> Wave | None:
        if voice is None:
            return None
        if not task.speaks:
            raise ConfigError(f"the task {task.value} makes no speech; leave the voice prompt out")
        if not self.settings.voice_prompts:
            raise ConfigError("this model has one voice and was not trained with voice prompts; leave the voice out")
        return self._read_wave(voice)

    def _read_wave(self, recording: Recording) -> Wave:
        return recording if isinstance(recording, Wave) else self.settings.read_recording(recording)


def recent_turns(history: Sequence[Turn], questions: int) -> tuple[Turn, ...]:
    """The last so many questions of a dialogue, each with what follows it.

    Raises ConfigError for a history that a model trained on single questions (0) is given.
    """
    if history and not questions:
        raise ConfigError("this model was trained on single questions, not on dialogues; leave the history out")
    starts = [place for place, turn in enumerate(history) if turn.role is Role.USER]
    return tuple(history[starts[-questions] :] if len(starts) > questions else history)


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


def _open_ears(settings: SpeechSettings, place: torch.device) -> Hearing:
    ref = settings.audio_tokenizer
    if settings.tokenizer_kind == VocabularyKind.CONTINUOUS:
        return registry.feature_extractor(ref.name, Path(ref.folder))
    return registry.audio_tokenizer(ref.name, Path(ref.folder), place)


def _check_ears(model: VitaMctpForCausalLM, tokenizer: TextTokenizer, hearing: Hearing) -> None:
    kind = tokenizer.vocabulary.input_kind
    by_features = [
        isinstance(model, VitaMctpPlusForCausalLM),
        kind is VocabularyKind.CONTINUOUS,
        isinstance(hearing, AudioFeatureExtractor),
    ]
    if len(set(by_features)) > 1:
        raise CheckpointError(
            f"a {model.config.model_type} model, a tokenizer of kind {kind.value} and {hearing.name}, which hears, do "
            "not go together: with VITA-Audio-Plus all three are for features, otherwise all are for codes"
        )


def _check_sizes(model: VitaMctpForCausalLM, tokenizer: TextTokenizer, hearing: Hearing, voice: AudioDecoder) -> None:
    if isinstance(hearing, AudioTokenizer) and hearing.codebook_size != voice.codebook_size:
        raise CheckpointError(
            f"the audio tokenizer {hearing.name} has {hearing.codebook_size} codes and the audio decoder {voice.name} "
            f"has {voice.codebook_size}; give two that share a codebook"
        )
    if tokenizer.vocabulary.size > model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocabulary.size} ids, the model embeds {model.config.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )


def _task(name: Task | str) -> Task:
    try:
        return Task(name)
    except ValueError:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(task.value for task in Task)}") from None
