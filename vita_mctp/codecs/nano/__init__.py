"""The nano codec, small enough to ship inside the package: one codebook of 1,000 codes at 12.5 per second.

An encoder for any voice, and a decoder to the answer voice. Runs on ONNX Runtime, without torch.

T samples, N codes, F log-mel frames, M mels, D dimensions of the quantiser, Q frequency bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnxruntime import InferenceSession

from vita_mctp.arrays import read_arrays
from vita_mctp.codecs.base import BatchDecoder
from vita_mctp.codecs.nano.config import (
    DECODER_FILE,
    ENCODER_FILE,
    LOG_MEAN,
    LOG_SCALE,
    REMEDY,
    SILENCE,
    LogMel,
    NanoCodecConfig,
    hann_window,
    mel_inverse,
    pad_to_codes,
)
from vita_mctp.codecs.nano.graphs import (
    compile_encoder,
    compile_mel_decoder,
    compile_vocoder,
    decoder_shapes,
    encoder_shapes,
)
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray, IntArray, Wave, WaveChunk

NAME = "nano"


class NanoTokenizer:
    """Any voice at any rate -> codes. 1.2 s of context on either side of a code.

    weights: of the encoder, by their names in its file.
    """

    name = NAME
    num_codebooks = 1

    def __init__(self, config: NanoCodecConfig, weights: Mapping[str, FloatArray]) -> None:
        self.config, self.features = config, LogMel(config)
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.sample_rate = config.sample_rate
        self._encoder = compile_encoder(config, weights)

    @classmethod
    def from_folder(cls, folder: Path) -> NanoTokenizer:
        """Read config.json and encoder.safetensors; CheckpointError names what is missing or does not fit."""
        config = NanoCodecConfig.load(folder)
        return cls(config, read_arrays(folder / ENCODER_FILE, encoder_shapes(config), REMEDY))

    def encode(self, wave: Wave) -> AudioCodes:
        samples = wave.samples
        if wave.sample_rate != self.sample_rate:
            import soxr

            samples = soxr.resample(samples, wave.sample_rate, self.sample_rate).astype(np.float32)
        return self.encode_frames(self.features(pad_to_codes(samples, self.config)))

    def encode_frames(self, frames: FloatArray) -> AudioCodes:
        """frames: (F, M) normalised log-mel, F a multiple of the frames of a code."""
        (reals,) = self._encoder.run(None, {"frames": frames[None]})
        codes = codes_of(reals[0], self.config.levels)
        return AudioCodes(codes, self.codebook_size, self.frame_rate, self.name)


class CausalState(NamedTuple):
    """Steps (n, C) that wait for their future, and the last inputs of the network's convolutions."""

    waiting: FloatArray
    past: tuple[FloatArray, ...]


