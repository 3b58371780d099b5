"""One decoder for many threads: who is decoded with whom, in which order, and what an error costs."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from ramp import RampDecoder, RampSettings

from vita_mctp.codecs.base import AudioDecoder
from vita_mctp.codecs.shared import SharedDecoder, SharedState
from vita_mctp.errors import ConfigError
from vita_mctp.types import AudioBlock, AudioCodes, WaveChunk


class Watched(RampDecoder):
    """Notes the codes of each call; a call waits for `go` once it has begun, and -1 is no code."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def decode_blocks(self, blocks: Sequence[AudioBlock], states: Sequence[object]) -> list[tuple[WaveChunk, object]]:
        self.calls.append([block.codes[0] for block in blocks])
        self.begun.set()
        self.go.wait()
        if any(-1 in block.codes for block in blocks):
            raise ConfigError("got the id -1; wanted a code; give one")
        return [self.decode_block(block, state) for block, state in zip(blocks, states, strict=True)]


def push_while_busy(decoder: Watched, shared: SharedDecoder, jobs: dict[int, SharedState]) -> dict[int, object]:
    """A block of each code, which all come while the first one is decoded; what each was given."""
    found: dict[int, object] = {}

    def push(code: int, state: SharedState) -> None:
        try:
            found[code] = shared.decode_block(AudioBlock((code,), 0, True), state)[0].samples
        except ConfigError as error:
            found[code] = error

    threads = [threading.Thread(target=push, args=job) for job in jobs.items()]
    threads[0].start()
    assert decoder.begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(shared._waiting) < len(threads) - 1:
        pass
    decoder.go.set()
    for thread in threads:
        thread.join(10)
    return found


def test_what_waits_is_decoded_in_one_call_most_urgent_first() -> None:
    decoder = Watched()
    shared = SharedDecoder(decoder, most=3)
    fresh = shared.start()
    late, later = fresh._replace(runs_dry=5.0), fresh._replace(runs_dry=9.0)
    found = push_while_busy(decoder, shared, {1: fresh, 2: later, 3: late, 4: fresh, 5: fresh})
    assert decoder.calls[0] == [1]
    assert set(decoder.calls[1][:2]) == {4, 5} and decoder.calls[1][2:] == [3]
    assert decoder.calls[2] == [2]
    alone = RampDecoder()
    for code, samples in found.items():
        wanted = alone.decode(AudioCodes(np.array([code]), alone.codebook_size, alone.frame_rate, alone.name)).samples
        np.testing.assert_array_equal(samples, wanted)


def test_an_error_is_of_the_one_whose_block_it_is() -> None:
    decoder = Watched()
    shared = SharedDecoder(decoder)
    found = push_while_busy(decoder, shared, {1: shared.start(), 2: shared.start(), -1: shared.start()})
    assert isinstance(found[-1], ConfigError)
    assert isinstance(found[1], np.ndarray) and isinstance(found[2], np.ndarray)
    with pytest.raises(ConfigError):
        shared.decode_block(AudioBlock((-1,), 0, True), shared.start())
    assert isinstance(shared, AudioDecoder)


def test_a_player_runs_dry_when_all_it_was_given_is_played() -> None:
    clock = [10.0]
    shared = SharedDecoder(RampDecoder(RampSettings(look_ahead=0)), now=lambda: clock[0])
    state = shared.start()
    assert state.runs_dry == 0
    chunk, state = shared.decode_block(AudioBlock((1, 2), 0, False), state)
    length = len(chunk.samples) / chunk.sample_rate
    assert state.runs_dry == pytest.approx(10 + length)
    chunk, state = shared.decode_block(AudioBlock((1, 2), 1, False), state)
    assert state.runs_dry == pytest.approx(10 + 2 * length)
    clock[0] = 99.0  # it ran dry, and goes on
    _, state = shared.decode_block(AudioBlock((1, 2), 2, False), state)
    assert state.runs_dry == pytest.approx(99 + length)


def test_an_interrupt_holds_up_nobody_else() -> None:
    """Ctrl-C while blocks are decoded ends the answer of that thread alone."""

    class Interrupted(Watched):
        def decode_blocks(
            self, blocks: Sequence[AudioBlock], states: Sequence[object]
        ) -> list[tuple[WaveChunk, object]]:
            found = super().decode_blocks(blocks, states)
            if blocks[0].codes == (1,):
                raise KeyboardInterrupt
            return found

    decoder = Interrupted()
    shared = SharedDecoder(decoder)
    found: dict[int, object] = {}

    def push(code: int) -> None:
        try:
            found[code] = shared.decode_block(AudioBlock((code,), 0, True), shared.start())[0].samples
        except KeyboardInterrupt as error:
            found[code] = error

    threads = [threading.Thread(target=push, args=(code,), daemon=True) for code in (1, 2)]
    threads[0].start()
    assert decoder.begun.wait(10)
    threads[1].start()
    decoder.go.set()
    for thread in threads:
        thread.join(10)
    assert isinstance(found[1], KeyboardInterrupt) and isinstance(found[2], np.ndarray)
