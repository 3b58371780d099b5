"""`bench decoder`: what each chunk of a long answer costs an audio decoder, and whether its borders are heard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import process_time
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vita_mctp.bench.machine import Machine
from vita_mctp.bench.result import Column, Line, Panel, Study, series
from vita_mctp.bench.seams import Seams, measure_seams
from vita_mctp.bench.subjects import Voice
from vita_mctp.bench.timing import Times, now
from vita_mctp.codecs.base import AudioChunker, AudioDecoder, DecoderState
from vita_mctp.codecs.glm4_voice.decoder import Glm4VoiceDecoder
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray, IntArray, WaveChunk

_CHECKPOINTS = 8
"""Chunks of an answer whose arithmetic is counted."""
_QUARTER = 4


@runtime_checkable
class BatchDecoder(Protocol):
    """A decoder that takes blocks of several streams at once."""

    def decode_blocks(
        self, blocks: Sequence[AudioBlock], states: Sequence[Any]
    ) -> list[tuple[WaveChunk, DecoderState]]: ...


@dataclass(frozen=True)
class DecoderOptions:
    """seconds: of the answer. streams: how many at once, one row each.

    seam_seconds: of the answer whose borders are looked at, 0 for none.
    budget_seconds: of decoding, after which an answer is left where it is; its row says how far it came.
    """

    seconds: float = 300.0
    streams: tuple[int, ...] = (1,)
    seam_seconds: float = 16.0
    budget_seconds: float = inf
    seed: int = 0


@dataclass(frozen=True)
class ChunkCost:
    """One block of every stream. codes: of each stream before it.

    busy: seconds that the processor worked for this process, whatever else the machine did meanwhile; on a GPU, those
    of its host. least: seconds that the machine needs at least, where that was counted.
    """

    codes: int
    new_codes: int
    seconds: float
    busy: float
    samples: int
    least: float | None = None


@dataclass(frozen=True)
class Answer:
    """One answer, decoded; wanted_samples: of one stream, had it come to its end."""

    costs: tuple[ChunkCost, ...]
    streams: int
    wanted_samples: int
    finished: bool

    @property
    def samples(self) -> int:
        """Of all streams."""
        return sum(cost.samples for cost in self.costs)

    @property
    def steady(self) -> list[ChunkCost]:
        """Chunks of the repeating size; the first, smaller ones and the last cost something else."""
        size = max(cost.new_codes for cost in self.costs)
        return [cost for cost in self.costs if cost.new_codes == size] or list(self.costs)

    @property
    def counted(self) -> list[ChunkCost]:
        """Steady chunks whose arithmetic was counted."""
        return [cost for cost in self.steady if cost.least]

    @property
    def growth_of_least(self) -> float | None:
        """Of the arithmetic, from the first to the last steady chunk that was counted."""
        least = [cost.least or 0.0 for cost in self.counted]
        return least[-1] / least[0] if len(least) > 1 else None


def growth(seconds: Sequence[float]) -> float:
    """The median of the last quarter over that of the first."""
    share = max(1, len(seconds) // _QUARTER)
    return float(np.median(seconds[-share:]) / np.median(seconds[:share]))


def bench_decoder(voices: Sequence[Voice], options: DecoderOptions, machine: Machine) -> Study:
    """Every decoder at every number of streams: cost of chunks, growth over the answer, samples, and its seams."""
    rows, lines, notes = [], [], []
    for voice in voices:
        seams = voice_seams(voice, options) if options.seam_seconds > 0 else Seams()
        for streams in options.streams:
            answer = decode_answer(voice, streams, options, machine)
            rows.append(_row(voice, answer, seams))
            label = voice.name if len(options.streams) == 1 else f"{voice.name}, {streams} streams"
            lines.append(_lines(voice, label, answer))
            if not answer.finished:
                notes.append(f"{label}: left after {options.budget_seconds:.0f} s of decoding, as --budget says.")
    elapsed, busy, least = zip(*lines, strict=True)
    place = "seconds of answer before it"
    panels = (
        Panel("Time of a chunk", place, "ms", (*elapsed, *least), log=True),
        Panel("Time of a chunk in which the processor worked for it", place, "ms", (*busy, *least), log=True),
        _seam_panel(rows),
    )
    return Study("decoder", "Audio decoder, chunk by chunk", COLUMNS, tuple(rows), panels, (*notes, *_NOTES))


COLUMNS = (
    Column("decoder"),
    Column("streams", digits=0),
    Column("answer", "s", 1),
    Column("chunks", digits=0),
    Column("codes a chunk", digits=0),
    Column("p50", "ms", 1),
    Column("p95", "ms", 1),
    Column("max", "ms", 1),
    Column("growth"),
    Column("growth, busy"),
    Column("growth, least"),
    Column("computing per second of sound", "s", 3),
    Column("least", "ms", 1),
    Column("samples"),
    Column("borders", digits=0),
    Column("jump at borders", "dB"),
    Column("jump inside", "dB"),
    Column("jump offline", "dB"),
    Column("jump offline inside", "dB"),
)

_NOTES = (
    "p50, p95 and max are of the chunks of the repeating size. growth: their median in the last quarter of the answer "
    "over that in the first; busy, of the processor's time for this process alone; least, of the arithmetic, exact.",
    "least: a chunk's multiplications at the measured rate, or one reading of all weights at the measured bandwidth, "
    "whichever is longer; the median of the chunks counted.",
    "jump: mean change of the energy of 5 ms, at borders of chunks and, inside, at all other places of the same grid; "
    "offline, both of the wave decoded in one piece.",
)


def decode_answer(voice: Voice, streams: int, options: DecoderOptions, machine: Machine) -> Answer:
    """Random codes through the decoder, block by block, in as many streams."""
    count = round(options.seconds * voice.decoder.frame_rate)
    rows = np.random.default_rng(options.seed).integers(voice.decoder.codebook_size, size=(streams, count))
    blocks = [list(cut(voice, row)) for row in rows]
    counted = set(np.linspace(0, len(blocks[0]) - 1, _CHECKPOINTS, dtype=int).tolist())
    states = [voice.decoder.start(seed) for seed in range(streams)]
    costs: list[ChunkCost] = []
    codes, spent = 0, 0.0
    for place, step in enumerate(zip(*blocks, strict=True)):
        before = states
        start, worked = now(voice.device), process_time()
        chunks, states = _decode(voice.decoder, step, before)
        seconds, busy = now(voice.device) - start, process_time() - worked
        cost = ChunkCost(codes, len(step[0].codes), seconds, busy, sum(len(chunk.samples) for chunk in chunks))
        if place in counted:
            cost = replace(cost, least=_least(voice, step, before, machine))
        costs.append(cost)
        codes, spent = codes + cost.new_codes, spent + seconds
        if spent > options.budget_seconds:
            break
    wanted = int(count * voice.decoder.sample_rate / voice.decoder.frame_rate)
    return Answer(tuple(costs), streams, wanted, finished=len(costs) == len(blocks[0]))


def cut(voice: Voice, codes: IntArray) -> Iterator[AudioBlock]:
    """The codes in the voice's blocks; the last one, which may be empty, says that it is."""
    chunker = AudioChunker(voice.block_sizes)
    for code in codes.tolist():
        if block := chunker.push(code):
            yield block
    yield chunker.finish()


