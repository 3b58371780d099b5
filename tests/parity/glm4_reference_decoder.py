"""GLM-4-Voice's decoder streamed call by call as its released scripts do, quirks included: the measure of parity.

Each call gives the flow all codes so far, with all mel frames returned so far as known. Their faults are kept on
purpose: cross-fades whose halves add up to 1.06 to 1.08, and one frame lost at each border after the first. Cost grows
with the answer. Two things that the scripts cannot do are mended, without touching what they can: a beginning too
short to be spoken waits for more codes, and frames held back are spoken when none come.

F mel frames, M mel bands, L samples = hop_length * F. Everything is of one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.flow import REFERENCE_STEPS, CodeWindows
from vita_mctp.codecs.flow_decoder.hift import Hift, SourceNoise, starting_phase
from vita_mctp.codecs.glm4_voice.decoder import HOP_LENGTH, SAMPLE_RATE, Glm4Flow, Glm4VoiceDecoder
from vita_mctp.errors import ConfigError
from vita_mctp.types import AudioBlock, AudioCodes, Code, FloatArray, Wave, WaveChunk

REFERENCE_SEED = 42
"""The reference seeds torch's global generator with it at each call."""
OVERLAP_CODES = 5
"""Codes' worth of mel frames that one call holds back and the next one cross-fades with its own."""
CACHED_FRAMES = 1
"""Mel frames vocoded by two calls with the first one's excitation; the first one's samples of them are dropped."""

DrawNoise = Callable[[torch.Generator, int, int], SourceNoise]
"""Generator, harmonics, samples -> the random part of one vocoder call."""


def draw_noise(generator: torch.Generator, harmonics: int, samples: int) -> SourceNoise:
    """Draws for one stream as the reference does: phases, noise, then as many numbers as samples that nothing uses."""
    raw = torch.rand(1, harmonics, generator=generator) * (2 * math.pi) - math.pi
    noise = torch.randn(1, harmonics, samples, generator=generator)
    torch.randn(1, 1, samples, generator=generator)
    return SourceNoise(starting_phase(raw), noise)


def nearest_codes(num_codes: int, num_frames: int) -> Tensor:
    """(F,) the code whose state each frame starts from, as torch stretches N codes to F frames ("nearest")."""
    codes = torch.arange(num_codes, dtype=torch.float32)[None, None]
    return functional.interpolate(codes, size=num_frames, mode="nearest")[0, 0].long()


def vocode(hift: Hift, mel: Tensor, cache: Tensor, random: SourceNoise) -> tuple[Tensor, Tensor]:
    """Samples and excitation (1, L) of (1, M, T) mel; where `cache` (1, l) reaches, it replaces the excitation."""
    noise = SourceNoise(random.phase.to(mel.device), random.noise.to(mel.device))
    source, _ = hift.m_source(hift.f0_predictor(mel), noise)
    source = torch.cat([cache, source[:, cache.shape[1] :]], 1)
    return hift(mel, source), source


