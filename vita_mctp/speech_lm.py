"""The front door: a speech language model that hears a wave and answers with text and a wave.

Four public stages, which `SpeechLM.stream` puts together and the benches time one by one:
hear (wave -> codes or features) -> prompt (-> ids) -> generate (-> tokens) -> speak (-> text and sound).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from vita_mctp.answer import Answer, AnswerEvent, Clock, SoundStream, collect, stream_answer
from vita_mctp.audio import cut_question
from vita_mctp.audio.io import Source
from vita_mctp.cancel import Cancel
from vita_mctp.checkpoints.opening import NANO, AudioFrontend, OpenedModel, open_model
from vita_mctp.checkpoints.options import AUTO, check_device, check_dtype, parse_quantization
from vita_mctp.checkpoints.saving import push_folder, save_opened
from vita_mctp.checkpoints.speech import SpeechSettings
from vita_mctp.codecs.base import AudioDecoder, AudioTokenizer
from vita_mctp.codecs.shared import SharedDecoder
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import MODES, Mode, parse_mode
from vita_mctp.decoding.options import GenerationDefaults, GenerationOptions, sampling_of
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.decoding.worker import EngineWorker
from vita_mctp.errors import ConfigError
from vita_mctp.language_model import LanguageModel, check_codebooks, check_frontend, check_size, load_graphs
from vita_mctp.models.registry import FrameSpeaking, Speaking, SpeechModel, family_of
from vita_mctp.text.chat import PromptStyle, name_rhythm
from vita_mctp.text.spoken_form import spoken_form, untaught
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.types import (
    AudioCodes,
    AudioFeatures,
    Done,
    Heard,
    Prompt,
    Role,
    StopReason,
    Task,
    TokenEvent,
    Turn,
    Wave,
)

if TYPE_CHECKING:
    from vita_mctp.decoding.talker import TalkerOptions

Recording = Wave | Source

_log = logging.getLogger("vita_mctp")

ModeSpec = str | Sequence[int] | Mode

_KEPT_TOKENS = 1 << 15
"""Of conversations whose caches stay for their next question, all together."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated, every choice made. `SpeechLM.decoding` fills in what the user leaves open."""

    mode: Mode
    sampling: SamplingParams
    max_new_tokens: int
    talker: TalkerOptions | None = None
    """Of a model that speaks by a talker."""


