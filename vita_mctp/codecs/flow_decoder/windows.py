"""Codes -> wave in windows of bounded length, for one stream or many at once.

A window holds the codes to be spoken next and `context` codes before them, whose mel is given as known, behind the
voice prompt, if there is one; so the cost of a chunk does not grow with the answer. Windows, steps and every random
number depend on the position in the stream alone: however the codes arrive, and whatever else is in the batch, the
samples are the same.

Frame f of a stream belongs to code floor(f / frames_per_code), an exact fraction, in every window: nothing drifts. The
last `overlap` codes of a window are spoken with the next one, which makes their frames anew; the two versions are
cross-faded, and so are the samples of one frame on either side of which the vocoder saw different versions.

B streams, N codes, M mel bands, F mel frames, H harmonics, S = hop samples of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.codecs.base import BatchDecoder, check_ids
from vita_mctp.codecs.flow_decoder.flow import REFERENCE_STEPS, CodeWindows, Flow
from vita_mctp.codecs.flow_decoder.folder import VoicePrompt
from vita_mctp.codecs.flow_decoder.hift import Hift, SourceNoise, noise_at, phase_of
from vita_mctp.errors import ConfigError
from vita_mctp.schema import Schema
from vita_mctp.types import AudioBlock, Code, WaveChunk

_MEL_STREAM = 1 << 64
"""Added to a seed, it separates the flow's noise from the vocoder's."""


_Codes = Annotated[int, Field(ge=1, le=1 << 20)]
_Steps = Annotated[int, Field(ge=1, le=1000)]


class Windows(Schema):
    """How a stream is cut, in codes."""

    chunk_sizes: Annotated[tuple[_Codes, ...], Field(min_length=1)] = (10, 10, 20, 20, 40)
    """New codes of each window, the last size for all further ones; small first ones are for an early sound."""
    context: _Codes = 50
    """Codes before them that a window sees."""
    overlap: _Codes = 5
    """Codes whose frames are made again with the next window."""
    steps: Annotated[tuple[_Steps, ...], Field(min_length=1)] = (REFERENCE_STEPS,)
    """Euler steps of each window, the last number for all further ones; few at first save time where it counts."""

    @model_validator(mode="after")
    def _check_progress(self) -> Self:
        if min(self.chunk_sizes) <= self.overlap:
            raise ValueError(
                f"got chunk_sizes {self.chunk_sizes} with overlap {self.overlap}; "
                "wanted windows that speak more codes than they withhold"
            )
        return self

    def but(self, **fields: Any) -> Windows:
        """A copy with other values for some fields. Raises ConfigError when it cannot work."""
        return Windows.parse(self.to_json_values() | fields, "windows of the audio decoder")

    def size(self, window: int) -> int:
        return self.chunk_sizes[min(window, len(self.chunk_sizes) - 1)]

    def num_steps(self, window: int) -> int:
        return self.steps[min(window, len(self.steps) - 1)]


@dataclass(frozen=True, eq=False)
class SmoothState:
    """One stream between two blocks. Its size is bounded, whatever the answer's length."""

    seed: int
    phase: Tensor
    """(1, H) of the excitation, behind the spoken frames."""
    mel: Tensor
    """(M, F) the newest spoken frames."""
    source: Tensor
    """(S * F,) their excitation, of the newest ones only."""
    withheld: Tensor
    """(M, F) frames made already that the next window makes again."""
    tail: Tensor
    """(S,) samples that follow the spoken ones if the withheld frames are right."""
    codes: tuple[Code, ...] = ()
    """The newest ones, as far as a window may still need them."""
    received: int = 0
    decoded: int = 0
    """Codes that have been new in a window."""
    windows: int = 0
    frames: int = 0
    """Spoken so far."""


@dataclass(frozen=True)
class _Window:
    """Codes [start, end) of a stream; those before `state.decoded` are context."""

    stream: int
    state: SmoothState
    start: int
    end: int
    steps: int
    is_last: bool

    @property
    def codes(self) -> Tensor:
        first = self.state.received - len(self.state.codes)
        return torch.tensor(self.state.codes[self.start - first : self.end - first])


