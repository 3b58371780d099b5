"""`bench decoder`: what each chunk of a long answer costs an audio decoder, and whether its borders are heard.

Legend: T samples, N positions in a wave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from time import process_time

import numpy as np
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from vita_mctp.bench import Cell, Line, Machine, Panel, Row, Study, now
from vita_mctp.bench.models import LoadedDecoder, weight_bytes
from vita_mctp.codecs.base import AudioChunker, AudioDecoder, DecoderState, decode_blocks
from vita_mctp.codecs.flow_decoder.windows import WindowedDecoder
from vita_mctp.progress import track
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray, IntArray

_JUMPS = ("jump at borders", "jump inside", "jump offline", "jump offline inside")
NO_SEAMS: Row = {"borders": 0} | dict.fromkeys(_JUMPS)
_UNITS = {"answer": "s", "computing per second of sound": "s"} | dict.fromkeys(_JUMPS, "dB")
_UNITS |= dict.fromkeys(("p50", "p95", "max", "least"), "ms")
_NOTES = (
    "p50, p95 and max are of the chunks of the repeating size. growth: their median in the last quarter of the answer "
    "over that in the first; busy, of the processor's time for this process alone; least, of the arithmetic, exact.",
    "least: a chunk's multiplications at the measured rate, or one reading of all weights at the measured bandwidth, "
    "whichever is longer; the median of the chunks counted.",
    "jump: mean change of the energy of 5 ms, at borders of chunks and, inside, everywhere else on the same grid; "
    "offline, both of the wave decoded in one piece.",
)

_COUNTED_CHUNKS = 8
"""Of an answer, those whose arithmetic is counted."""
WINDOW_SECONDS = 0.005
_SILENCE = 1e-9
"""Power added to both sides, about -90 dB, below which a change is not heard."""

Positions = NDArray[np.int64]


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
class DecodedAnswer:
    """What decoding one answer took; full_samples: of one stream, had it come to its end."""

    costs: Sequence[ChunkCost]
    streams: int
    full_samples: int
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
    def counted(self) -> list[tuple[int, float]]:
        """Codes before, and least seconds, of the steady chunks whose arithmetic was counted."""
        return [(cost.codes, cost.least) for cost in self.steady if cost.least]


def bench_decoder(
    decoders: Sequence[LoadedDecoder],
    machine: Machine,
    *,
    seconds: float,
    streams: Sequence[int] = (1,),
    seam_seconds: float = 0.0,
    budget: float = inf,
    seed: int = 0,
) -> Study:
    """Every decoder at every number of streams: cost of chunks, growth over the answer, samples, and its seams.

    seconds: of the answer. streams: how many at once, one row each. seam_seconds: of the answer whose borders are
    looked at, 0 for none. budget: seconds of decoding, after which an answer is left where it is.
    """
    rows: list[Row] = []
    lines, notes = [], []
    for loaded in decoders:
        seams = find_seams(loaded, seam_seconds, seed) if seam_seconds > 0 else NO_SEAMS
        for count in track(streams, loaded.name):
            answer = decode_answer(loaded, count, machine, seconds=seconds, budget=budget, seed=seed)
            rows.append(_row(loaded, answer, seams))
            label = loaded.name if len(streams) == 1 else f"{loaded.name}, {count} streams"
            lines.append(_lines(loaded, label, answer))
            if not answer.finished:
                notes.append(f"{label}: left after {budget:.0f} s of decoding, as --budget says.")
    elapsed, busy, least = zip(*lines, strict=True)
    before = "seconds of answer before it"
    panels = (
        Panel("Time of a chunk", before, "ms", (*elapsed, *least), log=True),
        Panel("Time of a chunk in which the processor worked for it", before, "ms", (*busy, *least), log=True),
        _seam_panel(rows),
    )
    return Study("decoder", "Audio decoder, chunk by chunk", rows, _UNITS, panels, (*notes, *_NOTES))


def decode_answer(
    loaded: LoadedDecoder, streams: int, machine: Machine, *, seconds: float, budget: float = inf, seed: int = 0
) -> DecodedAnswer:
    """Random codes through the decoder, block by block, in as many streams."""
    decoder = loaded.decoder
    count = round(seconds * decoder.frame_rate)
    codes = np.random.default_rng(seed).integers(decoder.codebook_size, size=(streams, count))
    steps = list(zip(*(cut(loaded, row) for row in codes), strict=True))
    counted = set(np.linspace(0, len(steps) - 1, _COUNTED_CHUNKS, dtype=int).tolist())
    states = [decoder.start(stream) for stream in range(streams)]
    costs: list[ChunkCost] = []
    for index, blocks in enumerate(steps):
        before = states
        start, worked = now(loaded.device), process_time()
        results = decode_blocks(decoder, blocks, before)
        took, busy = now(loaded.device) - start, process_time() - worked
        least = _least(decoder, blocks, before, machine) if index in counted else None
        seen = sum(cost.new_codes for cost in costs)
        states = [state for _, state in results]
        samples = sum(len(chunk.samples) for chunk, _ in results)
        costs.append(ChunkCost(seen, len(blocks[0].codes), took, busy, samples, least))
        if sum(cost.seconds for cost in costs) > budget:
            break
    full = int(count * decoder.sample_rate / decoder.frame_rate)
    return DecodedAnswer(costs, streams, full, finished=len(costs) == len(steps))


def cut(loaded: LoadedDecoder, codes: IntArray) -> Iterator[AudioBlock]:
    """The codes in the decoder's blocks; the last one, which may be empty, says that it is."""
    chunker = AudioChunker(loaded.block_sizes)
    for code in codes.tolist():
        if block := chunker.push(code):
            yield block
    yield chunker.finish()


