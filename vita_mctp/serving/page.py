"""The page for recordings: ask by one, hear the answer as it streams, see its text and metrics; transcribe, read aloud.

Visitors share the engine and its steps: each answer is a stream of its own, which gradio closes when a visitor
leaves or presses Stop, and each conversation in gradio's state of that visit. The page asks for nothing outside its own
server.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vita_mctp.answer import collect, join_chunks
from vita_mctp.audio import read_wave, wav_bytes
from vita_mctp.checkpoints.opening import NANO
from vita_mctp.environment import require
from vita_mctp.errors import ConfigError, VitaError
from vita_mctp.serving.words import (
    ABOUT_NANO,
    EXAMPLES,
    INTRODUCTION,
    LATE_SOUND,
    MODE_HINT,
    SPEED_HINT,
    conversation_hint,
)
from vita_mctp.speech_lm import SpeechLM, recent_turns
from vita_mctp.types import Done, Task, TextDelta, Turn, Wave, WaveChunk

PcmArray = npt.NDArray[np.int16]
Update = tuple[Any, Any, Any, Any]
"""New values of the page's text, sound, metrics and history; `gradio.skip()` leaves one as it is."""

AT_ONCE = 2
"""Answers made at the same time; further visitors wait in a queue and see how many are before them."""
MAX_WAITING = 32
MAX_UPLOAD = "50mb"
_EMPTY: Update = ("", None, "", ())


def build_page(speech_lm: SpeechLM, model: str = NANO) -> Any:
    """The page as `gradio.Blocks`, to be mounted or launched.

    model: the name that `speech_lm` was loaded by; for "nano" the page says what can be asked and offers an example.
    Questions follow on each other if the model's settings have `max_history_turns`.
    The sound comes whole at the end where ffmpeg is missing, with which gradio streams it.
    Raises MissingExtraError without gradio.
    """
    gr = _gradio()
    streams = shutil.which("ffmpeg") is not None
    remembered = speech_lm.settings.max_history_turns

    def ask(
        question: str | None, mode: str, seed: float | None, history: tuple[Turn, ...], voice: str | None = None
    ) -> Generator[Update, None, None]:
        with _shown():
            yield from answer(speech_lm, question, mode, seed, streams, history, voice)

    def transcribe(recording: str | None) -> Generator[str, None, None]:
        with _shown():
            yield from written(speech_lm, recording)

    def say(text: str, voice: str | None = None) -> tuple[int, PcmArray] | None:
        with _shown():
            prompt = _uploaded(speech_lm, voice)
            return _pcm(collect(speech_lm.stream(text, Task.TTS, voice_prompt=prompt)).wave)

    def voice_prompt() -> Any:
        speaks_as = speech_lm.settings.voice_prompts
        return gr.Audio(label="Voice to speak in", type="filepath", buttons=[], visible=speaks_as)

    shared = {"concurrency_limit": AT_ONCE, "concurrency_id": "answers"}
    with gr.Blocks(title="vita-mctp: recordings", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        history = gr.State(())
        with gr.Tab("Ask"), gr.Row():
            with gr.Column():
                question = gr.Audio(sources=["microphone", "upload"], type="filepath", label="Question", buttons=[])
                own = speech_lm.decoding().mode.name
                hint = MODE_HINT if speech_lm.speaking is None else SPEED_HINT
                modes = [(name.capitalize(), name) for name in speech_lm.modes]
                mode = gr.Radio(modes, value=own, label="Mode", info=hint)
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="the same seed gives the same answer")
                own_voice = voice_prompt()
                with gr.Row():
                    pressed = gr.Button("Ask", variant="primary").click
                    stop = gr.Button("Stop")
                    anew = gr.Button("New conversation", visible=remembered > 0).click
                shown = gr.Button("Ask the example question", visible=model == NANO).click(
                    lambda: _example(speech_lm), None, question, api_visibility="private"
                )
            with gr.Column():
                sound = gr.Audio(
                    label="Answer", streaming=streams, autoplay=True, interactive=False, buttons=["download"]
                )
                text = gr.Textbox(label="Text", lines=2, interactive=False)
                metrics = gr.Markdown()
                gr.Markdown(conversation_hint(remembered), visible=remembered > 0)
                gr.Markdown(LATE_SOUND, visible=not streams)
        with gr.Tab("Transcribe"):
            recording = gr.Audio(sources=["microphone", "upload"], type="filepath", label="Speech", buttons=[])
            written_down = gr.Button("Transcribe", variant="primary").click
            written_down(transcribe, recording, gr.Textbox(label="Transcript"), api_name="transcribe", **shared)
        with gr.Tab("Read aloud"):
            typed = gr.Textbox(label="Text", placeholder="seven plus six is thirteen")
            reads_in = voice_prompt()
            read = gr.Button("Read aloud", variant="primary").click
            spoken = gr.Audio(label="Speech", autoplay=True, interactive=False, buttons=["download"])
            read(say, [typed, reads_in], spoken, api_name="say", **shared)
        if model == NANO:
            gr.Markdown("\n".join([ABOUT_NANO, "", *(f"- {kind}: *{asked}*" for kind, asked in EXAMPLES.items())]))
        outputs = [text, sound, metrics, history]
        wiring = (ask, [question, mode, seed, history, own_voice], outputs)
        running = [pressed(*wiring, api_name="ask", **shared), shown.then(*wiring, api_visibility="private", **shared)]
        stop.click(None, cancels=running, api_visibility="private")
        anew(lambda: _EMPTY, None, outputs, cancels=running, api_name="forget")
    page.queue(max_size=MAX_WAITING)
    return page