class _View(NamedTuple):
    """What the flow sees of a window: codes, frames, their positions, and the code that owns each frame."""

    codes: Tensor
    positions: Tensor
    owners: Tensor
    frames: Tensor
    known: Tensor
    """(M, F) of the frames whose mel is known, the first ones."""
    noise: Tensor
    """(M, F) of all."""


@dataclass(frozen=True, eq=False)
class _Stretch:
    """The vocoder's part of a window: (M, F) frames, the first `before` spoken already, the next `spoken` now."""

    window: _Window
    mel: Tensor
    before: int
    spoken: int


class WindowedDecoder(BatchDecoder):
    """Flow, then HiFT, in windows (`codecs.base.AudioDecoder`); a codec adds its name and how its folder is read."""

    name: str
    num_codebooks = 1

    def __init__(
        self, flow: Flow, hift: Hift, block_size: int, windows: Windows | None = None, voice: VoicePrompt | None = None
    ) -> None:
        self.flow, self.hift, self.windows, self.block_size = flow, hift, windows or Windows(), block_size
        self.voice = voice or VoicePrompt.none(flow.config.output_size, flow.config.spk_embed_dim)
        self.codebook_size = flow.config.vocab_size
        self.frame_rate = Fraction(flow.config.input_frame_rate)
        self.sample_rate, self.hop = hift.config.sampling_rate, hift.config.hop_length
        self.frames_per_code = Fraction(self.sample_rate, self.hop) / self.frame_rate
        self._bands, self._reach = flow.config.output_size, hift.context_frames
        self._overlap = self._frame(self.windows.overlap)
        self._kept = self._frame(self.windows.context) + 1
        if self._kept - 1 - self._overlap < self._reach:
            raise ConfigError(
                f"got a context of {self.windows.context} codes with an overlap of {self.windows.overlap}; wanted the "
                f"{self._reach} frames that the vocoder looks back: give a longer context"
            )

    def in_windows(self, windows: Windows) -> Self:
        """The same networks and voice in other windows. Raises ConfigError when they cannot work."""
        other = copy(self)
        WindowedDecoder.__init__(other, self.flow, self.hift, self.block_size, windows, self.voice)
        return other

    def start(self, seed: int = 0) -> SmoothState:
        """seed: of the flow's and the vocoder's noise, 0 or more."""
        none = self.hift.m_source.l_linear.weight.new_zeros(0)
        no_frames = none.new_zeros(self._bands, 0)
        phase = phase_of(seed, self.hift.m_source.harmonics).to(none.device)
        return SmoothState(seed, phase, mel=no_frames, source=none, withheld=no_frames, tail=none)

    @torch.inference_mode()
    def decode_blocks(
        self, blocks: Sequence[AudioBlock], states: Sequence[SmoothState]
    ) -> list[tuple[WaveChunk, SmoothState]]:
        """`decode_block` for several streams in one batch; each gets what it would get alone.

        Raises ConfigError for an id that is none of this codec's.
        """
        for block in blocks:
            check_ids(block.codes, self.codebook_size, self.name)
        now = [
            replace(state, codes=state.codes + block.codes, received=state.received + len(block.codes))
            for block, state in zip(blocks, states, strict=True)
        ]
        pieces: list[list[Tensor]] = [[state.tail[:0]] for state in states]
        while windows := self._due(now, blocks):
            for window, (piece, state) in zip(windows, self._speak(self._stretches(windows)), strict=True):
                pieces[window.stream].append(piece)
                now[window.stream] = state
        ended = zip(blocks, pieces, states, now, strict=True)
        return [(self._chunk(block, torch.cat(new), old, state), state) for block, new, old, state in ended]

    def _frame(self, code: int) -> int:
        """The first frame that does not belong to the codes before `code`."""
        return ceil(code * self.frames_per_code)

    def _chunk(self, block: AudioBlock, samples: Tensor, old: SmoothState, state: SmoothState) -> WaveChunk:
        """The last frame is cut where the last code ends."""
        if block.is_last:
            total = int(state.received * self.sample_rate / self.frame_rate)
            samples = samples[: total - old.frames * self.hop]
        return WaveChunk(samples.float().cpu().numpy(), self.sample_rate, block.index, block.is_last)

    def _due(self, states: Sequence[SmoothState], blocks: Sequence[AudioBlock]) -> list[_Window]:
        """The next window of each stream that has one. A full one is never taken for the last, since offline and in a
        stream the same must happen, and in a stream the end may come later."""
        windows = []
        for stream, (state, block) in enumerate(zip(states, blocks, strict=True)):
            waiting, size = state.received - state.decoded, self.windows.size(state.windows)
            full = waiting >= size
            if full or (block.is_last and (waiting or state.withheld.shape[1])):
                start, end = max(0, state.decoded - self.windows.context), state.decoded + min(waiting, size)
                steps = self.windows.num_steps(state.windows)
                windows.append(_Window(stream, state, start, end, steps, is_last=not full))
        return windows

    def _stretches(self, windows: Sequence[_Window]) -> list[_Stretch]:
        """Runs the flow, once for each number of steps; a last window without new codes has its frames already."""
        mels = {window.stream: window.state.withheld for window in windows}
        fresh = [window for window in windows if window.end > window.state.decoded]
        for steps in sorted({window.steps for window in fresh}):
            alike = [window for window in fresh if window.steps == steps]
            for window, made in zip(alike, self._new_frames(alike, steps), strict=True):
                mels[window.stream] = cross_fade(window.state.withheld, made)
        stretches = []
        for window in windows:
            before, mel = window.state.mel[:, -self._reach :], mels[window.stream]
            spoken = mel.shape[1] - (0 if window.is_last else self._overlap)
            stretches.append(_Stretch(window, torch.cat([before, mel], 1), before.shape[1], spoken))
        return stretches

    def _new_frames(self, windows: Sequence[_Window], steps: int) -> list[Tensor]:
        """(M, F) frames behind the spoken ones, of each window."""
        views = [self._view(window) for window in windows]
        lengths = torch.tensor([len(view.frames) for view in views])
        batch = CodeWindows(
            pad_sequence([view.codes for view in views], batch_first=True).to(self.flow.like.device),
            pad_sequence([view.owners for view in views], batch_first=True),
            torch.tensor([len(view.codes) for view in views]),
            lengths,
            pad_sequence([view.positions for view in views], batch_first=True),
        )
        mu = self.flow.mean(batch)
        speaker = self.flow.speaker(self.voice.embedding.to(mu).expand(len(views), -1))
        known = [view.known for view in views]
        cond = pad_frames([*known, known[0].new_zeros(self._bands, mu.shape[1])])[:-1].to(mu)
        noise = pad_frames([view.noise for view in views]).to(mu)
        frames = pad_sequence([view.frames for view in views], batch_first=True)
        mel = self.flow.solve(mu, cond, speaker, noise, lengths, steps, frames)
        rows = zip(mel, known, lengths.tolist(), strict=True)
        return [row[:, old.shape[1] : length].to(old) for row, old, length in rows]

    def _view(self, window: _Window) -> _View:
        """The voice prompt's codes and frames, then the window's own; positions count both."""
        state, per_code = window.state, self.frames_per_code
        prompt, lead = len(self.voice.codes), self.voice.mel.shape[1]
        own = torch.arange(self._frame(window.start), self._frame(window.end))
        owners = own * per_code.denominator // per_code.numerator - window.start
        before = torch.arange(lead) * per_code.denominator // per_code.numerator
        spoken = state.mel[:, state.mel.shape[1] - (state.frames - self._frame(window.start)) :]
        seed, bands = state.seed + _MEL_STREAM, self._bands
        noise = [
            noise_at(seed, bands, first, count, hop=1)[0]
            for first, count in ((0, lead), (lead + int(own[0]), len(own)))
        ]
        return _View(
            codes=torch.cat([self.voice.codes, window.codes]),
            positions=torch.cat([torch.arange(prompt), prompt + torch.arange(window.start, window.end)]),
            owners=torch.cat([before, prompt + owners]),
            frames=torch.cat([torch.arange(lead), lead + own]),
            known=torch.cat([self.voice.mel.to(spoken), spoken], 1),
            noise=torch.cat(noise, 1),
        )

    def _speak(self, stretches: Sequence[_Stretch]) -> list[tuple[Tensor, SmoothState]]:
        """Samples of each stretch, and the state behind them."""
        lengths = torch.tensor([stretch.mel.shape[1] for stretch in stretches])
        mels = pad_frames([stretch.mel for stretch in stretches])
        pitch = self.hift.f0_predictor(mels, lengths)
        excited = [self._excite(stretch, row) for stretch, row in zip(stretches, pitch, strict=True)]
        waves = self.hift(mels, pad_sequence([source for source, _ in excited], batch_first=True), lengths)
        parts = zip(stretches, excited, waves, strict=True)
        return [self._advance(stretch, source, phase, wave) for stretch, (source, phase), wave in parts]

    def _excite(self, stretch: _Stretch, pitch: Tensor) -> tuple[Tensor, Tensor]:
        """Excitation (S * F,) of the stretch, and the phases (1, H) behind its spoken frames.

        That of frames spoken before is kept, not made again: their pitch may have been read with other frames to come.
        """
        state, edges = stretch.window.state, [stretch.before, stretch.before + stretch.spoken, stretch.mel.shape[1]]
        spoken, phase = self._source(state, pitch[edges[0] : edges[1]], state.phase, 0)
        withheld, _ = self._source(state, pitch[edges[1] : edges[2]], phase, stretch.spoken)
        before = state.source[len(state.source) - stretch.before * self.hop :]
        return torch.cat([before, spoken, withheld]), phase

    def _source(self, state: SmoothState, pitch: Tensor, phase: Tensor, skipped: int) -> tuple[Tensor, Tensor]:
        """Excitation of frames with this pitch, `skipped` frames behind the spoken ones, and the phases after it."""
        first = state.frames + skipped
        noise = noise_at(state.seed, self.hift.m_source.harmonics, first, len(pitch), self.hop)
        source, phase = self.hift.m_source(pitch[None], SourceNoise(phase, noise.to(pitch)))
        return source[0], phase

    def _advance(self, stretch: _Stretch, source: Tensor, phase: Tensor, wave: Tensor) -> tuple[Tensor, SmoothState]:
        window, state = stretch.window, stretch.window.state
        spoken_end = stretch.before + stretch.spoken
        begin, end, limit = (frame * self.hop for frame in (stretch.before, spoken_end, stretch.mel.shape[1]))
        samples = cross_fade(state.tail, wave[begin:end])
        needed = state.received - max(0, window.end - self.windows.context)
        return samples, replace(
            state,
            phase=phase,
            mel=torch.cat([state.mel, stretch.mel[:, stretch.before : spoken_end]], 1)[:, -self._kept :],
            source=source[:end][-self._reach * self.hop :],
            withheld=stretch.mel[:, spoken_end:],
            tail=wave[end : min(end + self.hop, limit)],
            codes=state.codes[len(state.codes) - needed :],
            decoded=window.end,
            windows=state.windows + 1,
            frames=state.frames + stretch.spoken,
        )


def cross_fade(old: Tensor, new: Tensor) -> Tensor:
    """(..., T) `new`, into which its beginning as `old` (..., t) had it is faded; the two weights add up to one."""
    length = old.shape[-1]
    weight = (torch.arange(length, device=new.device, dtype=new.dtype) + 0.5) / max(1, length)
    faded = old + (new[..., :length] - old) * weight
    return torch.cat([faded, new[..., length:]], -1)


def pad_frames(rows: Sequence[Tensor]) -> Tensor:
    """(M, F) of several streams -> (B, M, F) with zeros behind the shorter ones."""
    return pad_sequence([row.T for row in rows], batch_first=True).transpose(1, 2)
