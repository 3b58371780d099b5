"""One audio decoder for the streams of many threads: blocks that are due at the same time are decoded in one call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from vita_mctp.codecs.base import AudioDecoder, DecoderState, decode_blocks
from vita_mctp.types import AudioBlock, AudioCodes, Wave, WaveChunk

Decoded = tuple[WaveChunk, DecoderState]


class SharedState(NamedTuple):
    """runs_dry: when a player that began with the first sound has played all of it; 0 while there is none."""

    decoder: DecoderState
    runs_dry: float = 0.0


@dataclass(eq=False)
class _Job:
    block: AudioBlock
    state: SharedState
    result: Decoded | Exception | None = None


class SharedDecoder:
    """`decoder`, safe to call from any thread. Who comes while nobody decodes does it for all that wait by then.

    First come streams without sound, then those whose player runs dry first; `most` of them in one call. So a stream
    alone waits for nobody, and a decoder that takes no batch has at least one caller at a time. now: seconds that grow.
    """

    def __init__(self, decoder: AudioDecoder, most: int = 16, now: Callable[[], float] = time.monotonic) -> None:
        self._decoder, self._most, self._now = decoder, most, now
        self.name, self.num_codebooks, self.codebook_size = decoder.name, decoder.num_codebooks, decoder.codebook_size
        self.frame_rate, self.sample_rate, self.block_size = decoder.frame_rate, decoder.sample_rate, decoder.block_size
        self._changed = threading.Condition()  # guards what follows; free while blocks are decoded
        self._waiting: list[_Job] = []
        self._busy = False

    def start(self, seed: int = 0) -> SharedState:
        return SharedState(self._decoder.start(seed))

    def decode(self, codes: AudioCodes) -> Wave:
        return self._decoder.decode(codes)

    def decode_block(self, block: AudioBlock, state: SharedState) -> tuple[WaveChunk, SharedState]:
        job = _Job(block, state)
        with self._changed:
            self._waiting.append(job)
        while job.result is None:
            self._decode_most_urgent(job)
        if isinstance(job.result, Exception):
            raise job.result
        chunk, decoded = job.result
        runs_dry = state.runs_dry
        if len(chunk.samples):
            runs_dry = max(runs_dry, self._now()) + len(chunk.samples) / chunk.sample_rate
        return chunk, SharedState(decoded, runs_dry)

    def _decode_most_urgent(self, own: _Job) -> None:
        """Until the caller's own job is done; others then take over."""
        with self._changed:
            self._changed.wait_for(lambda: own.result is not None or not self._busy)
            if own.result is not None:
                return
            self._waiting.sort(key=lambda job: job.state.runs_dry)
            jobs, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._busy = True
        results: list[Decoded | Exception] = []
        try:
            results = self._results(jobs)
        finally:  # an interrupt of this thread is its own: others' blocks wait for who comes next
            with self._changed:
                for job, result in zip(jobs, results, strict=False):
                    job.result = result
                self._waiting += [job for job in jobs if job.result is None and job is not own]
                self._busy = False
                self._changed.notify_all()

    def _results(self, jobs: list[_Job]) -> list[Decoded | Exception]:
        """Of one call; where it fails, of a call for each, so that nobody pays for another's block."""
        try:
            return [*decode_blocks(self._decoder, [job.block for job in jobs], [job.state.decoder for job in jobs])]
        except Exception as error:  # noqa: BLE001  it is raised where the block came from
            return [error] if len(jobs) == 1 else [result for job in jobs for result in self._results([job])]