class CausalNetwork:
    """A graph that reads each step with its next `lookahead` ones; behind the last step come steps of `silence`."""

    def __init__(self, network: InferenceSession, lookahead: int, silence: float) -> None:
        self._network, self._lookahead, self._silence = network, lookahead, silence
        (self._windows, *self._past), self._output = network.get_inputs(), network.get_outputs()[-1]

    def start(self) -> CausalState:
        steps = np.zeros((0, self._windows.shape[-1] // (self._lookahead + 1)), np.float32)
        return CausalState(steps, tuple(np.zeros((1, *each.shape[1:]), np.float32) for each in self._past))

    def __call__(
        self, steps: Sequence[FloatArray], states: Sequence[CausalState], is_last: Sequence[bool]
    ) -> list[tuple[FloatArray, FloatArray, CausalState]]:
        """Of each stream, steps (T, C) that come -> those (R, C) that are now final, what the graph makes of them, the
        next state. The graph runs once for all streams of one R."""
        known = [np.concatenate([state.waiting, new]) for state, new in zip(states, steps, strict=True)]
        ends = np.pad(known[0][:0], ((0, self._lookahead), (0, 0)), constant_values=self._silence)
        known = [np.concatenate([each, ends]) if last else each for each, last in zip(known, is_last, strict=True)]
        ready = [max(0, len(each) - self._lookahead) for each in known]
        made = [(np.zeros((0, self._output.shape[-1]), np.float32), state.past) for state in states]
        for count in {*ready} - {0}:
            rows = [row for row, steps_ready in enumerate(ready) if steps_ready == count]
            for row, result in zip(rows, self._run([known[r] for r in rows], [states[r] for r in rows]), strict=True):
                made[row] = result
        return [
            (each[:count], output, CausalState(each[count:], past))
            for each, count, (output, past) in zip(known, ready, made, strict=True)
        ]

    def _run(
        self, known: Sequence[FloatArray], states: Sequence[CausalState]
    ) -> Iterator[tuple[FloatArray, tuple[FloatArray, ...]]]:
        """What the graph makes of streams that are equally far, and what its convolutions remember then."""
        steps = np.stack(known)
        count = steps.shape[1] - self._lookahead
        windows = np.concatenate([steps[:, i : i + count] for i in range(self._lookahead + 1)], axis=2)
        before = [np.concatenate(each) for each in zip(*(state.past for state in states), strict=True)]
        names = [self._windows.name, *(each.name for each in self._past)]
        *past, made = self._network.run(None, dict(zip(names, (windows, *before), strict=True)))
        for row in range(len(known)):
            yield made[row], tuple(each[row : row + 1] for each in past)


class StreamState(NamedTuple):
    """One answer between two blocks: samples (T,) of the overlap are not complete yet.

    begun: the margin at the stream's start has been cut off.
    """

    mel: CausalState
    vocoder: CausalState
    overlap: FloatArray
    begun: bool


class NanoDecoder(BatchDecoder):
    """Codes -> the answer voice, offline or in blocks.

    weights: of mel decoder and vocoder, by their names in their file.
    """

    name = NAME
    num_codebooks = 1
    block_size = 8

    def __init__(self, config: NanoCodecConfig, weights: Mapping[str, FloatArray]) -> None:
        self.config = config
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.sample_rate = config.sample_rate
        self._mel_decoder = CausalNetwork(compile_mel_decoder(config, weights), config.decoder_lookahead, 0.0)
        self._vocoder = CausalNetwork(compile_vocoder(config, weights), config.vocoder_lookahead, SILENCE)
        self._window, self._inverse = hann_window(config.vocoder_fft), mel_inverse(config)

    @classmethod
    def from_folder(cls, folder: Path) -> NanoDecoder:
        """Read config.json and decoder.safetensors; CheckpointError names what is missing or does not fit."""
        config = NanoCodecConfig.load(folder)
        return cls(config, read_arrays(folder / DECODER_FILE, decoder_shapes(config), REMEDY))

    def start(self, seed: int = 0) -> StreamState:
        """This decoder draws nothing; `seed` is accepted and has no effect."""
        return StreamState(self._mel_decoder.start(), self._vocoder.start(), np.zeros(0, np.float32), False)

    def decode_blocks(
        self, blocks: Sequence[AudioBlock], states: Sequence[StreamState]
    ) -> list[tuple[WaveChunk, StreamState]]:
        is_last = [block.is_last for block in blocks]
        points = [self._points(np.array(block.codes, np.int64)) for block in blocks]
        mels = self._mel_decoder(points, [state.mel for state in states], is_last)
        sounds = self._vocoder([frames for _, frames, _ in mels], [state.vocoder for state in states], is_last)
        results = []
        for block, state, (_, _, mel), (frames, projected, vocoder) in zip(blocks, states, mels, sounds, strict=True):
            pieces = self._pieces(frames, projected)
            samples, overlap = self._overlap_add(pieces, state, block.is_last)
            chunk = WaveChunk(samples.clip(-1.0, 1.0), self.sample_rate, block.index, block.is_last)
            results.append((chunk, StreamState(mel, vocoder, overlap, state.begun or len(pieces) > 0)))
        return results

    def _points(self, codes: IntArray) -> FloatArray:
        return grid_points(codes, self.config.levels)

    def _pieces(self, frames: FloatArray, projected: FloatArray) -> FloatArray:
        """Windowed pieces (F, size): the energies of the frames (F, M), and what the vocoder adds (F, 3 Q)."""
        gain, real, imaginary = np.split(projected, 3, axis=1)
        energy = np.exp(frames * LOG_SCALE + LOG_MEAN) @ self._inverse
        phase = real + 1j * (imaginary + 1e-3)
        spectrum = energy * np.exp(gain.clip(-8.0, 4.0)) * phase / np.maximum(np.abs(phase), 1e-5)
        pieces = np.fft.irfft(spectrum, self.config.vocoder_fft) * self._window
        return pieces.astype(np.float32, copy=False)

    def _overlap_add(self, pieces: FloatArray, state: StreamState, is_last: bool) -> tuple[FloatArray, FloatArray]:
        """Add pieces one hop apart; half the surplus of a window is cut at either end of the stream."""
        hop, size = self.config.hop_length, self.config.vocoder_fft
        margin, done = (size - hop) // 2, len(pieces) * hop
        summed = np.zeros(done + size - hop if done else len(state.overlap), np.float32)
        for i in range(0, size, hop):
            summed[i : i + done] += pieces[:, i : i + hop].reshape(-1)
        summed /= np.square(self._window).sum() / hop
        summed[: len(state.overlap)] += state.overlap
        start = 0 if state.begun or not done else margin
        if is_last:
            done = max(len(summed) - margin, 0)
        return summed[start:done], summed[done:]


class NanoDigitsDecoder(NanoDecoder):
    """The same sound from frames of digits: each level of the quantiser is a codebook, as large as the largest."""

    name = "nano_digits"

    def __init__(self, config: NanoCodecConfig, weights: Mapping[str, FloatArray]) -> None:
        super().__init__(config, weights)
        self.num_codebooks, self.codebook_size = len(config.levels), max(config.levels)

    def _points(self, codes: IntArray) -> FloatArray:
        return super()._points(codes_of_digits(codes, self.config.levels))


def codes_of(reals: FloatArray, levels: tuple[int, ...]) -> IntArray:
    """Reals (N, D) -> the codes (N,) of the nearest grid points, as `networks.FiniteScalarQuantizer`."""
    digits = np.rint((np.tanh(reals) + 1) / 2 * (np.array(levels) - 1))
    return digits.astype(np.int64) @ _basis(levels)


def grid_points(codes: IntArray, levels: tuple[int, ...]) -> FloatArray:
    """Codes (N,) -> grid points (N, D) in [-1, 1]."""
    digits = digits_of(codes, levels)
    return (digits * (2.0 / (np.array(levels) - 1)) - 1.0).astype(np.float32)


def digits_of(codes: IntArray, levels: tuple[int, ...]) -> IntArray:
    """Codes (N,) -> (N, D), the first digit counting ones."""
    digits: IntArray = codes[:, None] // _basis(levels) % np.array(levels)
    return digits


def codes_of_digits(digits: IntArray, levels: tuple[int, ...]) -> IntArray:
    """Digits (N, D) -> codes (N,); a digit beyond its level is the greatest one of that."""
    codes: IntArray = np.minimum(digits.reshape(-1, len(levels)), np.array(levels) - 1) @ _basis(levels)
    return codes


def _basis(levels: tuple[int, ...]) -> IntArray:
    return np.cumprod((1, *levels[:-1]), dtype=np.int64)
