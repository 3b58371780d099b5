"""`bench first-audio`: from the end of a question to the first sound, part by part (VITA-Audio paper, table 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from vita_mctp.audio import read_wave
from vita_mctp.bench.decoder import weight_bytes
from vita_mctp.bench.machine import Machine
from vita_mctp.bench.result import Cell, Column, Panel, Study, series
from vita_mctp.bench.subjects import Subject, Wanted, open_subject, random_decoder, random_tokenizer
from vita_mctp.bench.timing import Times, now
from vita_mctp.bench.traffic import Traffic
from vita_mctp.checkpoints.settings import find_model
from vita_mctp.codecs.base import AudioChunker, AudioDecoder
from vita_mctp.codecs.glm4_voice.decoder import Glm4VoiceDecoder
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.plan import MODES, Mode
from vita_mctp.decoding.state import DecodeState, Request
from vita_mctp.errors import ConfigError
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.text.chat import ChatFormat, PromptStyle
from vita_mctp.text.interleave import BOOST_RATIO, MARKERS
from vita_mctp.types import AudioFeatures, Task, TokenEvent, TokenKind, Wave

_HUM_SECONDS = 3.0
PARTS = ("encoder", "prefill", "first chunk", "decoder")
QUANTILES = (50, 95, 99)

COLUMNS = (
    Column("mode"),
    Column("part"),
    *(Column(f"p{q}", "ms", 1) for q in QUANTILES),
    Column("mean", "ms", 1),
    Column("least", "ms", 1),
    Column("runs", digits=0),
)
_NOTES = (
    "encoder: recording to codes or features, with the prompt around them. prefill: up to the first token. "
    "first chunk: up to the codes of the first block; the paper's column of this name is both together. "
    "decoder: up to the first samples.",
    "least: bytes of weights, keys and values that prefill and first chunk have to read, over the measured bandwidth "
    "of a copy; for the encoder and the decoder, one reading of their weights.",
)


@dataclass(frozen=True)
class FirstAudioOptions:
    modes: tuple[Mode, ...] = (MODES["vanilla"], MODES["boost"])
    runs: int = 50
    warm_up: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.runs, self.warm_up) < 1:
            raise ConfigError("wanted at least one run, and one before it that is not counted")


@dataclass(frozen=True, eq=False)
class Chain:
    """Everything between a recording and its answer's sound.

    hear: the recording as a prompt, to be answered in a mode. code_of: a token's audio code, or None for another token.
    weights: bytes of what hears and of what speaks.
    """

    subject: Subject
    question: Wave
    hear: Callable[[Wave, Mode], Request]
    code_of: Callable[[TokenEvent], int | None]
    voice: AudioDecoder
    block_sizes: tuple[int, ...]
    weights: tuple[int, int]
    engine: Engine


@dataclass(frozen=True)
class FirstSound:
    """Seconds of the parts, in the order of PARTS, and the tokens until the first sound, after so long a prompt."""

    parts: tuple[float, ...]
    events: tuple[TokenEvent, ...]
    prompt: int


def chain_of(wanted: Wanted, question: str | None) -> Chain:
    """What `wanted` names, asked the recording in this file; None: the model's own question, or a hum of 3 s.

    Raises what `SpeechLM.from_pretrained` and `open_subject` raise, AudioError for a bad recording.
    """
    if wanted.random is not None:
        return random_chain(wanted, hum(_HUM_SECONDS) if question is None else read_wave(question))
    kind = None if wanted.dtype is None else str(wanted.dtype).removeprefix("torch.")
    speech_lm = SpeechLM.from_pretrained(
        wanted.model, device=str(wanted.device), dtype=kind, attn=wanted.attn, quantize=wanted.quantize
    )
    check = speech_lm.settings.self_check
    if question is None and check is not None:
        question = str(find_model(wanted.model) / check.question)
    asked = hum(_HUM_SECONDS) if question is None else speech_lm.settings.read_recording(question)
    return open_chain(speech_lm, wanted.name, asked)


def open_chain(speech_lm: SpeechLM, name: str, question: Wave) -> Chain:
    """A loaded model's own parts, used as `SpeechLM.ask` uses them."""
    settings, vocabulary, defaults = speech_lm.settings, speech_lm.tokenizer.vocabulary, speech_lm.defaults
    chat = ChatFormat(speech_lm.tokenizer, PromptStyle(settings.system_text, settings.before_speech))

    def hear(wave: Wave, mode: Mode) -> Request:
        heard = speech_lm.audio_frontend.encode(wave)
        content = heard if isinstance(heard, AudioFeatures) else chat.speech(heard.ids.tolist())
        task = Task.SPEECH_TO_SPEECH
        prompt = chat.ask(chat.turn(task, content), task, voice=None, history=())
        return Request(
            prompt.ids, mode, settings.max_new_tokens, defaults.sampling[task], defaults.eos_ids, heard=prompt.heard
        )

    def code_of(event: TokenEvent) -> int | None:
        return vocabulary.code_of(event.id) if event.kind is TokenKind.AUDIO else None

    sizes = tuple(settings.block_sizes) or (speech_lm.audio_decoder.block_size,)
    weights = (_weights(speech_lm.audio_frontend), _weights(speech_lm.audio_decoder))
    engine = Engine(speech_lm.model, classify=vocabulary.kind)
    return Chain(
        Subject(name, speech_lm.model), question, hear, code_of, speech_lm.audio_decoder, sizes, weights, engine
    )