class ReleasedFlow:
    """The released calls of a flow, for one stream."""

    def __init__(self, flow: Glm4Flow) -> None:
        self.flow = flow

    def num_frames(self, num_codes: int) -> int:
        """Mel frames of so many codes: 441 / 64 for each, cut to a whole number.

        In float32, as released: some counts (3392, 3776) are one frame short.
        """
        seconds = torch.tensor(num_codes, dtype=torch.float32) / self.flow.config.input_frame_rate
        return int(seconds * SAMPLE_RATE / HOP_LENGTH)

    def mean(self, codes: Tensor) -> Tensor:
        """(1, N) codes -> (1, F, M), what their mel is to become on average."""
        owners = nearest_codes(codes.shape[1], self.num_frames(codes.shape[1]))
        return self.flow.mean(CodeWindows(codes, owners[None]))

    def __call__(
        self,
        codes: Tensor,
        prompt_codes: Tensor,
        prompt_mel: Tensor,
        embedding: Tensor,
        noise: Tensor,
        steps: int = REFERENCE_STEPS,
    ) -> Tensor:
        """Mel (1, M, F - f) of the new codes.

        codes: (1, n), new ones. prompt_codes: (1, p) before them. prompt_mel: (1, f, M), theirs as far as it is known.
        embedding: (1, 192) of the speaker. noise: (1, M, F) for all p + n codes.
        """
        every, known = torch.cat([prompt_codes, codes], dim=1), prompt_mel.shape[1]
        frames = self.num_frames(every.shape[1])
        if not known <= frames or not frames:
            raise ConfigError(f"got {known} known mel frames of {every.shape[1]} codes; wanted at most {frames}")
        mu = self.mean(every)
        cond = functional.pad(prompt_mel.transpose(1, 2), (0, frames - known))
        return self.flow.solve(mu, cond, self.flow.speaker(embedding), noise, steps=steps)[:, :, known:]


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a call that is not the last leaves to the next one."""

    overlap: Tensor
    """(1, M, overlap_frames) not spoken yet."""
    mel: Tensor
    """(1, M, CACHED_FRAMES) before them."""
    source: Tensor
    """(1, samples of CACHED_FRAMES): their excitation."""


@dataclass(frozen=True, eq=False)
class ReferenceState:
    """One stream between two calls; `spoken` is None until the first call."""

    codes: tuple[Code, ...]
    """Of all calls made."""
    waiting: tuple[Code, ...]
    known: Tensor
    """(1, F, M) returned by all calls made."""
    spoken: Spoken | None = None


class Glm4VoiceReferenceDecoder:
    """`codecs.base.AudioDecoder`, except that the number of samples depends on how a stream is cut."""

    name = "glm4_voice"
    num_codebooks = 1

    def __init__(self, parts: Glm4VoiceDecoder, draw_noise: DrawNoise = draw_noise) -> None:
        self.flow, self.hift, self.draw_noise = parts.flow, parts.hift, draw_noise
        self.released = ReleasedFlow(parts.flow)
        self.codebook_size = parts.codebook_size
        self.frame_rate = parts.frame_rate
        self.sample_rate: int = parts.sample_rate
        self.block_size = parts.block_size
        self.overlap_frames = int(OVERLAP_CODES / self.frame_rate * Fraction(self.sample_rate, self.hift.hop_length))
        self.window = torch.hamming_window(2 * self.overlap_frames, periodic=False, dtype=torch.float64)

    @classmethod
    def from_folder(
        cls, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Glm4VoiceReferenceDecoder:
        """`dtype` is the flow's. Raises CheckpointError for a folder that is not a whole decoder."""
        return cls(Glm4VoiceDecoder.from_folder(folder, device=device, dtype=dtype))

    def start(self, seed: int = 0) -> ReferenceState:
        """The released scripts seed each call with 42 whatever is asked, and so `seed` has no effect."""
        return ReferenceState((), (), self.flow.like.new_zeros(1, 0, self.flow.config.output_size))

    @torch.inference_mode()
    def decode_block(self, block: AudioBlock, state: ReferenceState) -> tuple[WaveChunk, ReferenceState]:
        state = replace(state, waiting=state.waiting + block.codes)
        samples = self.flow.like.new_zeros(1, 0)
        if block.is_last and state.waiting:
            samples, state = self._call(state, is_last=True)
        elif block.is_last and state.spoken is not None:
            samples = self._speak_held_back(state.spoken)
            state = replace(state, spoken=None)
        elif self._can_call(state):
            samples, state = self._call(state, is_last=False)
        return WaveChunk(_to_array(samples), self.sample_rate, block.index, block.is_last), state

    def decode(self, codes: AudioCodes) -> Wave:
        """The released script without streaming: one last call with all codes."""
        chunk, _ = self.decode_block(codes.as_block(), self.start())
        return Wave(chunk.samples, self.sample_rate)

    def _call(self, state: ReferenceState, is_last: bool) -> tuple[Tensor, ReferenceState]:
        """The released `token2wav` on the codes that wait: samples (1, L) and the next state."""
        mel, generator = self._new_frames(state)
        cache = mel.new_zeros(1, 0)
        if state.spoken is not None:
            mel = torch.cat([state.spoken.mel, self._fade(state.spoken.overlap, mel)], -1)
            cache = state.spoken.source
        spoken = None
        if is_last:
            samples, _ = self._vocode(mel, cache, generator)
        else:
            mel, overlap = mel[..., : -self.overlap_frames], mel[..., -self.overlap_frames :]
            samples, source = self._vocode(mel, cache, generator)
            again = CACHED_FRAMES * self.hift.hop_length
            spoken = Spoken(overlap, mel[..., -CACHED_FRAMES:], source[:, -again:])
            samples = samples[:, :-again]
        known = torch.cat([state.known, mel.transpose(1, 2)], 1)
        return samples, ReferenceState(state.codes + state.waiting, (), known, spoken)

    def _can_call(self, state: ReferenceState) -> bool:
        """Whether frames remain when the overlap has been held back."""
        begun = state.spoken is not None
        return bool(state.waiting) and (begun or self.released.num_frames(len(state.waiting)) > self.overlap_frames)

    def _new_frames(self, state: ReferenceState) -> tuple[Tensor, torch.Generator]:
        """The flow's (1, M, F) for the codes that wait, and the generator as the flow leaves it to the vocoder."""
        like, bands = self.flow.like, self.flow.config.output_size
        codes = torch.tensor([state.codes + state.waiting], device=like.device)
        prompt, new = codes.split([len(state.codes), len(state.waiting)], dim=1)
        generator = torch.Generator().manual_seed(REFERENCE_SEED)
        noise = torch.randn(1, bands, self.released.num_frames(codes.shape[1]), generator=generator)
        speaker = like.new_zeros(1, self.flow.config.spk_embed_dim)
        return self.released(new, prompt, state.known.to(like), speaker, noise.to(like)).float(), generator

    def _fade(self, old: Tensor, new: Tensor) -> Tensor:
        """Hamming rise of the new frames over the fall of those held back, in float64 as numpy does it."""
        rise, fall = self.window.to(new.device).chunk(2)
        first, rest = new[..., : self.overlap_frames], new[..., self.overlap_frames :]
        return torch.cat([(first * rise + old * fall).to(new), rest], -1)

    def _vocode(self, mel: Tensor, cache: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples and excitation (1, L); where `cache` reaches, it replaces the excitation's beginning."""
        drawn = self.draw_noise(generator, self.hift.m_source.harmonics, mel.shape[-1] * self.hift.hop_length)
        return vocode(self.hift, mel, cache, drawn)

    def _speak_held_back(self, spoken: Spoken) -> Tensor:
        """The released scripts never speak these frames; here they are spoken as they are."""
        mel = torch.cat([spoken.mel, spoken.overlap], -1)
        return self._vocode(mel, spoken.source, torch.Generator().manual_seed(REFERENCE_SEED))[0]


def _to_array(samples: Tensor) -> FloatArray:
    array: FloatArray = samples[0].float().cpu().numpy()
    return array
