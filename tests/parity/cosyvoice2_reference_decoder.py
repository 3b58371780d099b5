"""CosyVoice2's decoder streamed call by call as VocalNet's scripts do, quirks included: the measure of parity.

Each call gives the flow the voice prompt and all codes so far. A call that is not the last speaks 15 codes, withholds
the frames of 3 that lack the look-ahead and the sound of 8 frames more, which the next call makes again and cross-fades
by the two halves of a Hamming window, that do not add up to one. A backlog is not caught up before the last call. Cost
grows with the answer. The reference draws its noise from generators that its language model has used before; here it
belongs to a seed.

F mel frames, M mel bands, L samples. Everything is of one stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from glm4_reference_decoder import vocode
from torch import Tensor
from torch.nn import functional

from vita_mctp.codecs.base import check_ids
from vita_mctp.codecs.cosyvoice2.decoder import BLOCK_SIZE, FRAMES_PER_CODE, CosyVoice2Decoder, CosyVoice2Flow
from vita_mctp.codecs.flow_decoder.flow import REFERENCE_STEPS, CodeWindows
from vita_mctp.codecs.flow_decoder.folder import VoicePrompt
from vita_mctp.codecs.flow_decoder.hift import SourceNoise, noise_at, phase_of
from vita_mctp.types import AudioBlock, AudioCodes, Code, Wave, WaveChunk

WITHHELD_CODES = 3
"""Last codes of a window whose frames a call that is not the last drops."""
LAST_WINDOW = 53
"""Codes of each window, while they fit, when all codes have come."""
CACHED_FRAMES = 8
_MEL_STREAM = 1 << 64


@dataclass(frozen=True)
class SeededNoise:
    """Every random number of one stream; a test gives recorded ones instead."""

    seed: int = 0

    def mel(self, bands: int, frames: int) -> Tensor:
        """(1, M, F): of every call the same, as far as it goes."""
        return noise_at(self.seed + _MEL_STREAM, bands, 0, frames, hop=1)

    def source(self, call: int, harmonics: int, samples: int) -> SourceNoise:
        """Of vocoder call number `call`."""
        return SourceNoise(phase_of(self.seed + call, harmonics), noise_at(self.seed, harmonics, call, 1, samples))


def new_mel(flow: CosyVoice2Flow, codes: Tensor, voice: VoicePrompt, noise: Tensor, is_last: bool) -> Tensor:
    """Mel (1, M, F) of the codes (1, N), N >= 1, without the frames of the last 3 unless `is_last`.

    noise: (1, M, frames of voice and codes).
    """
    every = torch.cat([voice.codes[None].to(codes), codes], 1)
    mu = flow.mean(CodeWindows(every, every))
    mu = mu if is_last else mu[:, : -WITHHELD_CODES * FRAMES_PER_CODE]
    known = voice.mel.shape[1]
    cond = functional.pad(voice.mel.to(mu), (0, mu.shape[1] - known))[None]
    speaker = flow.speaker(voice.embedding[None].to(mu))
    return flow.solve(mu, cond, speaker, noise[..., : mu.shape[1]].to(mu), steps=REFERENCE_STEPS)[..., known:]


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a call that is not the last leaves to the next one, all of CACHED_FRAMES frames."""

    mel: Tensor
    source: Tensor
    samples: Tensor


@dataclass(frozen=True, eq=False)
class ReferenceState:
    """One stream between two calls."""

    noise: SeededNoise
    codes: tuple[Code, ...] = ()
    offset: int = 0
    """Codes spoken."""
    calls: int = 0
    spoken: Spoken | None = None