def voice_seams(voice: Voice, options: DecoderOptions) -> Seams:
    """Seams of one short answer, streamed and decoded in one piece with the same codes and seed."""
    decoder = voice.decoder
    count = round(options.seam_seconds * decoder.frame_rate)
    codes = np.random.default_rng(options.seed).integers(decoder.codebook_size, size=count)
    state, heard = decoder.start(), []
    for block in cut(voice, codes):
        chunk, state = decoder.decode_block(block, state)
        heard.append(chunk.samples)
    return measure_seams(heard, _in_one_piece(decoder, codes), decoder.sample_rate)


def _in_one_piece(decoder: AudioDecoder, codes: IntArray) -> FloatArray:
    """As offline. The smooth decoder's `decode` is its own stream with one block, so its windows become one."""
    if isinstance(decoder, Glm4VoiceDecoder):
        whole = decoder.windows.but(chunk_sizes=[len(codes) + decoder.windows.overlap])
        decoder = Glm4VoiceDecoder(decoder.flow, decoder.hift, whole)
    return decoder.decode(AudioCodes(codes, decoder.codebook_size, decoder.frame_rate, decoder.name)).samples


def _decode(
    decoder: AudioDecoder, blocks: Sequence[AudioBlock], states: Sequence[DecoderState]
) -> tuple[list[WaveChunk], list[DecoderState]]:
    if isinstance(decoder, BatchDecoder):
        results = decoder.decode_blocks(blocks, states)
    else:
        results = [decoder.decode_block(block, state) for block, state in zip(blocks, states, strict=True)]
    return [chunk for chunk, _ in results], [state for _, state in results]