class SpeechLM:
    """A language model between an audio front end and an audio decoder. Answers share its weights and nothing else."""

    def __init__(
        self,
        language_model: LanguageModel,
        tokenizer: TextTokenizer,
        audio_frontend: AudioFrontend,
        audio_decoder: AudioDecoder,
        settings: SpeechSettings,
        origin: OpenedModel | None = None,
    ) -> None:
        """origin: the folder that all of them came from, which `save_pretrained` wants."""
        check_frontend(language_model.model_type, tokenizer, audio_frontend)
        check_size(language_model.runner.vocab_size, tokenizer)
        self.language_model, self.tokenizer, self.settings = language_model, tokenizer, settings
        self.audio_frontend, self.audio_decoder, self.origin = audio_frontend, audio_decoder, origin
        self._shared_decoder = SharedDecoder(audio_decoder)  # of all answers that are made at once
        kept = _KEPT_TOKENS if settings.max_history_turns else 0
        self.worker = EngineWorker(Engine(language_model.runner, classify=tokenizer.vocabulary.kind, kept_tokens=kept))
        family, model = family_of(language_model.model_type), language_model.model
        style = PromptStyle(settings.system_text, settings.before_speech)
        self._chat = family.chat(tokenizer, style)
        self._chat_in = {
            counts: family.chat(tokenizer, replace(style, system=name_rhythm(style.system or "", counts)))
            for counts in settings.rhythms
        }
        self._speaking = None if model is None else family.speaking(model, tokenizer)
        check_codebooks(self._speaking, audio_frontend, audio_decoder)
        self.defaults = GenerationDefaults.of(
            language_model.generation,
            settings.sampling,
            tokenizer.vocabulary.eos_ids,
            language_model.runner.num_blocks,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = NANO,
        *,
        device: str = AUTO,
        dtype: str | None = None,
        attn: str = "sdpa",
        quantize: str | None = None,
        audio_tokenizer: str | None = None,
        audio_decoder: str | None = None,
    ) -> SpeechLM:
        """Loads "nano" (in this package), a model folder, or a hub id, downloaded when it is not cached.

        device: cpu, cuda, cuda:1, mps ...; auto takes a GPU where there is one that the weights fit, and the CPU for
            models as small as nano. `device` says which it is.
        dtype: float32, bfloat16, float16 or auto (as stored); None is what config.json names, float32 for nano.
        quantize: int8 or int4. Neither concerns audio front end and decoder, which compute in float32.
        audio_tokenizer, audio_decoder: folder or hub id of each, as for `open_model`.
        Raises ConfigError for an unknown model or option, CheckpointError for a folder that lacks something,
        MissingExtraError and OutOfMemoryError as `load_model`.
        """
        for parse, option in ((check_device, device), (check_dtype, dtype), (parse_quantization, quantize)):
            if option is not None:
                parse(option)  # what is wrong is said before anything is downloaded
        opened = open_model(model, audio_tokenizer, audio_decoder)
        return cls.from_opened(opened, device=device, dtype=dtype, attn=attn, quantize=quantize)

    @classmethod
    def from_opened(
        cls,
        opened: OpenedModel,
        *,
        device: str = AUTO,
        dtype: str | None = None,
        attn: str = "sdpa",
        quantize: str | None = None,
        model: SpeechModel | None = None,
    ) -> SpeechLM:
        """Loads what `open_model` found; options and errors as `from_pretrained`'s.

        What ONNX Runtime's graphs compute is loaded without torch. model: its language model, loaded already.
        """
        check_device(device)
        if device == AUTO:
            device = opened.best_device() if model is None else str(model.device)
        if model is None:
            language_model = load_graphs(opened, device=device, dtype=dtype, attn=attn, quantize=quantize)
        else:
            language_model = LanguageModel.of(model)
        if language_model is None:
            opened.config  # noqa: B018 (a damaged one is named before anything large is loaded)
        frontend, decoder = opened.load_audio_frontend(device), opened.load_audio_decoder(device)
        codes = (frontend if isinstance(frontend, AudioTokenizer) else decoder).codebook_size
        tokenizer = opened.load_tokenizer(codes)
        if language_model is None:
            model = opened.load_model(dtype=dtype, device=device, attn=attn, quantize=quantize)
            language_model = LanguageModel.of(model)
        return cls(language_model, tokenizer, frontend, decoder, opened.speech, opened)

    def __repr__(self) -> str:
        name = self.language_model.model_type if self.origin is None else self.origin.name
        return f"SpeechLM({name!r}, {self.language_model.dtype} on {self.device})"

    @property
    def device(self) -> str:
        """Where the language model computes."""
        return self.language_model.device

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a new folder that `from_pretrained` opens: weights as they are in memory, tokenizer, codecs, settings.

        The codecs of a released model stay repositories of their own. Raises OutputError for a folder that holds
        something or cannot be written, ConfigError for quantised weights.
        """
        if self.origin is None:
            raise ConfigError("this model was put together in memory; wanted one that from_pretrained opened")
        save_opened(self.origin, self.language_model.model, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload model",
    ) -> str:
        """Uploads what `save_pretrained` writes to a repository of the hub, which is made if need be; its address.

        token: None is that of `hf auth login`. Raises as `save_pretrained`, and OutputError where the hub refuses.
        """
        return push_folder(self.save_pretrained, repo_id, private=private, token=token, message=commit_message)

    @property
    def speaking(self) -> Speaking | FrameSpeaking | None:
        """How a model that only writes is spoken; None of one whose own tokens are codes."""
        return self._speaking

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of modes to choose from; `ask` takes more."""
        if self._speaking is None:
            return tuple(dict.fromkeys([*MODES, self.defaults.spoken_mode.name]))
        return tuple(f"{speed}x" for speed in range(1, self._speaking.talker.sizes.mtp_levels + 2))

    def ask(
        self,
        question: Recording,
        mode: ModeSpec | None = None,
        *,
        sample_rate: int | None = None,
        history: Sequence[Turn] = (),
        voice_prompt: Recording | None = None,
        instructions: str = "",
        transcript: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answers a spoken question aloud. transcript: whether `Answer.heard` says what was heard."""
        asked = self._read_wave(question, sample_rate)
        beside: Any = {"history": history, "voice_prompt": voice_prompt, "instructions": instructions}
        return collect(self.stream(asked, Task.SPEECH_TO_SPEECH, mode, transcript=transcript, **beside, **options))

    def say(
        self,
        text: str,
        mode: ModeSpec | None = None,
        *,
        history: Sequence[Turn] = (),
        voice_prompt: Recording | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Speaks a text. Warns where the model said something else, as far as it tells."""
        answer = collect(self.stream(text, Task.TTS, mode, history=history, voice_prompt=voice_prompt, **options))
        self.check_said(text, answer.done)
        return answer

    def check_said(self, text: str, done: Done) -> None:
        """Warns where a whole answer's words are not those of `text`, by a model that writes what it speaks."""
        whole = done.reason not in (StopReason.CANCELLED, StopReason.LENGTH)
        if whole and self.settings.spoken_words and done.text.strip() != (words := spoken_form(text)):
            _log.warning("this model said %r where %r was written", done.text.strip(), words)

    def transcribe(
        self,
        speech: Recording,
        mode: ModeSpec | None = None,
        *,
        sample_rate: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> str:
        """Writes down what a recording says."""
        return collect(self.stream(self._read_wave(speech, sample_rate), Task.ASR, mode, **options)).text

    def chat(self, text: str, mode: ModeSpec | None = None, **options: Unpack[GenerationOptions]) -> str:
        """Answers a written question in writing."""
        return collect(self.stream(text, Task.TEXT, mode, **options)).text

    def stream(
        self,
        question: Recording,
        task: Task | str = Task.SPEECH_TO_SPEECH,
        mode: ModeSpec | None = None,
        *,
        sample_rate: int | None = None,
        history: Sequence[Turn] = (),
        voice_prompt: Recording | None = None,
        instructions: str = "",
        transcript: bool = False,
        each_token: bool = False,
        cancel: Cancel | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[AnswerEvent, None, None]:
        """`TextDelta`s and `WaveChunk`s as they form, then one `Done`; closing the generator stops everything.

        cancel: stops it from any thread; `Done` then follows at once, with the turns as far as they were generated.
        question: a recording for the tasks that hear (speech_to_speech, asr), a text for those that read (tts, text).
        sample_rate: of a question given as samples.
        mode, options: None takes the checkpoint's own for this task.
        history: the turns of earlier answers, oldest first; the prompt holds the last `max_history_turns` questions of
        them with what followed. Caches of what was read may stay; answers do not depend on them.
        voice_prompt: a recording of the voice to speak in.
        instructions: a system text of the user's, which stands behind the model's own, for the tasks that answer.
        transcript: what was heard comes as `Heard` before `Done`, by a pass of its own, for a model that transcribes.
        each_token: each `TokenEvent` comes too, before the text or sound that it completes.
        Times count from the first `next`, when the question, already read, is handed over.
        Raises AudioError for a recording that is unusable or holds no speech, ConfigError for an unknown task, mode or
        option, or one that the model was not trained for; all of that at once, before anything runs.
        """
        task = _task(task)
        decoding = self.decoding(task, mode, **options)
        self.settings.check_voice(task, voice_prompt is not None)
        self.settings.check_instructions(task, instructions)
        voice = None if voice_prompt is None else self._read_wave(voice_prompt)
        earlier = recent_turns(history, self.settings.max_history_turns)
        if transcript and not task.hears:
            raise ConfigError(f"the task {task.value} hears nothing; leave the transcript out")
        if transcript:
            self._chat.turn(Task.ASR, "")  # refused here and now by a model that does not transcribe
        asked, cut = self._cut(self._read(question, task, sample_rate))
        return self._stages(asked, task, decoding, earlier, voice, instructions, cancel, cut, transcript, each_token)

    def _stages(
        self,
        question: Wave | str,
        task: Task,
        decoding: Decoding,
        history: tuple[Turn, ...],
        voice: Wave | None,
        instructions: str,
        cancel: Cancel | None,
        cut: tuple[float, float],
        transcript: bool,
        each_token: bool,
    ) -> Generator[AnswerEvent, None, None]:
        clock = Clock(cut)
        speaker = None if voice is None else self.hear(voice)
        heard = question if isinstance(question, str) else self.hear(question)
        if task.hears:
            clock.mark("heard")
        beside: Any = {"history": history, "voice": speaker, "instructions": instructions}
        prompt = self.prompt(heard, task, mode=decoding.mode, **beside)
        tokens = self.generate(prompt, decoding, cancel)
        mode, seed = decoding.mode.name, decoding.sampling.seed
        spoken = self.speak(tokens, prompt, mode=mode, seed=seed, clock=clock, cancel=cancel, each_token=each_token)
        for event in spoken:
            if transcript and isinstance(event, Done) and event.reason is not StopReason.CANCELLED:
                yield Heard(self._transcript(heard, cancel))
            yield event

    def _transcript(self, heard: str | AudioCodes | AudioFeatures, cancel: Cancel | None) -> str:
        prompt = self.prompt(heard, Task.ASR)
        return collect(self.speak(self.generate(prompt, cancel=cancel), prompt, cancel=cancel)).text

    def hear(self, recording: Recording, sample_rate: int | None = None) -> AudioCodes | AudioFeatures:
        """A recording as this model takes it in. Raises AudioError for one that is unusable or too long."""
        return self.audio_frontend.encode(self._read_wave(recording, sample_rate))

    def prompt(
        self,
        question: str | AudioCodes | AudioFeatures,
        task: Task | str = Task.SPEECH_TO_SPEECH,
        *,
        history: Sequence[Turn] = (),
        voice: AudioCodes | AudioFeatures | None = None,
        instructions: str = "",
        mode: Mode | None = None,
    ) -> Prompt:
        """The ids of a question, which is a text or what `hear` gave; history and instructions as for `stream`.

        voice: what `hear` gave for a recording of the voice to speak in. mode: what is to be asked for in its rhythm.
        Raises ConfigError for a history, a voice or instructions that the task or the model has no use of.
        """
        task = _task(task)
        self.settings.check_voice(task, voice is not None)
        self.settings.check_instructions(task, instructions)
        turn = self._chat.turn(task, question if isinstance(question, str) else self._segment(question))
        speaker = None if voice is None else self._segment(voice)
        earlier = recent_turns(history, self.settings.max_history_turns)
        chat = self._chat if mode is None else self._chat_in.get(mode.counts, self._chat)
        return replace(chat.ask(turn, task, voice=speaker, history=earlier, instructions=instructions), question=turn)

    def decoding(
        self,
        task: Task | str = Task.SPEECH_TO_SPEECH,
        mode: ModeSpec | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Decoding:
        """What the user says, and the checkpoint's own for a None. Raises ConfigError for what is out of its bounds."""
        task = _task(task)
        sampling, asked = sampling_of(self.defaults.sampling[task], options), options.get("max_new_tokens")
        limit = self.settings.max_new_tokens if asked is None else asked
        if limit < 1:
            raise ConfigError(
                f"max_new_tokens {limit} given; wanted at least 1: leave it out for the model's own limit"
            )
        blocks = self.language_model.runner.num_blocks
        if self._speaking is not None:
            from vita_mctp.decoding.talker import parse_talker_mode

            own = self.defaults.spoken_mode
            mode = own if mode is None and own.talker else mode
            named = mode.name if isinstance(mode, Mode) else mode
            talker = parse_talker_mode(named, self._speaking)
            return Decoding(parse_mode(talker.name, blocks), sampling, limit, talker)
        chosen = self.defaults.mode(task) if mode is None else parse_mode(mode, blocks)
        if chosen.talker:
            raise ConfigError(f"mode {chosen.name} is a talker's, which this model has not; wanted {', '.join(MODES)}")
        return Decoding(chosen, sampling, limit)

    def request(self, prompt: Prompt, decoding: Decoding) -> Request:
        """What the engine is asked for."""
        limit, eos_ids = decoding.max_new_tokens, self.defaults.eos_ids
        return Request(prompt.ids, decoding.mode, limit, decoding.sampling, eos_ids, heard=prompt.heard)

    def generate(
        self,
        prompt: Prompt,
        decoding: Decoding | None = None,
        cancel: Cancel | None = None,
        *,
        mode: ModeSpec | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[TokenEvent, None, None]:
        """The answer's tokens as they become final; closing the generator stops generation, as does `cancel`.

        decoding, or mode and options: how. Raises ConfigError for both, and as `decoding` does.
        """
        if decoding is not None and (options or mode is not None):
            given = ", ".join([*options, *(["mode"] if mode is not None else [])])
            raise ConfigError(f"a decoding came, and {given} beside it; give one of the two")
        chosen = decoding or self.decoding(prompt.task, mode, **options)
        request = self.request(prompt, chosen)
        if self._speaking is None or chosen.talker is None or not prompt.task.speaks:
            return self.worker.stream(request, cancel)
        from vita_mctp.decoding.speaking import speak_events

        events = self.worker.stream(replace(request, keeps_hidden=True), cancel)
        return speak_events(events, self._speaking, chosen.talker)

    def speak(
        self,
        tokens: Iterable[TokenEvent],
        prompt: Prompt,
        *,
        mode: str = "",
        seed: int = 0,
        clock: Clock | None = None,
        cancel: Cancel | None = None,
        each_token: bool = False,
    ) -> Generator[AnswerEvent, None, None]:
        """Tokens to text and sound, as they form, then one `Done`; closing the generator closes `tokens`.

        mode: its name, for `Done`. seed: of the decoder's noise. clock: started when the question was handed over.
        each_token: as for `stream`.
        """
        sound = SoundStream(self._shared_decoder, self.settings.block_sizes, seed) if prompt.task.speaks else None
        question, clock = prompt.question, clock or Clock()
        clock.prompt_tokens = len(prompt.ids)
        return stream_answer(tokens, self.tokenizer, sound, mode, clock, question, cancel, each_token)

    def _segment(self, heard: AudioCodes | AudioFeatures) -> Sequence[int] | AudioFeatures:
        """As content of a prompt."""
        return heard if isinstance(heard, AudioFeatures) else self._chat.speech(heard.ids.tolist())

    def _read(self, question: Recording, task: Task, sample_rate: int | None) -> Wave | str:
        if task.hears:
            return self._read_wave(question, sample_rate)
        if not isinstance(question, str) or not question.strip():
            came = "an empty text" if isinstance(question, str) else type(question).__name__
            raise ConfigError(f"{came} came; wanted a text, for the task {task.value}: give some words")
        if not (taught := self.settings.spoken_words):
            return question
        if not (words := spoken_form(question)):
            raise ConfigError(f"{question[:40]!r} has no words to {'say' if task.speaks else 'answer'}; give some")
        if unknown := untaught(words, taught):
            _log.warning("this model was never taught %s: what it makes of that is a guess", ", ".join(unknown))
        return words

    def _cut(self, question: Wave | str) -> tuple[Wave | str, tuple[float, float]]:
        """A recording cut to the speech in it, if the model is to hear it so, and the seconds left out on each side."""
        if isinstance(question, str) or not self.settings.cut_to_speech:
            return question, (0.0, 0.0)
        return cut_question(question)

    def _read_wave(self, recording: Recording, sample_rate: int | None = None) -> Wave:
        if not isinstance(recording, Wave):
            return self.settings.read_recording(recording, sample_rate)
        if sample_rate is not None:
            raise ConfigError(f"sample_rate {sample_rate} came with a Wave, which says its own; leave it out")
        return recording


def recent_turns(history: Sequence[Turn], questions: int) -> tuple[Turn, ...]:
    """The last so many questions of a dialogue, each with what follows it.

    Raises ConfigError for a history that a model trained on single questions (0) is given.
    """
    if history and not questions:
        raise ConfigError("this model was trained on single questions, not on dialogues; leave the history out")
    starts = [index for index, turn in enumerate(history) if turn.role is Role.USER]
    return tuple(history[starts[-questions] :] if len(starts) > questions else history)


def _task(name: Task | str) -> Task:
    try:
        return Task(name)
    except ValueError:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(task.value for task in Task)}") from None