def growth(seconds: Sequence[float]) -> float:
    """The median of the last quarter over that of the first."""
    quarter = max(1, len(seconds) // 4)
    return float(np.median(seconds[-quarter:]) / np.median(seconds[:quarter]))


def find_seams(loaded: LoadedDecoder, seconds: float, seed: int = 0) -> Row:
    """Seams of one short answer, streamed and decoded in one piece with the same codes and seed."""
    decoder = loaded.decoder
    codes = np.random.default_rng(seed).integers(decoder.codebook_size, size=round(seconds * decoder.frame_rate))
    state, chunks = decoder.start(), []
    for block in cut(loaded, codes):
        chunk, state = decoder.decode_block(block, state)
        chunks.append(chunk.samples)
    return measure_seams(chunks, _in_one_piece(decoder, codes), decoder.sample_rate)


def measure_seams(chunks: list[FloatArray], offline: FloatArray, sample_rate: int) -> Row:
    """Borders of a wave that came in `chunks`, and its mean jumps in dB; None where there is no position to look at.

    Inside is the widest grid that all borders lie on, since a decoder's frames may jump by themselves; offline are
    the same positions of the wave decoded in one piece.
    """
    width = round(WINDOW_SECONDS * sample_rate)
    wave = np.concatenate([np.zeros(0, np.float32), *chunks])
    ends = np.cumsum([len(chunk) for chunk in chunks if len(chunk)])
    borders = _within(ends[:-1].astype(np.int64), len(wave), width)
    if not len(borders):
        return NO_SEAMS
    grid = np.arange(0, len(wave), int(np.gcd.reduce(borders)), dtype=np.int64)
    elsewhere = grid[np.abs(grid[:, None] - borders).min(1) > 2 * width]
    jumps = (
        _mean(energy_jumps(samples, _within(positions, len(samples), width), width))
        for samples in (wave, offline)
        for positions in (borders, elsewhere)
    )
    return {"borders": len(borders)} | dict(zip(_JUMPS, jumps, strict=True))


def energy_jumps(samples: FloatArray, positions: Positions, width: int) -> NDArray[np.float64]:
    """|dB| (N,) between the power of the `width` samples (of T) behind each position and that of those before it."""
    power = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    after, before = power[positions + width] - power[positions], power[positions] - power[positions - width]
    return np.abs(10 * np.log10((after / width + _SILENCE) / (before / width + _SILENCE)))


def _within(positions: Positions, length: int, width: int) -> Positions:
    return positions[(positions >= width) & (positions + width <= length)]


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _in_one_piece(decoder: AudioDecoder, codes: IntArray) -> FloatArray:
    """As offline. The smooth decoder's `decode` is its own stream with one block, so its windows become one."""
    if isinstance(decoder, WindowedDecoder):
        whole = decoder.windows.but(chunk_sizes=[len(codes) + decoder.windows.overlap])
        decoder = decoder.in_windows(whole)
    return decoder.decode(AudioCodes(codes, decoder.codebook_size, decoder.frame_rate, decoder.name)).samples


def _least(
    decoder: AudioDecoder, blocks: Sequence[AudioBlock], states: Sequence[DecoderState], machine: Machine
) -> float:
    """Decodes the same blocks once more, to count; a state is a value, so nothing notices."""
    with FlopCounterMode(display=False) as counter:
        decode_blocks(decoder, blocks, states)
    flops = counter.get_total_flops()
    return machine.seconds(weight_bytes(decoder) if flops else 0, flops)


def _row(loaded: LoadedDecoder, answer: DecodedAnswer, seams: Row) -> Row:
    times = [cost.seconds for cost in answer.steady]
    least = [seconds for _, seconds in answer.counted]
    sound = answer.samples / loaded.decoder.sample_rate
    p50, p95, longest = (1e3 * float(value) for value in np.percentile(times, (50, 95, 100)))
    row: dict[str, Cell] = {
        "decoder": loaded.name,
        "streams": answer.streams,
        "answer": sound / answer.streams,
        "chunks": len(answer.costs),
        "codes a chunk": answer.steady[0].new_codes,
        "p50": p50,
        "p95": p95,
        "max": longest,
        "growth": growth(times),
        "growth, busy": growth([cost.busy for cost in answer.steady]),
        "growth, least": least[-1] / least[0] if len(least) > 1 else None,
        "computing per second of sound": sum(cost.seconds for cost in answer.costs) / sound if sound else None,
        "least": 1e3 * float(np.median(least)) if least else None,
        "samples": _samples(answer),
    }
    return {**row, **seams}


def _samples(answer: DecodedAnswer) -> str:
    if not answer.finished:
        return "unfinished"
    missing = answer.streams * answer.full_samples - answer.samples
    return "exact" if not missing else f"{abs(missing)} {'missing' if missing > 0 else 'too many'}"


def _lines(loaded: LoadedDecoder, label: str, answer: DecodedAnswer) -> tuple[Line, Line, Line]:
    """Elapsed, busy and least milliseconds of the steady chunks, by seconds of the answer before them."""
    rate = float(loaded.decoder.frame_rate)
    xs = [cost.codes / rate for cost in answer.steady]
    counted = answer.counted
    return (
        Line(label, xs, [1e3 * cost.seconds for cost in answer.steady]),
        Line(label, xs, [1e3 * cost.busy for cost in answer.steady]),
        Line(f"{label}: least", [codes / rate for codes, _ in counted], [1e3 * each for _, each in counted], "limit"),
    )


def _seam_panel(rows: Sequence[Row]) -> Panel:
    """Of each decoder; its rows have the same seams."""
    first = {row["decoder"]: row for row in reversed(rows)}
    names = list(dict.fromkeys(row["decoder"] for row in rows))
    bars = [Line(jump, names, [first[name][jump] for name in names], "bars") for jump in _JUMPS]
    return Panel("Energy where chunks meet", "", "mean jump, dB", bars)