def _least(voice: Voice, blocks: Sequence[AudioBlock], states: Sequence[DecoderState], machine: Machine) -> float:
    """Decodes the same blocks once more, to count; a state is a value, so nothing notices."""
    with FlopCounterMode(display=False) as counter:
        _decode(voice.decoder, blocks, states)
    flops = counter.get_total_flops()
    return machine.seconds(weight_bytes(voice.modules) if flops else 0, flops)


def weight_bytes(modules: Sequence[nn.Module]) -> int:
    return sum(weight.numel() * weight.element_size() for part in modules for weight in part.parameters())


def _row(voice: Voice, answer: Answer, seams: Seams) -> tuple[Any, ...]:
    steady = Times.of(cost.seconds for cost in answer.steady)
    sound = answer.samples / voice.decoder.sample_rate
    return (
        voice.name,
        answer.streams,
        sound / answer.streams,
        len(answer.costs),
        answer.steady[0].new_codes,
        1e3 * steady.median,
        1e3 * steady.percentile(95),
        1e3 * max(steady.seconds),
        growth(steady.seconds),
        growth([cost.busy for cost in answer.steady]),
        answer.growth_of_least,
        sum(cost.seconds for cost in answer.costs) / sound if sound else None,
        _median_least(answer),
        _samples(answer),
        seams.borders,
        seams.at_borders,
        seams.inside,
        seams.offline,
        seams.offline_inside,
    )


def _median_least(answer: Answer) -> float | None:
    least = [cost.least or 0.0 for cost in answer.counted]
    return 1e3 * float(np.median(least)) if least else None


def _samples(answer: Answer) -> str:
    if not answer.finished:
        return "unfinished"
    missing = answer.streams * answer.wanted_samples - answer.samples
    return "exact" if not missing else f"{abs(missing)} {'missing' if missing > 0 else 'too many'}"


def _lines(voice: Voice, label: str, answer: Answer) -> tuple[Line, Line, Line]:
    """Elapsed, busy and least milliseconds of the steady chunks."""
    rate = float(voice.decoder.frame_rate)
    xs = [cost.codes / rate for cost in answer.steady]
    counted = [cost.codes / rate for cost in answer.counted]
    return (
        series(label, xs, [1e3 * cost.seconds for cost in answer.steady]),
        series(label, xs, [1e3 * cost.busy for cost in answer.steady]),
        series(f"{label}: least", counted, [1e3 * (cost.least or 0.0) for cost in answer.counted], "limit"),
    )


def _seam_panel(rows: Sequence[tuple[Any, ...]]) -> Panel:
    names = list(dict.fromkeys(row[0] for row in rows))
    places = {column.name: place for place, column in enumerate(COLUMNS) if column.name.startswith("jump")}
    first = {name: next(row for row in rows if row[0] == name) for name in names}
    bars = [series(label, names, [first[name][place] for name in names], "bars") for label, place in places.items()]
    return Panel("Energy where chunks meet", "", "mean jump, dB", tuple(bars))
