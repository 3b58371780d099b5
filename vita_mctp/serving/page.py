"""The page to talk to the model: record or upload a question, hear the answer as it streams, see its text and metrics.

Visitors share the engine and its steps: each answer is a stream of its own, which gradio closes when a visitor
leaves or presses Stop, and each conversation in gradio's state of that visit. The page asks for nothing outside its own
server.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from vita_mctp.answer import join_chunks
from vita_mctp.audio import read_wave
from vita_mctp.checkpoints.opening import NANO
from vita_mctp.decoding.modes import MODES
from vita_mctp.errors import ConfigError, MissingExtraError, VitaError
from vita_mctp.serving.page_text import (
    ABOUT_NANO,
    INTRODUCTION,
    LATE_SOUND,
    MODE_HINT,
    conversation_hint,
    metrics_table,
)
from vita_mctp.speech_lm import SpeechLM, recent_turns
from vita_mctp.types import FloatArray, TextDelta, Turn, Wave, WaveChunk

PcmArray = npt.NDArray[np.int16]
Update = tuple[Any, Any, Any, Any]
"""New values of the page's text, sound, metrics and history; `gradio.skip()` leaves one as it is."""

AT_ONCE = 2
"""Answers made at the same time; further visitors wait in a queue and see how many are before them."""
MAX_WAITING = 32
MAX_UPLOAD = "50mb"
_EMPTY: Update = ("", None, "", ())


def build_page(speech_lm: SpeechLM, model: str = NANO) -> Any:
    """The page as `gradio.Blocks`, not yet launched.

    model: the name that `speech_lm` was loaded by; for "nano" the page says what can be asked and offers an example.
    Questions follow on each other if the model's settings have `max_history_turns`.
    The sound comes whole at the end where ffmpeg is missing, with which gradio streams it.
    Raises MissingExtraError without gradio.
    """
    gr = _gradio()
    streams = shutil.which("ffmpeg") is not None
    remembered = speech_lm.settings.max_history_turns

    def ask(
        question: str | None, mode: str, seed: float | None, history: tuple[Turn, ...]
    ) -> Generator[Update, None, None]:
        try:
            yield from answer(speech_lm, question, mode, seed, streams, history)
        except VitaError as error:
            raise gr.Error(str(error), title="No answer", print_exception=False) from None

    with gr.Blocks(title="vita-mctp", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        history = gr.State(())
        with gr.Row():
            with gr.Column():
                question = gr.Audio(sources=["microphone", "upload"], type="filepath", label="Question", buttons=[])
                own = speech_lm.defaults.spoken_mode.name
                modes = [(name.capitalize(), name) for name in dict.fromkeys([*MODES, own])]
                mode = gr.Radio(modes, value=own, label="Mode", info=MODE_HINT)
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="the same seed gives the same answer")
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
        if model == NANO:
            gr.Markdown(ABOUT_NANO)
        outputs = [text, sound, metrics, history]
        wiring = (ask, [question, mode, seed, history], outputs)
        shared = {"concurrency_limit": AT_ONCE, "concurrency_id": "answers"}
        running = [pressed(*wiring, api_name="ask", **shared), shown.then(*wiring, api_visibility="private", **shared)]
        stop.click(None, cancels=running, api_visibility="private")
        anew(lambda: _EMPTY, None, outputs, cancels=running, api_name="forget")
    page.queue(max_size=MAX_WAITING)
    return page


def launch_page(page: Any, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Starts to serve a page of `build_page`, gives back its address; `page.block_thread()` then serves until Ctrl-C.

    Raises ConfigError when it cannot listen there.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
        )
    except OSError:
        raise ConfigError(f"cannot listen on {host}, port {port}; give another --port or --host") from None
    return str(address)


def answer(
    speech_lm: SpeechLM,
    question: str | None,
    mode: str,
    seed: float | None,
    streams: bool,
    history: tuple[Turn, ...] = (),
) -> Generator[Update, None, None]:
    """One answer as updates of the page; closing it stops generation.

    question: path of a recording, None when there is none. streams: whether sound comes chunk by chunk, as the bytes of
    a WAV file each, or whole at the end, as (sample rate, int16 samples). history: turns of this visit so far;
    finished answers alone add to it, none for a model trained on single questions.
    Raises what `SpeechLM.stream` raises.
    """
    if question is None:
        raise ConfigError("no question came; record or upload one, then press Ask")
    same, text, chunks = _gradio().skip(), "", list[WaveChunk]()
    remembered = speech_lm.settings.max_history_turns
    with closing(speech_lm.stream(question, mode=mode, seed=int(seed or 0), history=history)) as events:
        yield "", None, "", same
        for event in events:
            if isinstance(event, TextDelta):
                text += event.text
                yield text, same, same, same
            elif isinstance(event, WaveChunk):
                chunks.append(event)
                if streams and len(event.samples):
                    yield same, _wav_bytes(event), same, same
            else:
                whole = same if streams else _pcm(join_chunks(chunks))
                kept = recent_turns([*history, *event.turns], remembered) if remembered else ()
                yield event.text.strip(), whole, metrics_table(event), kept


def _example(speech_lm: SpeechLM) -> tuple[int, PcmArray] | None:
    """The question in the model's folder."""
    check = speech_lm.settings.self_check
    return None if check is None else _pcm(read_wave(check.question))


def _wav_bytes(chunk: WaveChunk) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, _int16(chunk.samples), chunk.sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _pcm(wave: Wave) -> tuple[int, PcmArray] | None:
    """What gradio takes without scaling it to its peak; None for a wave without samples."""
    return (wave.sample_rate, _int16(wave.samples)) if len(wave.samples) else None


def _int16(samples: FloatArray) -> PcmArray:
    return np.round(samples.clip(-1, 1) * np.iinfo(np.int16).max).astype(np.int16)


def _gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise MissingExtraError('the page needs gradio; get it with: pip install "vita-mctp[demo]"') from None
    return gradio
