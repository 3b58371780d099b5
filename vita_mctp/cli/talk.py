"""`vita-mctp ask, say, transcribe, demo, doctor`. Inputs and targets are checked before any weight is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from vita_mctp.audio import check_target, write_wave
from vita_mctp.audio.io import STDIO
from vita_mctp.cli import answers_on_stdout, write, write_to
from vita_mctp.cli.options import (
    DecodingOptions,
    Json,
    ModelOptions,
    Output,
    Recording,
    VoicePrompt,
    arg,
    command,
    new_app,
    opt,
)
from vita_mctp.decoding.plan import parse_mode
from vita_mctp.types import Done, Task, TextDelta, Wave, WaveChunk

if TYPE_CHECKING:
    from vita_mctp.answer import AnswerEvent
    from vita_mctp.checkpoints.settings import SpeechSettings
    from vita_mctp.speech_lm import SpeechLM

app = new_app()


@command(app)
def ask(
    question: Recording,
    output: Output,
    decoding: DecodingOptions,
    model: ModelOptions,
    voice_prompt: VoicePrompt = None,
    as_json: Json = False,
) -> None:
    """Question wave in, answer's text and wave out."""
    _answer(Task.SPEECH_TO_SPEECH, question, output, decoding, model, voice_prompt, as_json)


@command(app)
def say(
    text: Annotated[str, arg("TEXT", "what to say")],
    output: Output,
    decoding: DecodingOptions,
    model: ModelOptions,
    voice_prompt: VoicePrompt = None,
    as_json: Json = False,
) -> None:
    """Text in, its wave out."""
    _answer(Task.TTS, text, output, decoding, model, voice_prompt, as_json)


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
    port: Annotated[int, opt("N", "port to listen on", min=1, max=65535)] = 7860,
) -> None:
    """Serves the page until interrupted."""
    from vita_mctp.serving.page import build_page, launch_page

    page = build_page(load_model(model), model.model)
    write(f"the page is at {launch_page(page, host, port)}; Ctrl-C ends it\n")
    page.block_thread()


@command(app)
def doctor(model: ModelOptions, as_json: Json = False) -> int:
    """0 when the model answers its built-in question rightly, 1 when it does not."""
    from vita_mctp.evaluation.doctor import examine

    report = examine(model.model, **model.loading)
    write((json.dumps(report.as_dict()) if as_json else report.as_text()) + "\n")
    return 0 if report.healthy else 1


def find(model: ModelOptions) -> tuple[SpeechSettings, Callable[[], SpeechLM]]:
    """The settings of the model that the options name, and how to load it. Raises as `SpeechLM.from_pretrained`."""
    from vita_mctp.checkpoints.resolve import resolve_settings
    from vita_mctp.checkpoints.settings import find_model

    settings = resolve_settings(find_model(model.model), model.audio_tokenizer, model.audio_decoder)

    def load() -> SpeechLM:
        quiet_libraries()
        from vita_mctp.speech_lm import SpeechLM

        return SpeechLM.from_pretrained(model.model, **model.loading)

    return settings, load


def load_model(model: ModelOptions) -> SpeechLM:
    """The model that the options name. Raises as `SpeechLM.from_pretrained`."""
    return find(model)[1]()


def quiet_libraries() -> None:
    """Standard error is for errors: transformers' bars and warnings are kept off it, once downloads are over."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _answer(
    task: Task,
    question: str,
    output: str,
    decoding: DecodingOptions,
    model: ModelOptions,
    voice_prompt: str | None,
    as_json: bool,
) -> None:
    """Text goes to standard output as it forms, or to standard error when the wave goes there."""
    from vita_mctp.answer import join_chunks

    check_target(output)
    parse_mode(decoding.mode, num_blocks=0)
    settings, load = find(model)
    asked = settings.read_recording(question) if task.hears else question
    voice = None if voice_prompt is None else settings.read_recording(voice_prompt)
    show: Callable[[str], None] = write if output != STDIO else lambda text: write_to(sys.stderr, text)
    done, chunks = _show(load().stream(asked, task, **asdict(decoding), voice_prompt=voice), as_json, show)
    _write_wave(output, join_chunks(chunks))
    if as_json:
        show(json.dumps(_metrics(done) | {"output": output}) + "\n")
    else:
        show(_metrics_line(done) + "\n")


def _write_wave(output: str, wave: Wave) -> None:
    if output != STDIO:
        write_wave(output, wave)
        return
    with answers_on_stdout():
        write_wave(output, wave)


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
            if as_json:
                show(json.dumps(_event(event)) + "\n")
            elif isinstance(event, TextDelta):
                show(event.text)
    raise AssertionError("an answer ends with Done")


def _event(event: TextDelta | WaveChunk) -> dict[str, Any]:
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
    metrics = [f"mode {done.mode}", f"{times.tokens} tokens", f"{times.tokens_per_second:.1f} tokens/s"]
    if times.first_audio_tokens is None or times.first_sound is None or times.real_time_factor is None:
        return ", ".join([*metrics, "no sound"])
    metrics += [
        f"first audio tokens after {times.first_audio_tokens:.3f} s",
        f"first sound after {times.first_sound:.3f} s",
    ]
    return ", ".join([*metrics, f"real-time factor {times.real_time_factor:.2f}"])
