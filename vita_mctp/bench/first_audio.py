"""`bench first-audio`: from the end of a question to the first sound, part by part (VITA-Audio paper, table 9)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vita_mctp.audio import read_wave
from vita_mctp.bench import Line, Machine, Panel, Row, Study, now
from vita_mctp.bench.models import (
    LoadedModel,
    ModelChoice,
    open_language_model,
    random_decoder,
    random_tokenizer,
    weight_bytes,
)
from vita_mctp.bench.modes import Traffic
from vita_mctp.checkpoints.opening import open_model
from vita_mctp.codecs.base import AudioChunker
from vita_mctp.codecs.glm4_voice.decoder import Glm4VoiceDecoder
from vita_mctp.codecs.glm4_voice.tokenizer import Glm4VoiceTokenizer
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.modes import Mode
from vita_mctp.decoding.request import Request
from vita_mctp.decoding.runners import runner_for
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.decoding.worker import EngineWorker
from vita_mctp.errors import ConfigError
from vita_mctp.progress import track
from vita_mctp.speech_lm import Decoding, SpeechLM
from vita_mctp.text.interleave import BOOST_RATIO, MARKERS
from vita_mctp.types import AudioCodes, Prompt, Task, TokenEvent, TokenKind, Wave, WaveChunk

_HUM_SECONDS = 3.0
PARTS = ("encoder", "prefill", "first chunk", "decoder")
TALKER_PARTS = ("encoder", "prefill", "text", "talker", "decoder")
"""Of a model that speaks by a talker (VocalNet paper, table 5)."""
QUANTILES = (50, 95, 99)

_UNITS = dict.fromkeys((*(f"p{q}" for q in QUANTILES), "mean", "least"), "ms")
_NOTES = (
    "encoder: recording to codes or features, with the prompt around them. prefill: up to the first token. "
    "first chunk: up to the codes of the first block; the paper's column of this name is both together. "
    "decoder: up to the first samples.",
    "least: bytes of weights, keys and values that prefill and first chunk have to read, over the measured bandwidth "
    "of a copy; for the encoder and the decoder, one reading of their weights.",
    "text, talker: of a model with a talker, the text that is spoken first, and its codes up to the first block; "
    "least is one reading of the talker's weights for each of its steps.",
)


class RandomSpeechLM:
    """The stages of `SpeechLM` with a random language model and GLM-4-Voice's codec at its released size.

    The first window takes one Euler step. Which tokens are codes follows the released rhythm by position: a model that
    knows nothing does not keep to it.
    """

    speaking = None

    def __init__(self, choice: ModelChoice) -> None:
        self.loaded = open_language_model(choice)
        self.model = self.loaded.model
        self.audio_frontend: Glm4VoiceTokenizer = random_tokenizer(choice.device, choice.seed)
        self._first_block = BOOST_RATIO.counts[1] - MARKERS
        decoder = random_decoder("glm4_voice", choice.device, choice.seed)
        assert isinstance(decoder, Glm4VoiceDecoder)
        windows = decoder.windows
        sizes, steps = (self._first_block, *windows.chunk_sizes), (1, *windows.steps)
        early = windows.but(chunk_sizes=sizes, steps=steps)
        self.audio_decoder = Glm4VoiceDecoder(decoder.flow, decoder.hift, early)
        self.worker = EngineWorker(Engine(runner_for(self.model), classify=lambda _: TokenKind.AUDIO))

    def hear(self, recording: Wave) -> AudioCodes:
        return self.audio_frontend.encode(recording)

    def prompt(self, question: Any) -> Prompt:
        ids = question.ids % self.model.config.vocab_size
        return Prompt(tuple(ids.tolist()), Task.SPEECH_TO_SPEECH)

    def decoding(self, *, mode: Mode, seed: int) -> Decoding:
        return Decoding(mode, SamplingParams(seed=seed), sum(BOOST_RATIO.counts))

    def generate(self, prompt: Prompt, decoding: Decoding) -> Iterator[TokenEvent]:
        return self.worker.stream(Request(prompt.ids, decoding.mode, decoding.max_new_tokens))

    def speak(self, tokens: Iterable[TokenEvent], prompt: Prompt, *, seed: int) -> Generator[WaveChunk, None, None]:
        chunker, state = AudioChunker((self._first_block,)), self.audio_decoder.start(seed)
        codes = range(BOOST_RATIO.counts[0] + 1, sum(BOOST_RATIO.counts[:2]) - 1)
        for token in tokens:
            block = chunker.push(token.id % self.audio_decoder.codebook_size) if token.index in codes else None
            if block is not None:
                chunk, state = self.audio_decoder.decode_block(block, state)
                yield chunk


def open_stages(choice: ModelChoice, question: str | None) -> tuple[SpeechLM | RandomSpeechLM, LoadedModel, Wave]:
    """What `choice` names, its language model, and the recording in this file; None: the model's own, or a hum of 3 s.

    Raises what `SpeechLM.from_pretrained` and `open_language_model` raise, AudioError for a bad recording.
    """
    if choice.random is not None:
        recording = hum() if question is None else read_wave(question)
        random = RandomSpeechLM(choice)
        return random, random.loaded, recording
    loaded = open_language_model(choice)
    speech_lm = SpeechLM.from_opened(open_model(choice.model), device=str(choice.device), model=loaded.model)
    check = speech_lm.settings.self_check
    if question is None and check is not None:
        question = check.question
    recording = hum() if question is None else speech_lm.settings.read_recording(question)
    return speech_lm, loaded, recording


def usual_modes(stages: SpeechLM | RandomSpeechLM) -> list[str]:
    """Those to compare where the user names none."""
    if isinstance(stages, RandomSpeechLM) or stages.speaking is None:
        return ["vanilla", "boost"]
    return list(dict.fromkeys((stages.modes[0], stages.modes[-1])))


@dataclass(frozen=True)
class FirstSound:
    """Seconds of the parts (PARTS or TALKER_PARTS), and the tokens until the first sound, after so long a prompt."""

    parts: tuple[float, ...]
    events: Sequence[TokenEvent]
    prompt: int


def bench_first_audio(
    stages: SpeechLM | RandomSpeechLM,
    loaded: LoadedModel,
    question: Wave,
    machine: Machine,
    *,
    modes: Sequence[Mode],
    runs: int,
    warm_up: int,
    seed: int = 0,
) -> Study:
    """Rows of each mode's parts and of their sum, whose quantiles are those of whole runs.

    loaded: the language model of the stages. warm_up: runs of each mode that are not counted.
    """
    traffic = Traffic.of(loaded)
    rows: list[Row] = []
    for mode in track(modes, "modes"):
        found = [first_sound(stages, loaded.device, question, mode, seed) for _ in range(warm_up + runs)][warm_up:]
        least = _least(stages, found[0], traffic, machine, mode)
        for index, part in enumerate(PARTS if stages.speaking is None else TALKER_PARTS):
            rows.append(_row(mode, part, [run.parts[index] for run in found], least[index]))
        rows.append(_row(mode, "sum", [sum(run.parts) for run in found], sum(least)))
    notes = (f"The question lasts {question.seconds:.2f} s.", *_NOTES)
    return Study("first-audio", "Time to the first sound", rows, _UNITS, (_panel(rows),), notes)


def first_sound(
    stages: SpeechLM | RandomSpeechLM, device: torch.device, question: Wave, mode: Mode, seed: int = 0
) -> FirstSound:
    """One question, up to the first samples of its answer.

    Raises:
        ConfigError: the answer ends without any.
    """
    start = now(device)
    prompt = stages.prompt(stages.hear(question))
    heard = now(device)
    seconds: list[float] = []
    events: list[TokenEvent] = []

    def timed() -> Iterator[TokenEvent]:
        """The tokens, with what each of them took, whatever is done between them."""
        asked = heard
        for event in stages.generate(prompt, stages.decoding(mode=mode, seed=seed)):
            seconds.append(now(device) - asked)
            events.append(event)
            yield event
            asked = now(device)

    answer = stages.speak(timed(), prompt, seed=seed)
    for event in answer:
        if isinstance(event, WaveChunk) and len(event.samples):
            spoken = now(device) - heard - sum(seconds)
            answer.close()
            return FirstSound((heard - start, *_made(stages, seconds, events), spoken), events, len(prompt.ids))
    raise ConfigError(f"the model answered {len(events)} tokens without sound; ask it another --question")


def _made(
    stages: SpeechLM | RandomSpeechLM, seconds: Sequence[float], events: Sequence[TokenEvent]
) -> tuple[float, ...]:
    """Of the tokens: the first, and the others; or the first, the other text, and the talker's codes."""
    if stages.speaking is None:
        return seconds[0], sum(seconds[1:])
    talker = sum(took for took, event in zip(seconds, events, strict=True) if event.kind is TokenKind.AUDIO)
    return seconds[0], sum(seconds[1:]) - talker, talker


