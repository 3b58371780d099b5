"""VocalNet-M2's loop: fused text rows in, frames of Q codes out, K + 1 a step; greedy, one answer each.

Frame t reads text row t, so a stream waits for text, and says what the whole text at once would make it say. Behind the
last text row come zeros. Legend: H width, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from vita_mctp.decoding.cache import CacheSpec, KvCache
from vita_mctp.errors import ConfigError

Frame = tuple[int, ...]


class FrameTalkerModel(Protocol):
    """Parts that keep no state, and `sizes`. `vita_mctp.models.vocalnet_m2.talker` documents each."""

    sizes: Any
    embed: Callable[[Tensor], Tensor]
    stretch: Callable[[Tensor, int, int], Tensor]
    backbone: Callable[..., Tensor]
    level: Callable[..., Tensor]
    logits: Callable[[int, Tensor], Tensor]
    batch: Callable[..., Any]
    chain: Callable[..., Any]
    parameters: Callable[..., Any]


class FrameAnswer:
    """One answer as it is spoken; everything of it lives here."""

    def __init__(self, talker: FrameTalkerModel, levels: int = 0, max_frames: int = 1024) -> None:
        """levels: K. max_frames: a step is not cut for it. Raises ConfigError for more levels than there are."""
        sizes, weight = talker.sizes, next(iter(talker.parameters()))
        if not 0 <= levels <= sizes.mtp_levels:
            raise ConfigError(f"levels {levels} given; wanted 0 to the talker's {sizes.mtp_levels}")
        self._talker, self._max_frames, self._device = talker, max_frames, weight.device
        depths = [sizes.num_layers] + [1] * levels
        head = sizes.hidden_size // sizes.num_heads
        specs = (CacheSpec(0, depth, sizes.num_heads, head, weight.dtype, weight.device) for depth in depths)
        self._caches = [KvCache(spec) for spec in specs]
        self._text = weight.new_zeros(0, sizes.hidden_size)
        self._fed: list[Frame] = [(sizes.bos,) * sizes.num_codebooks]
        self.frames: list[Frame] = []
        self.ended = False
        """Whether the first codebook drew an EOS, whose frame is not among the answer's codes."""

    def push(self, fused: Tensor | None, *, last: bool) -> Iterator[Frame]:
        """The next text rows (n, H) -> the frames that they let be said; with the last ones, all that are left.

        Each comes when its step is done. What the codec is given of a track that drew BOS or EOS is its best code.
        """
        if fused is not None:
            self._text = torch.cat([self._text, fused.to(self._text)])
        while not self.ended and len(self.frames) < self._max_frames and (last or self._may_step()):
            drawn, said = self._step()
            self.frames += drawn
            self._fed = drawn
            self.ended = drawn[-1][0] == self._talker.sizes.eos
            yield from said[:-1] if self.ended else said

    def _may_step(self) -> bool:
        """Whether every frame to be fed has its text row."""
        return self._caches[0].length + len(self._fed) <= len(self._text) * self._talker.sizes.stretch

    @torch.inference_mode()
    def _step(self) -> tuple[list[Frame], list[Frame]]:
        """The next frame of each level as drawn, and as codes."""
        talker, count, start = self._talker, len(self._fed), self._caches[0].length
        positions = torch.arange(start, start + count, device=self._device)
        mask = (torch.arange(start + count, device=self._device) <= positions[:, None])[None]
        fed = torch.tensor([self._fed], device=self._device)
        hidden = talker.embed(fed) + talker.stretch(self._text, start, count)[None]
        drawn, said = list[Frame](), list[Frame]()
        for k, cache in enumerate(self._caches):
            cache.reserve(count)
            part = talker.level if k else talker.backbone
            hidden = part(*([k] if k else []), hidden, positions[None], mask, cache)
            cache.length += count
            logits = talker.logits(k, hidden[0, -1])
            drawn.append(_best(logits))
            said.append(_best(logits[:, : talker.sizes.codebook_size]))
            if drawn[-1][0] == talker.sizes.eos:
                break
        return drawn, said


def _best(logits: Tensor) -> Frame:
    return tuple(logits.argmax(-1).tolist())
