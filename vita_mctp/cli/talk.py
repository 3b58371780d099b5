"""`vita-mctp ask, say, transcribe, demo, doctor`. Inputs and targets are checked before any weight is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from vita_mctp.audio import check_target, write_wave
from vita_mctp.audio.io import STDIO
from vita_mctp.cancel import Cancel
from vita_mctp.cli import answers_on_stdout, leave, write, write_to
from vita_mctp.cli.options import DecodingOptions, Json, ModelOptions, arg, command, flag, new_app, opt
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.errors import AnswerError, ConfigError
from vita_mctp.types import Done, Heard, Role, StopReason, Task, TextDelta, TokenEvent, Wave, WaveChunk

if TYPE_CHECKING:
    from vita_mctp.answer import AnswerEvent
    from vita_mctp.checkpoints.speech import SpeechSettings
    from vita_mctp.speech_lm import SpeechLM

app = new_app()


_OUTPUT = 'where to write the sound, such as answer.wav (wav, flac, ogg, mp3); "-" is WAV on standard output'
_VOICE = "a recording of the voice to speak in, for models trained with such prompts (nano is not)"

Question = Annotated[str, arg("RECORDING|TEXT", 'a wav, flac, ogg or mp3 file, or "-"; with --text, words')]
Recording = Annotated[str, arg("RECORDING", 'a wav, flac, ogg or mp3 file; "-" is standard input')]
Text = Annotated[str, arg("TEXT", "what to say")]


@dataclass(frozen=True)
class SoundOptions:
    """Of an answer with sound."""

    output: Annotated[str, opt("FILE", _OUTPUT, "-o", "--output")]
    voice_prompt: Annotated[str | None, opt("FILE", _VOICE)] = None
    as_json: Json = False


@command(app)
def ask(
    question: Question,
    sound: SoundOptions,
    decoding: DecodingOptions,
    model: ModelOptions,
    show_heard: Annotated[bool, flag("--show-heard", "write down the question too, by a pass of its own")] = False,
    typed: Annotated[bool, flag("--text", "the question is typed: answered in writing, which is then spoken")] = False,
) -> None:
    """Question wave in, answer's text and wave out."""
    if typed and show_heard:
        raise ConfigError("--show-heard wants a recording, and --text says that the question is none; leave one out")
    _answer(Task.TEXT if typed else Task.SPEECH_TO_SPEECH, question, sound, decoding, model, show_heard)


@command(app)
def say(text: Text, sound: SoundOptions, decoding: DecodingOptions, model: ModelOptions) -> None:
    """Text in, its wave out."""
    _answer(Task.TTS, text, sound, decoding, model)


@command(app)
def transcribe(speech: Recording, decoding: DecodingOptions, model: ModelOptions, as_json: Json = False) -> None:
    """Speech in, its text out."""
    parse_mode(decoding.mode, num_blocks=0)
    settings, load = find(model)
    recording = settings.read_recording(speech)
    done, _ = _show(load().stream(recording, Task.ASR, **asdict(decoding)), as_json, write)
    if as_json:
        write(json.dumps(_metrics(done)) + "\n")


@command(app)
def demo(
    model: ModelOptions,
    host: Annotated[str, opt("ADDRESS", "address to listen on")] = "127.0.0.1",
    port: Annotated[int, opt("N", "port to listen on; 0 is any free one", min=0, max=65535)] = 7860,
    ssl_certificate: Annotated[str | None, opt("FILE", "PEM certificate: elsewhere, microphones need https")] = None,
    ssl_key: Annotated[str | None, opt("FILE", "PEM key of the certificate")] = None,
) -> None:
    """Serves the pages until Ctrl-C."""
    from vita_mctp.serving.demo import run_demo

    run_demo(
        load_model(model),
        model.model,
        host,
        port,
        certificate=ssl_certificate,
        key=ssl_key,
        started=lambda address: write(f"the page is at {address}; Ctrl-C ends it\n"),
    )
    leave()


@command(app)
def doctor(model: ModelOptions, as_json: Json = False) -> int:
    """0 when the model answers its built-in question rightly, 1 when it does not."""
    from vita_mctp.evaluation.doctor import as_text, examine

    report = examine(model.model, **model.loading)
    write((json.dumps(report) if as_json else as_text(report)) + "\n")
    return 0 if report["healthy"] else 1


def find(model: ModelOptions) -> tuple[SpeechSettings, Callable[[], SpeechLM]]:
    """The settings of the model that the options name, and how to load it. Raises as `SpeechLM.from_pretrained`."""
    from vita_mctp.checkpoints.opening import open_model

    opened = open_model(model.model, model.audio_tokenizer, model.audio_decoder)

    def load() -> SpeechLM:
        from vita_mctp.speech_lm import SpeechLM

        return SpeechLM.from_opened(opened, **model.placement)

    return opened.speech, load