def _least(
    stages: SpeechLM | RandomSpeechLM, run: FirstSound, traffic: Traffic, machine: Machine, mode: Mode
) -> tuple[float, ...]:
    speaking, events = stages.speaking, run.events
    written = events if speaking is None else [event for event in events if event.kind is not TokenKind.AUDIO]
    first, *others = (traffic.step(event.level, run.prompt + index) for index, event in enumerate(written))
    said: tuple[float, ...] = ()
    if speaking is not None:
        steps = -(-(len(events) - len(written)) // int(mode.name.partition("x")[0]))
        said = (steps * weight_bytes(speaking),)
    moved = (weight_bytes(stages.audio_frontend), first, sum(others), *said, weight_bytes(stages.audio_decoder))
    return tuple(machine.seconds(size) for size in moved)


def _row(mode: Mode, part: str, seconds: Sequence[float], least: float) -> Row:
    quantiles = {f"p{q}": 1e3 * float(np.percentile(seconds, q)) for q in QUANTILES}
    mean = 1e3 * float(np.mean(seconds))
    return {"mode": mode.name, "part": part, **quantiles, "mean": mean, "least": 1e3 * least, "runs": len(seconds)}


def _panel(rows: Sequence[Row]) -> Panel:
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    parts = dict.fromkeys(str(row["part"]) for row in rows)
    bars = [Line(part, modes, [row["p50"] for row in rows if row["part"] == part], "bars") for part in parts]
    return Panel("Time to the first sound, median", "", "ms", bars)


def hum() -> Wave:
    """A question for models that understand nothing: a low tone with noise."""
    rate = 16_000
    times = np.arange(round(_HUM_SECONDS * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(times))
    return Wave((0.3 * np.sin(2 * np.pi * 120 * times) + 0.01 * noise).astype(np.float32), rate)