def random_chain(wanted: Wanted, question: Wave) -> Chain:
    """GLM-4-Voice's codec at its released size around a random language model, one Euler step in the first window.

    Which tokens are codes follows the released rhythm by position: a model that knows nothing does not keep to it.
    """
    subject = open_subject(wanted)
    tokenizer = random_tokenizer(wanted.device, wanted.seed)
    first = BOOST_RATIO.counts[1] - MARKERS
    voice = _early(random_decoder("glm4_voice", wanted.device, wanted.seed), first)
    vocabulary = subject.model.config.vocab_size

    def hear(wave: Wave, mode: Mode) -> Request:
        ids = tokenizer.encode(wave).ids % vocabulary
        return Request(tuple(ids.tolist()), mode, sum(BOOST_RATIO.counts))

    def code_of(event: TokenEvent) -> int | None:
        is_code = BOOST_RATIO.counts[0] < event.index < sum(BOOST_RATIO.counts[:2]) - 1
        return event.id % voice.codebook_size if is_code else None

    weights = (weight_bytes([tokenizer.encoder]), weight_bytes([voice.flow, voice.hift]))
    return Chain(subject, question, hear, code_of, voice, (first,), weights, Engine(subject.model))


def bench_first_audio(chain: Chain, options: FirstAudioOptions, machine: Machine) -> Study:
    """Rows of each mode's parts and of their sum, whose quantiles are those of whole runs."""
    traffic = Traffic.of(chain.subject)
    rows: list[tuple[Cell, ...]] = []
    for mode in options.modes:
        for _ in range(options.warm_up):
            first_sound(chain, mode)
        runs = [first_sound(chain, mode) for _ in range(options.runs)]
        least = _least(chain, runs[0], traffic, machine)
        for place, part in enumerate(PARTS):
            rows.append(_row(mode, part, Times.of(run.parts[place] for run in runs), least[place]))
        rows.append(_row(mode, "sum", Times.of(sum(run.parts) for run in runs), sum(least)))
    question = f"The question lasts {chain.question.seconds:.2f} s."
    return Study("first-audio", "Time to the first sound", COLUMNS, tuple(rows), (_panel(rows),), (question, *_NOTES))


def first_sound(chain: Chain, mode: Mode) -> FirstSound:
    """One question, up to the first samples of its answer.

    Raises:
        ConfigError: the answer ends without any.
    """
    device = chain.engine.model.device
    start = now(device)
    request = chain.hear(chain.question, mode)
    heard = now(device)
    state = chain.engine.start(request)
    events = [*chain.engine.advance([state])]
    prefilled = now(device)
    decoding, speaking = 0.0, chain.voice.start()
    chunker = AudioChunker(chain.block_sizes)
    for event in _events(chain.engine, state, events):
        code = chain.code_of(event)
        block = None if code is None else chunker.push(code)
        if block is None:
            continue
        before = now(device)
        chunk, speaking = chain.voice.decode_block(block, speaking)
        after = now(device)
        decoding += after - before
        if len(chunk.samples):
            parts = (heard - start, prefilled - heard, after - prefilled - decoding, decoding)
            return FirstSound(parts, tuple(events), len(request.prompt_ids))
    raise ConfigError(f"{chain.subject.name} answered {len(events)} tokens without sound; ask it another question")


def _events(engine: Engine, state: DecodeState, events: list[TokenEvent]) -> Iterator[TokenEvent]:
    """The events so far, then new ones, which are also put behind those."""
    yield from events
    while state.reason is None:
        [event] = engine.advance([state])
        events.append(event)
        yield event


def _early(decoder: AudioDecoder, codes: int) -> Glm4VoiceDecoder:
    """A window of so many codes first, in one step."""
    if not isinstance(decoder, Glm4VoiceDecoder):
        raise TypeError(f"wanted a Glm4VoiceDecoder, got {type(decoder).__name__}")
    windows = decoder.windows
    sizes, steps = (codes, *windows.chunk_sizes), (1, *windows.steps)
    return Glm4VoiceDecoder(decoder.flow, decoder.hift, windows.but(chunk_sizes=list(sizes), steps=list(steps)))


def _weights(part: object) -> int:
    return weight_bytes([value for value in vars(part).values() if isinstance(value, nn.Module)])


def _least(chain: Chain, run: FirstSound, traffic: Traffic, machine: Machine) -> tuple[float, ...]:
    first, *others = (traffic.step(event.level, run.prompt + event.index) for event in run.events)
    moved = (chain.weights[0], first, sum(others), chain.weights[1])
    return tuple(machine.seconds(size) for size in moved)


def _row(mode: Mode, part: str, times: Times, least: float) -> tuple[Cell, ...]:
    quantiles = [1e3 * times.percentile(q) for q in QUANTILES]
    return (mode.name, part, *quantiles, 1e3 * times.mean, 1e3 * least, len(times.seconds))


def _panel(rows: Sequence[tuple[Cell, ...]]) -> Panel:
    modes = list(dict.fromkeys(row[0] for row in rows))
    bars = []
    for part in (*PARTS, "sum"):
        medians = [value if isinstance(value := row[2], float) else None for row in rows if row[1] == part]
        bars.append(series(part, modes, medians, "bars"))
    return Panel("Time to the first sound, median", "", "ms", tuple(bars))


def hum(seconds: float, rate: int = 16_000) -> Wave:
    """A question for models that understand nothing: a low tone with noise."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(times))
    return Wave((0.3 * np.sin(2 * np.pi * 120 * times) + 0.01 * noise).astype(np.float32), rate)
