"""The GLM-4-Voice speech tokenizer while somebody still speaks: finished 4 s blocks are computed once and kept.

A segment of 30 s is a row of blocks. A block's codes depend on its own samples, on the keys and values of the blocks
before it, and on one thing that lies in the future: features are clamped 80 dB under the segment's loudest energy. So

- a block is encoded as soon as its samples are there, with the clamp of the loudest energy so far;
- when a louder sound lifts the clamp above some energy of an earlier block, that block and those behind it are encoded
  once more;
- codes are given out as final once no sound whatever can change them: at the end of a segment, or while all energies so
  far lie above the highest clamp that samples in [-1, 1] can bring. `provisional` gives the others as they now stand.

All ids together are those of `Glm4VoiceTokenizer.encode` on the whole recording, whatever the cuts (the same sums in
another order: a tie within float32 rounding may fall differently). When the speaker stops, the last, unfinished block
is left to compute, and more only if it is the loudest. A state holds one segment at most: in float32 at the released
size, 33 MB of keys and values for each finished block.

M mel bands, F log-mel frames, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from vita_mctp.audio.mel import DYNAMIC_RANGE, SILENCE
from vita_mctp.audio.resample import ResamplerState, sinc_resampler
from vita_mctp.codecs.glm4_voice.config import CONV_STRIDE
from vita_mctp.codecs.glm4_voice.tokenizer import BATCH_SIZE, CONTEXT_FRAMES, Glm4VoiceTokenizer, KeysValues, Past
from vita_mctp.errors import AudioError
from vita_mctp.types import AudioCodes, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Block:
    """A finished block: log energies (1, M, F), the lowest of them, and what the encoder made of them."""

    energies: Tensor
    quietest: float
    ids: IntArray
    past: Past


@dataclass(frozen=True, eq=False)
class Segment:
    """The segment being spoken: `samples` are those behind its finished blocks, and before them what the next block's
    first frame looks back at (`WhisperLogMel.margin` samples; none in the first block)."""

    index: int = 0
    samples: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    blocks: tuple[Block, ...] = ()
    loudest: float = SILENCE
    num_final: int = 0
    """Blocks whose codes have been given out."""


@dataclass(frozen=True, eq=False)
class StreamingTokenizerState:
    """One speaker's stream. A value: push with it twice and two futures go their own ways."""

    resampler: ResamplerState
    segment: Segment