def load_model(model: ModelOptions) -> SpeechLM:
    """The model that the options name. Raises as `SpeechLM.from_pretrained`."""
    return find(model)[1]()


def _answer(
    task: Task,
    question: str,
    sound: SoundOptions,
    decoding: DecodingOptions,
    model: ModelOptions,
    show_heard: bool = False,
) -> None:
    """Text goes to standard output as it forms, or to standard error when the wave goes there."""
    from vita_mctp.answer import join_chunks

    output, show = sound.output, write
    if output == STDIO:
        show = partial(write_to, sys.stderr)
    check_target(output)
    parse_mode(decoding.mode, num_blocks=0)
    settings, load = find(model)
    asked = settings.read_recording(question) if task.hears else question
    voice = None if sound.voice_prompt is None else settings.read_recording(sound.voice_prompt)
    speech_lm = load()
    if task is Task.TEXT:
        events = _typed(speech_lm, question, decoding, voice)
    else:
        events = speech_lm.stream(asked, task, **asdict(decoding), voice_prompt=voice, transcript=show_heard)
    done, chunks = _show(events, sound.as_json, show)
    if task is Task.TTS:
        speech_lm.check_said(question, done)
    wave = join_chunks(chunks)
    if not wave.samples.size:
        raise AnswerError(_no_sound(done))
    with answers_on_stdout() if output == STDIO else nullcontext():
        write_wave(output, wave)
    if sound.as_json:
        show(json.dumps(_metrics(done) | {"device": speech_lm.device, "output": output}) + "\n")
    else:
        show(f"{_metrics_line(done)}, on {speech_lm.device}\n")


def _typed(speech_lm: SpeechLM, question: str, decoding: DecodingOptions, voice: Wave | None) -> Iterator[AnswerEvent]:
    """A typed question's answer, in writing and then aloud."""
    from vita_mctp.conversation.items import Item
    from vita_mctp.conversation.reply import ModelReplies, ReplyOptions

    options = ReplyOptions(**asdict(decoding), voice=voice)
    return ModelReplies(speech_lm).reply([Item(Role.USER, question)], options, Cancel())


def _no_sound(done: Done) -> str:
    why = f"{done.timings.tokens} tokens of text alone"
    if done.reason is StopReason.LENGTH:
        return f"the answer was cut off before its first sound, after {why}; give more --max-new-tokens"
    return (
        f"the answer came without sound: {why}; wanted speech: ask otherwise, or in another --mode; nothing is written"
    )


def _show(events: Iterator[AnswerEvent], as_json: bool, show: Callable[[str], None]) -> tuple[Done, list[WaveChunk]]:
    """Prints events as they come; gives back the end and the sound."""
    chunks: list[WaveChunk] = []
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, WaveChunk):
                chunks.append(event)
            if isinstance(event, Done):
                if event.text and not as_json:
                    show("\n")
                return event, chunks
            if as_json and not isinstance(event, TokenEvent):
                show(json.dumps(_event(event)) + "\n")
            elif isinstance(event, TextDelta):
                show(event.text)
            elif isinstance(event, Heard):
                show(f"\nheard: {event.text}")
    raise AssertionError("an answer ends with Done")


def _event(event: TextDelta | WaveChunk | Heard) -> dict[str, Any]:
    if isinstance(event, Heard):
        return {"event": "heard", "text": event.text}
    if isinstance(event, TextDelta):
        return {"event": "text", "text": event.text}
    size = {"samples": len(event.samples), "sample_rate": event.sample_rate}
    return {"event": "audio", "index": event.index, **size, "is_last": event.is_last}


def _metrics(done: Done) -> dict[str, Any]:
    times = done.timings
    return {
        "event": "done",
        "reason": done.reason.value,
        "mode": done.mode,
        "text": done.text,
        "cut_seconds": times.cut,
        "tokens": times.tokens,
        "tokens_per_second": times.tokens_per_second,
        "first_text_seconds": times.first_text,
        "first_audio_tokens_seconds": times.first_audio_tokens,
        "first_sound_seconds": times.first_sound,
        "total_seconds": times.total,
        "audio_seconds": times.audio_seconds,
        "real_time_factor": times.real_time_factor,
    }


def _metrics_line(done: Done) -> str:
    times = done.timings
    assert times.first_audio_tokens is not None and times.first_sound is not None, "an answer with sound is shown"
    metrics = [
        f"mode {done.mode}",
        f"{times.tokens} tokens",
        f"{times.tokens_per_second:.1f} tokens/s",
        f"first audio tokens after {times.first_audio_tokens:.3f} s",
        f"first sound after {times.first_sound:.3f} s",
    ]
    return ", ".join([*metrics, f"real-time factor {times.real_time_factor:.2f}"])
