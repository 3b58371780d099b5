"""The page to talk to the model: record or upload a question, hear the answer as it streams, see its text and metrics.

Visitors share the engine and its steps: each answer is a stream of its own, which gradio closes when a visitor
leaves or presses Stop, and each conversation in gradio's state of that visit. The page asks for nothing outside its own
server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from vita_mctp.answer import join_chunks
from vita_mctp.audio import read_wave, wav_bytes
from vita_mctp.checkpoints.opening import NANO
from vita_mctp.environment import require
from vita_mctp.errors import ConfigError, VitaError
from vita_mctp.speech_lm import SpeechLM, recent_turns
from vita_mctp.types import Done, TextDelta, Turn, Wave, WaveChunk

PcmArray = npt.NDArray[np.int16]
Update = tuple[Any, Any, Any, Any]
"""New values of the page's text, sound, metrics and history; `gradio.skip()` leaves one as it is."""

AT_ONCE = 2
"""Answers made at the same time; further visitors wait in a queue and see how many are before them."""
MAX_WAITING = 32
MAX_UPLOAD = "50mb"
_EMPTY: Update = ("", None, "", ())


INTRODUCTION = """# Ask aloud, hear the answer
Record a question or upload one (wav, flac, ogg or mp3), press **Ask**, and hear the answer while it is being made.
"""

EXAMPLES = {
    "addition": "how much is seven plus six",
    "subtraction": "please take three from nine",
    "weekdays": "what day comes after monday",
    "months": "which month comes before march",
    "seasons": "what season is july in",
    "opposites": "what is the opposite of hot",
    "colors": "what color is the sky",
    "capitals": "what is the capital of france",
    "animals": "how many legs has a spider",
    "counting": "count from three to eight",
    "talk": "what is your name",
}
"""One question of each kind that the nano model knows."""

ABOUT_NANO = (
    """
This is **nano**, a model of a few megabytes that knows one small world and nothing else. It learned from synthetic
voices alone: a real voice, a noisy room or a question of another kind will often be misheard, and it then answers
something wrong without noticing. It was trained on single questions: each is answered by itself, without those before
it. It can be asked:

"""
    + "\n".join(f"- {kind}: *{question}*" for kind, question in EXAMPLES.items())
    + "\n"
)

MODE_HINT = (
    "Vanilla: the backbone makes every token. Turbo: after each of its tokens the MCTP blocks make ten more. "
    "Balance and Boost lie between. Verified: the blocks draft, the backbone checks, the answer is Vanilla's."
)

LATE_SOUND = "*ffmpeg is not installed here, so the sound comes whole, at the end of the answer.*"


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
                own = speech_lm.decoding().mode.name
                modes = [(name.capitalize(), name) for name in speech_lm.modes]
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
                    yield same, wav_bytes(Wave(event.samples, event.sample_rate)), same, same
            else:
                whole = same if streams else _pcm(join_chunks(chunks))
                kept = recent_turns([*history, *event.turns], remembered) if remembered else ()
                yield event.text.strip(), whole, metrics_table(event), kept


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


def conversation_hint(questions: int) -> str:
    """Says how much of a conversation the model is given."""
    earlier = "the last question and its answer" if questions == 1 else f"the last {questions} questions and answers"
    return f"*With each question the model is given {earlier} of this visit, until **New conversation**.*"


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