class StreamingTokenizer:
    """Codes of one recording that comes in pieces; any number of streams may share one of these.

    sample_rate: of the samples pushed, in Hz; None = the tokenizer's own.
    """

    def __init__(self, tokenizer: Glm4VoiceTokenizer, sample_rate: int | None = None) -> None:
        self.tokenizer, self.config = tokenizer, tokenizer.config
        self.resampler = sinc_resampler(sample_rate or tokenizer.sample_rate, tokenizer.sample_rate)
        self.highest_clamp = tokenizer.features.loudest_possible(self.resampler.gain) - DYNAMIC_RANGE

    def start(self) -> StreamingTokenizerState:
        return StreamingTokenizerState(self.resampler.start(), Segment())

    def push(self, samples: FloatArray, state: StreamingTokenizerState) -> tuple[AudioCodes, StreamingTokenizerState]:
        """float32 samples (T,), any T -> the codes that became final. Raises AudioError for samples outside [-1, 1]."""
        if not np.abs(samples).max(initial=0.0) <= 1.0:  # NaN is not either
            raise AudioError("got samples outside [-1, 1] or NaN; wanted samples within: scale the recording")
        resampled, resampler = self.resampler.push(samples, state.resampler)
        pieces, segment = self._take(resampled, state.segment)
        return self.tokenizer.codes(pieces), StreamingTokenizerState(resampler, segment)

    def finish(self, state: StreamingTokenizerState) -> AudioCodes:
        """All codes that have not been given out."""
        pieces, segment = self._take(self.resampler.finish(state.resampler), state.segment)
        return self.tokenizer.codes([*pieces, *self._end(segment)])

    def provisional(self, state: StreamingTokenizerState) -> AudioCodes:
        """Codes of finished blocks as they stand, behind those given out; a louder sound may still change them."""
        segment = state.segment
        return self.tokenizer.codes([block.ids for block in segment.blocks[segment.num_final :]])

    def _take(self, samples: FloatArray, segment: Segment) -> tuple[list[IntArray], Segment]:
        final: list[IntArray] = []
        while len(samples):
            room = self.config.features.segment_samples - self._num_samples(segment)
            segment = replace(segment, samples=np.concatenate([segment.samples, samples[:room]]))
            samples = samples[room:]
            segment = self._finish_blocks(segment)
            if self._num_samples(segment) == self.config.features.segment_samples:
                final += self._end(segment)
                segment = Segment(segment.index + 1)
            else:
                ready = _count_above(segment.blocks, self.highest_clamp)
                final += [block.ids for block in segment.blocks[segment.num_final : ready]]
                segment = replace(segment, num_final=ready)
        return final, segment

    def _num_samples(self, segment: Segment) -> int:
        return len(segment.blocks) * self.config.samples_per_block + self._num_pending(segment)

    def _num_pending(self, segment: Segment) -> int:
        return len(segment.samples) - (self.tokenizer.features.margin if segment.blocks else 0)

    @torch.inference_mode()
    def _finish_blocks(self, segment: Segment) -> Segment:
        """Encodes every block whose last frame has all its samples."""
        features, size = self.tokenizer.features, self.config.samples_per_block
        count = (self._num_pending(segment) - (features.margin - features.hop)) // size
        if count <= 0:
            return segment
        known = self._with_context(segment)
        energies = features.energies(known[:, : features.margin + count * size + features.margin - features.hop])
        tail = known[0, count * size :].cpu().numpy()
        return replace(self._encode(segment, energies), samples=tail)

    def _with_context(self, segment: Segment) -> Tensor:
        """(1, margin + T) pending samples behind those that their first frame looks back at."""
        samples = torch.from_numpy(segment.samples)[None].to(self.tokenizer.encoder.device)
        return samples if segment.blocks else self.tokenizer.features.pad_left(samples)

    @torch.inference_mode()
    def _end(self, segment: Segment) -> list[IntArray]:
        """The ids of a segment that have not been given out, now that no more of it will come."""
        pending = self._num_pending(segment)
        if pending == 0:
            return []
        whole = -pending % self.config.samples_per_code
        segment = replace(segment, samples=np.pad(segment.samples, (0, whole)))
        features, total = self.tokenizer.features, self._num_samples(segment)
        # offline, the second and later segments lie in a batch with a full one and are padded with zeros to its length
        alone = segment.index % BATCH_SIZE == 0 or total == self.config.features.segment_samples
        padded = features.pad_right(self._with_context(segment), "reflect" if alone else "constant")
        ended = self._encode(segment, features.energies(padded), missing=whole)
        return [block.ids for block in ended.blocks[segment.num_final :]]

    def _encode(self, segment: Segment, energies: Tensor, missing: int = 0) -> Segment:
        """Appends the blocks of new energies (1, M, F); encodes them and, where the clamp rose, older ones again.

        missing: samples of the last code that were never spoken.
        """
        loudest = max(segment.loudest, float(energies.max()))
        unchanged = loudest == segment.loudest
        kept = len(segment.blocks) if unchanged else _count_above(segment.blocks, loudest - DYNAMIC_RANGE)
        stale = [block.energies for block in segment.blocks[kept:]]
        every = torch.cat([*stale, energies], dim=2)
        blocks = self._encode_behind(segment.blocks[:kept], every, loudest, missing)
        return replace(segment, blocks=blocks, loudest=loudest)

    def _encode_behind(
        self, kept: tuple[Block, ...], energies: Tensor, loudest: float, missing: int
    ) -> tuple[Block, ...]:
        config, features = self.config, self.tokenizer.features
        frames = len(kept) * config.encoder.quantize_causal_block_size + energies.shape[2] // CONV_STRIDE
        spoken = frames * config.samples_per_frame - missing
        context = [kept[-1].energies[:, :, -CONTEXT_FRAMES:]] if kept else []
        clamped = features.clamp(torch.cat([*context, energies], dim=2), loudest)
        hidden, past = self.tokenizer.encoder(
            clamped, [-(-spoken // config.samples_per_frame)], _join([block.past for block in kept]), keep=True
        )
        count = -(-spoken // config.samples_per_code) - len(kept) * config.codes_per_block
        ids = self.tokenizer.encoder.nearest(hidden)[0, :count]
        return kept + self._split(energies, ids, past)

    def _split(self, energies: Tensor, ids: IntArray, past: Past) -> tuple[Block, ...]:
        """Block by block; the last one may be shorter."""
        frames, codes = self.config.encoder.quantize_causal_block_size, self.config.codes_per_block
        pieces = energies.split(frames * CONV_STRIDE, dim=2)
        return tuple(
            Block(
                piece,
                float(piece.min()),
                ids[index * codes : (index + 1) * codes],
                tuple(KeysValues(*(x[:, :, index * frames : (index + 1) * frames] for x in layer)) for layer in past),
            )
            for index, piece in enumerate(pieces)
        )


def _count_above(blocks: tuple[Block, ...], clamp: float) -> int:
    """Blocks from the segment's start whose features are the energies themselves, with a clamp as high as this."""
    return next((index for index, block in enumerate(blocks) if block.quietest < clamp), len(blocks))


def _join(pasts: list[Past]) -> Past:
    """Keys and values of neighbouring blocks, as one past."""
    return tuple(
        KeysValues(*(torch.cat(x, dim=2) for x in zip(*layer, strict=True))) for layer in zip(*pasts, strict=True)
    )
