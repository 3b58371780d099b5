"""What each subcommand of `vita-mctp` does. Inputs and targets are checked before any weight is loaded."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, TextIO

from vita_mctp.audio import check_target, write_wave
from vita_mctp.audio.io import STDIO
from vita_mctp.checkpoints.resolve import resolve_settings
from vita_mctp.checkpoints.settings import find_model
from vita_mctp.decoding.plan import parse_mode
from vita_mctp.errors import ConfigError, OutputError
from vita_mctp.types import Done, Task, TextDelta, Wave, WaveChunk

if TYPE_CHECKING:
    from vita_mctp.answer import AnswerEvent
    from vita_mctp.speech_lm import SpeechLM


def ask(options: argparse.Namespace) -> int:
    """Question wave in, answer's text and wave out."""
    check_target(options.output)
    return _speak(options, _read_speech(options, options.question), Task.SPEECH_TO_SPEECH)


def say(options: argparse.Namespace) -> int:
    """Text in, its wave out."""
    check_target(options.output)
    return _speak(options, options.text, Task.TTS)


def transcribe(options: argparse.Namespace) -> int:
    """Speech in, its text out."""
    done, _ = _show(_events(options, _read_speech(options, options.speech), Task.ASR), options.json, sys.stdout)
    if options.json:
        write_text(sys.stdout, json.dumps(_figures(done)) + "\n")
    return 0


def demo(options: argparse.Namespace) -> int:
    """Serves the page until interrupted."""
    from vita_mctp.serving.page import build_page, launch_page

    page = build_page(load_model(options), options.model)
    write_text(sys.stdout, f"the page is at {launch_page(page, options.host, options.port)}; Ctrl-C ends it\n")
    page.block_thread()
    return 0


def doctor(options: argparse.Namespace) -> int:
    """0 when the model answers its built-in question rightly, 1 when it does not."""
    from vita_mctp.evaluation.doctor import examine

    report = examine(options.model, **_loading(options))
    write_text(sys.stdout, (json.dumps(report.as_dict()) if options.json else report.as_text()) + "\n")
    return 0 if report.healthy else 1


def train(options: argparse.Namespace) -> int:
    """Runs or resumes a stage, or every part of the nano model's making; prints the finished folder."""
    import logging
    from pathlib import Path

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.recipe == "nano" and (options.plan or options.settings):
        raise ConfigError("nano is several recipes; --plan and --set want one of them: stages/nano/stage4_sft.yaml")
    if options.recipe == "nano":
        from vita_mctp.nano.run import make_nano

        folder: Path | None = make_nano(Path(options.recipes), Path(options.out or "runs/nano"), options.processes)
    elif options.plan:
        from vita_mctp.training.plan import plan

        write_text(sys.stdout, plan(Path(options.recipe), Path(options.out or "runs"), options.settings))
        return 0
    else:
        from vita_mctp.training.stage import files_of, train_stage

        recipe = Path(options.recipe)
        out = Path(options.out or "runs")
        folder = train_stage(recipe, files_of(recipe.parent), out=out, settings=options.settings)
    if folder is None:
        raise KeyboardInterrupt
    if os.environ.get("RANK", "0") == "0":  # of several processes the first
        write_text(sys.stdout, f"{folder}\n")
    return 0


def _speak(options: argparse.Namespace, question: Wave | str, task: Task) -> int:
    """Text goes to standard output as it forms, or to standard error when the wave goes there."""
    from vita_mctp.answer import join_chunks

    stream = sys.stderr if options.output == STDIO else sys.stdout
    voice = None if options.voice_prompt is None else _read_speech(options, options.voice_prompt)
    done, chunks = _show(_events(options, question, task, voice), options.json, stream)
    write_wave(options.output, join_chunks(chunks))
    if options.json:
        write_text(stream, json.dumps(_figures(done) | {"output": options.output}) + "\n")
    else:
        write_text(stream, _figures_line(done) + "\n")
    return 0


def _read_speech(options: argparse.Namespace, source: str) -> Wave:
    parse_mode(options.mode, num_blocks=0)
    settings = resolve_settings(find_model(options.model), options.audio_tokenizer, options.audio_decoder)
    return settings.read_recording(source)


def load_model(options: argparse.Namespace) -> SpeechLM:
    """The model that the options name. Raises as `SpeechLM.from_pretrained`."""
    from vita_mctp.speech_lm import SpeechLM

    find_model(options.model)  # a download shows its progress; what follows does not
    quiet_libraries()
    return SpeechLM.from_pretrained(options.model, **_loading(options))


def quiet_libraries() -> None:
    """Standard error is for errors: transformers' bars and warnings are kept off it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `SpeechLM.from_pretrained`."""
    names = ("device", "dtype", "attn", "quantize", "audio_tokenizer", "audio_decoder")
    return {name: getattr(options, name) for name in names}


def _events(
    options: argparse.Namespace, question: Wave | str, task: Task, voice: Wave | None = None
) -> Iterator[AnswerEvent]:
    parse_mode(options.mode, num_blocks=0)
    drawing = {name: getattr(options, name) for name in ("seed", "temperature", "max_new_tokens")}
    events = load_model(options).stream(question, task, options.mode, voice_prompt=voice, **drawing)
    with closing(events):
        yield from events


def _show(events: Iterator[AnswerEvent], as_json: bool, stream: TextIO) -> tuple[Done, list[WaveChunk]]:
    """Prints events as they come; gives back the end and the sound."""
    chunks: list[WaveChunk] = []
    for event in events:
        if isinstance(event, WaveChunk):
            chunks.append(event)
        if isinstance(event, Done):
            if event.text and not as_json:
                write_text(stream, "\n")
            return event, chunks
        if as_json:
            write_text(stream, json.dumps(_event(event)) + "\n")
        elif isinstance(event, TextDelta):
            write_text(stream, event.text)
    raise AssertionError("a session ends with Done")


def _event(event: TextDelta | WaveChunk) -> dict[str, Any]:
    if isinstance(event, TextDelta):
        return {"event": "text", "text": event.text}
    size = {"samples": len(event.samples), "sample_rate": event.sample_rate}
    return {"event": "audio", "index": event.index, **size, "is_last": event.is_last}


def _figures(done: Done) -> dict[str, Any]:
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


def _figures_line(done: Done) -> str:
    times = done.timings
    figures = [f"mode {done.mode}", f"{times.tokens} tokens", f"{times.tokens_per_second:.1f} tokens/s"]
    if times.first_audio_tokens is None or times.first_sound is None or times.real_time_factor is None:
        return ", ".join([*figures, "no sound"])
    figures += [
        f"first audio tokens after {times.first_audio_tokens:.3f} s",
        f"first sound after {times.first_sound:.3f} s",
    ]
    return ", ".join([*figures, f"real-time factor {times.real_time_factor:.2f}"])


def write_text(stream: TextIO, text: str) -> None:
    """Write and flush; OutputError if that fails, BrokenPipeError if the reader left."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the flush at exit fails once more
        raise OutputError(f"cannot write the text: {error.strerror}; free some space or send it elsewhere") from None