class CosyVoice2ReferenceDecoder:
    """`codecs.base.AudioDecoder`, except that the samples depend on how a stream is cut."""

    name = "cosyvoice2"
    num_codebooks = 1
    block_size = BLOCK_SIZE

    def __init__(self, parts: CosyVoice2Decoder, noise: Callable[[int], SeededNoise] = SeededNoise) -> None:
        self.flow, self.hift, self.voice = parts.flow, parts.hift, parts.voice
        self.noise = noise
        self.codebook_size = self.flow.config.vocab_size
        self.frame_rate = Fraction(self.flow.config.input_frame_rate)
        self.sample_rate = self.hift.config.sampling_rate
        self.cached = CACHED_FRAMES * self.hift.hop_length
        self.window = torch.hamming_window(2 * self.cached, periodic=False, dtype=torch.float64)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        voice: str | None = None,
    ) -> CosyVoice2ReferenceDecoder:
        """As `CosyVoice2Decoder`."""
        return cls(CosyVoice2Decoder.from_folder(folder, device, dtype, voice=voice))

    def start(self, seed: int = 0) -> ReferenceState:
        return ReferenceState(self.noise(seed))

    @torch.inference_mode()
    def decode_block(self, block: AudioBlock, state: ReferenceState) -> tuple[WaveChunk, ReferenceState]:
        """Raises ConfigError for an id that is none of this codec's."""
        check_ids(block.codes, self.codebook_size, self.name)
        state = replace(state, codes=state.codes + block.codes)
        size = LAST_WINDOW if block.is_last else BLOCK_SIZE
        pieces = [self.flow.like.float()]
        while len(state.codes) - state.offset >= size:
            piece, state = self._call(state, state.offset + size)
            pieces.append(piece)
            if not block.is_last:
                break
        if block.is_last and state.codes:
            piece, state = self._call(state, None)
            pieces.append(piece)
        return WaveChunk(torch.cat(pieces).cpu().numpy(), self.sample_rate, block.index, block.is_last), state

    @torch.inference_mode()
    def decode(self, codes: AudioCodes) -> Wave:
        """The authors' script without streaming: one last call with all codes."""
        block = codes.as_block()
        check_ids(block.codes, self.codebook_size, self.name)
        samples = self.flow.like.float()
        if block.codes:
            samples, _ = self._call(replace(self.start(), codes=block.codes), None)
        return Wave(samples.cpu().numpy(), self.sample_rate)

    def _call(self, state: ReferenceState, end: int | None) -> tuple[Tensor, ReferenceState]:
        """Samples (L,) of the codes from `state.offset` up to `end`; None: to the last one, in the last call."""
        mel = self._new_frames(state, end)
        cache = mel.new_zeros(1, 0)
        if state.spoken is not None:
            mel, cache = torch.cat([state.spoken.mel, mel], -1), state.spoken.source
        harmonics, count = self.hift.m_source.harmonics, mel.shape[-1] * self.hift.hop_length
        samples, source = vocode(self.hift, mel, cache, state.noise.source(state.calls, harmonics, count))
        if state.spoken is not None:
            samples = self._fade(state.spoken.samples, samples)
        if end is None:
            return samples[0], replace(state, offset=len(state.codes), spoken=None)
        spoken = Spoken(mel[..., -CACHED_FRAMES:], source[:, -self.cached :], samples[:, -self.cached :])
        state = replace(state, offset=end - WITHHELD_CODES, calls=state.calls + 1, spoken=spoken)
        return samples[0, : -self.cached], state

    def _new_frames(self, state: ReferenceState, end: int | None) -> Tensor:
        """(1, M, F) behind those of calls before."""
        codes = torch.tensor([state.codes[:end]], device=self.flow.like.device)
        frames = self.voice.mel.shape[1] + codes.shape[1] * FRAMES_PER_CODE
        noise = state.noise.mel(self.flow.config.output_size, frames)
        mel = new_mel(self.flow, codes, self.voice, noise, is_last=end is None)
        return mel[..., state.offset * FRAMES_PER_CODE :].float()

    def _fade(self, old: Tensor, new: Tensor) -> Tensor:
        """The window's rise over the new samples, its fall over those held back, in float64 as numpy does it."""
        rise, fall = self.window.to(new.device).chunk(2)
        first = new[:, : self.cached] * rise + old * fall
        return torch.cat([first.to(new), new[:, self.cached :]], -1)