def answer(
    speech_lm: SpeechLM,
    question: str | None,
    mode: str,
    seed: float | None,
    streams: bool,
    history: tuple[Turn, ...] = (),
    voice: str | None = None,
) -> Generator[Update, None, None]:
    """One answer as updates of the page; closing it stops generation.

    question: path of a recording, None when there is none. streams: whether sound comes chunk by chunk, as the bytes of
    a WAV file each, or whole at the end, as (sample rate, int16 samples). history: turns of this visit so far;
    finished answers alone add to it, none for a model trained on single questions. voice: path of a recording to speak
    in.
    Raises what `SpeechLM.stream` raises.
    """
    if question is None:
        raise ConfigError("no question came; record or upload one, then press Ask")
    same, text, chunks = _gradio().skip(), "", list[WaveChunk]()
    remembered = speech_lm.settings.max_history_turns
    asked, prompt = _uploaded(speech_lm, question), _uploaded(speech_lm, voice)
    with closing(
        speech_lm.stream(asked, mode=mode, seed=int(seed or 0), history=history, voice_prompt=prompt)
    ) as events:
        yield "", None, "", same
        for event in events:
            if isinstance(event, TextDelta):
                text += event.text
                yield text, same, same, same
            elif isinstance(event, WaveChunk):
                chunks.append(event)
                if streams and len(event.samples):
                    yield same, wav_bytes(Wave(event.samples, event.sample_rate)), same, same
            elif isinstance(event, Done):
                whole = same if streams else _pcm(join_chunks(chunks))
                kept = recent_turns([*history, *event.turns], remembered) if remembered else ()
                yield event.text.strip(), whole, metrics_table(event), kept


def written(speech_lm: SpeechLM, recording: str | None) -> Generator[str, None, None]:
    """A transcript as it forms. Raises what `SpeechLM.stream` raises."""
    if recording is None:
        raise ConfigError("no recording came; record or upload one, then press Transcribe")
    text = ""
    with closing(speech_lm.stream(_uploaded(speech_lm, recording), Task.ASR)) as events:
        for event in events:
            if isinstance(event, TextDelta):
                text += event.text
                yield text.strip()


@overload
def _uploaded(speech_lm: SpeechLM, path: str) -> Wave: ...
@overload
def _uploaded(speech_lm: SpeechLM, path: str | None) -> Wave | None: ...
def _uploaded(speech_lm: SpeechLM, path: str | None) -> Wave | None:
    """A visitor's file, whose folder no error names. Raises AudioError."""
    if path is None:
        return None
    settings = speech_lm.settings
    return read_wave(Path(path).read_bytes(), settings.max_question_seconds, channel=settings.channel)


@contextmanager
def _shown() -> Iterator[None]:
    """Errors go to the visitor."""
    try:
        yield
    except VitaError as error:
        raise _gradio().Error(str(error), title="No answer", print_exception=False) from None


def _example(speech_lm: SpeechLM) -> tuple[int, PcmArray] | None:
    """The question in the model's folder."""
    check = speech_lm.settings.self_check
    return None if check is None else _pcm(read_wave(check.question))


def _pcm(wave: Wave) -> tuple[int, PcmArray] | None:
    """What gradio takes without scaling it to its peak; None for a wave without samples."""
    if not len(wave.samples):
        return None
    return wave.sample_rate, np.round(wave.samples.clip(-1, 1) * np.iinfo(np.int16).max).astype(np.int16)


def _gradio() -> Any:
    require("the page", "demo", "gradio")
    import gradio

    return gradio


def metrics_table(done: Done) -> str:
    """The metrics of an answer as a Markdown table, one in a row."""
    times = done.timings
    metrics = {
        "mode": done.mode,
        "tokens": str(times.tokens),
        "tokens/s": f"{times.tokens_per_second:.1f}",
        "first audio tokens": _number(times.first_audio_tokens, 3, " s"),
        "first sound": _number(times.first_sound, 3, " s"),
        "sound": _number(times.audio_seconds, 2, " s"),
        "real-time factor": _number(times.real_time_factor, 2),
    }
    return "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in metrics.items())])


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "none" if value is None else f"{value:.{digits}f}{unit}"
