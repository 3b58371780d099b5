"""A talker's own small loop: text rows in, speech tokens out, over caches like the engine's; greedy, one answer each.

Two contracts. "as_trained": masks, text limits, positions and chained levels are those of the training forward, so
that each token is the argmax of that forward over what is known. "reference": as the authors' loop decodes the released
weights, which differs from training: text is read causally, text columns of every level come from level 0, the
penalty of `Penalty` is on, and of a stream all text so far is seen, at positions that new text shares with speech.

Legend: n text rows, g tokens of a speech row, K levels used behind level 0, H width, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from vita_mctp.decoding.cache import CacheSpec, KvCache
from vita_mctp.errors import ConfigError

if TYPE_CHECKING:
    from vita_mctp.models.registry import FrameSpeaking, Speaking

Contract = Literal["reference", "as_trained"]


class TalkerModel(Protocol):
    """What the loop takes: parts that keep no state, and `sizes`. `vita_mctp.models.vocalnet` documents each."""

    sizes: Any
    reads_tokens: bool
    released_causal: bool
    project: Callable[..., Tensor]
    embed: Callable[[Tensor], Tensor]
    backbone: Callable[..., Tensor]
    level: Callable[..., Tensor]
    enter: Callable[[int, Tensor], Tensor]
    released_enter: Callable[[int, Tensor], Tensor]
    logits: Callable[[int, Tensor], Tensor]
    released_logits: Callable[[int, Tensor], Tensor]
    text_limits: Callable[..., Tensor]
    batch: Callable[..., Any]
    chain: Callable[..., Any]
    parameters: Callable[..., Any]


@dataclass(frozen=True)
class Penalty:
    """Divides the logits of the last `window` tokens, once for each time that they occur; negative ones rise.

    every_level: not level 0 alone.
    """

    window: int
    divisor: float = 2.0
    every_level: bool = False

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """logits (g, V)."""
        recent = torch.tensor(tokens[-self.window :] if self.window else [], dtype=torch.long, device=logits.device)
        times = torch.bincount(recent, minlength=logits.shape[-1])
        return logits / self.divisor**times


WHOLE_PENALTY, STREAM_PENALTY = Penalty(5), Penalty(6, every_level=True)
"""Of the authors' loops over whole answers with K >= 1, and over streams."""


def choose(logits: Tensor) -> list[int]:
    """The tokens of a row's logits (g, V), greedily."""
    return logits.argmax(-1).tolist()


@dataclass(frozen=True)
class TalkerOptions:
    """levels: K, so that a step makes g * (K + 1) tokens. max_tokens: SOS counted; a step is not cut for it."""

    levels: int = 0
    contract: Contract = "reference"
    max_tokens: int = 2048
    penalty: Penalty | None = None

    @property
    def name(self) -> str:
        """As `parse_talker_mode` takes it."""
        return f"{self.levels + 1}x" + (",as_trained" if self.contract == "as_trained" else "")


def parse_talker_mode(spec: object, rules: Speaking | FrameSpeaking) -> TalkerOptions:
    """ "3x" or "3x,as_trained" -> options; None is the talker's usual speed, or what it can.

    Raises ConfigError for another form, and for more tokens a step than the talker has levels.
    """
    max_levels = rules.talker.sizes.mtp_levels
    fastest, known = max_levels + 1, rules.contracts
    speed, _, contract = str(spec or f"{min(rules.usual_speed, fastest)}x").strip().lower().partition(",")
    if not re.fullmatch(r"\d{1,4}x", speed) or contract not in ("", *known):
        raise ConfigError(
            f"mode {spec!r} given; wanted tokens a step, as in 1x or {fastest}x"
            + (", perhaps with ,as_trained" if known else "")
        )
    if not 1 <= int(speed[:-1]) <= fastest:
        raise ConfigError(f"mode {spec!r} given; wanted 1x to {fastest}x: this talker has {max_levels} levels to add")
    return TalkerOptions(int(speed[:-1]) - 1, "as_trained" if contract == "as_trained" else "reference")


@dataclass
class _Columns:
    """What one level has read: keys and values in the order they came, and which of them are text."""

    cache: KvCache
    is_text: list[bool] = field(default_factory=list)

    def add(self, count: int, is_text: bool) -> None:
        self.cache.length += count
        self.is_text += [is_text] * count

    def forget_speech(self) -> None:
        """Speech must stand behind all text."""
        self.is_text = [each for each in self.is_text if each]
        self.cache.truncate(len(self.is_text))


class TalkerAnswer:
    """One answer as it is spoken; everything of it lives here."""

    def __init__(self, talker: TalkerModel, options: TalkerOptions, *, streaming: bool) -> None:
        """Raises ConfigError for more levels than the talker has."""
        if not 0 <= options.levels <= talker.sizes.mtp_levels:
            raise ConfigError(f"levels {options.levels} given; wanted 0 to the talker's {talker.sizes.mtp_levels}")
        self._talker, self._options, self._streaming = talker, options, streaming
        self._as_trained = options.contract == "as_trained"
        sizes, weight = talker.sizes, next(iter(talker.parameters()))
        self._device = weight.device

        def cache(layers: int) -> KvCache:
            head = sizes.hidden_size // sizes.num_heads
            return KvCache(CacheSpec(0, layers, sizes.num_heads, head, weight.dtype, weight.device))

        self._projected = cache(sizes.projector_layers)
        depths = [sizes.backbone_layers] + [1] * options.levels
        self._levels = [_Columns(cache(depth)) for depth in depths]
        self._num_text = 0
        self.history: list[int] = [sizes.sos]
        """SOS and every token so far."""
        self.ended = False
        """Whether an EOS was drawn."""

    @property
    def _step_tokens(self) -> int:
        return self._talker.sizes.group_size * (self._options.levels + 1)

    @torch.inference_mode()
    def whole(self, text: Tensor) -> list[int]:
        """The thinker's rows (n, H) of a whole answer -> its tokens behind SOS, EOS among them if it was drawn.

        Group predictors leave the EOS out, as their authors' loops do.
        """
        self._read_text(text)
        g, limit = self._talker.sizes.group_size, self._options.max_tokens
        released_group = g > 1 and not self._as_trained
        steps = limit // g + 1 if released_group else -(-(limit - 1) // self._step_tokens)
        return self._speak(steps, None)

    @torch.inference_mode()
    def push(self, text: Tensor | None, *, last: bool) -> list[int]:
        """The next rows (n, H) of a stream -> tokens: C_s of them, or when it is the last call all that are left.

        The authors' loop goes on behind an EOS that is not in the last call, and keeps it in the history; as trained,
        the answer is over.
        """
        sizes = self._talker.sizes
        if self._as_trained and self.ended:
            return []
        if text is not None and len(text):
            self._read_text(text)
        room = sizes.speech_chunk * sizes.group_size
        left = max(0, self._options.max_tokens - len(self.history))
        return self._speak(-(-(left if last else room) // self._step_tokens), None if last else room)

    def _read_text(self, text: Tensor) -> None:
        talker, first = self._talker, self._projected.length
        new = torch.arange(first, first + len(text), device=self._device)
        self._projected.reserve(len(text))
        causal = torch.arange(first + len(text), device=self._device) <= new[:, None]
        rows = talker.project(text[None], new[None], causal[None], self._projected)
        self._projected.length += len(text)
        if not first:
            bos = torch.full((1, 1, 1), talker.sizes.bos, device=self._device)
            rows = torch.cat([talker.embed(bos), rows], dim=1)
        positions = torch.arange(self._num_text, self._num_text + rows.shape[1], device=self._device)[None]
        self._num_text += rows.shape[1]
        causal_text = self._streaming if self._as_trained else talker.released_causal
        hidden = rows
        for k, columns in enumerate(self._levels):
            if self._as_trained:
                columns.forget_speech()
            mask = self._text_mask(columns, rows.shape[1], causal_text)
            columns.cache.reserve(rows.shape[1])
            if k == 0:
                hidden = backbone = talker.backbone(rows, positions, mask, columns.cache)
            else:
                entering = talker.enter(k, hidden) if self._as_trained else backbone
                hidden = talker.level(k, entering, rows, positions, mask, columns.cache)
            columns.add(rows.shape[1], is_text=True)

    def _text_mask(self, columns: _Columns, new: int, causal: bool) -> Tensor:
        """(1, new, all) bool: text sees text, of the new no later one if causal."""
        seen = torch.tensor(columns.is_text, dtype=torch.bool, device=self._device).expand(new, -1)
        among = torch.ones(new, new, dtype=torch.bool, device=self._device)
        return torch.cat([seen, among.tril() if causal else among], dim=1)[None]

    def _speak(self, steps: int, room: int | None) -> list[int]:
        """At most so many steps and, in the middle of one, at most `room` tokens."""
        sizes, made = self._talker.sizes, list[int]()
        fed = self._first_fed()
        for _ in range(steps):
            step = self._step(fed, made, room)
            self.ended = self.ended or sizes.eos in step
            if sizes.group_size > 1 and sizes.eos in step:
                kept = step[: step.index(sizes.eos)]
                self.history += kept
                return made + kept
            self.history += step
            made += step
            if sizes.eos in step or len(made) == room:
                break
            fed = step
        return made

    def _first_fed(self) -> list[int]:
        """As trained all of what was said is read again, behind the text that has come; else the last step."""
        g = self._talker.sizes.group_size
        start = [self._talker.sizes.sos] * (g - 1) + self.history
        if not self._as_trained:
            return start[-self._step_tokens :] if len(self.history) > 1 else start
        for columns in self._levels:
            columns.forget_speech()
        return start

    def _step(self, fed: list[int], made: Sequence[int], room: int | None) -> list[int]:
        """Reads the `fed` tokens and draws the next of each level; an EOS or a full room ends it."""
        talker, g = self._talker, self._talker.sizes.group_size
        rows = len(fed) // g
        drawn: list[int] = []
        hidden = torch.empty(0)
        for k, columns in enumerate(self._levels):
            first = len(columns.is_text)  # each level counts what it has read itself: deep ones may have missed a step
            positions = torch.arange(first, first + rows, device=self._device)[None]
            mask = self._speech_mask(k, columns, rows)
            columns.cache.reserve(rows)
            if k == 0:
                hidden = talker.backbone(self._embed(fed), positions, mask, columns.cache)
            else:
                entering = (talker.enter if self._as_trained else talker.released_enter)(k, hidden)
                further = self._embed((fed + drawn)[k:]) if talker.reads_tokens else hidden
                hidden = talker.level(k, entering, further, positions, mask, columns.cache)
            columns.add(rows, is_text=False)
            logits = (talker.logits if self._as_trained else talker.released_logits)(k, hidden[0, -1])
            penalty = self._options.penalty
            if penalty is not None and (k == 0 or penalty.every_level):
                logits = penalty.apply(logits, [*(made if self._streaming else self.history), *drawn])
            drawn += choose(logits)
            if talker.sizes.eos in drawn or (room is not None and len(made) + len(drawn) == room):
                break
        return drawn

    def _embed(self, tokens: list[int]) -> Tensor:
        ids = torch.tensor(tokens, device=self._device)
        return self._talker.embed(ids.view(1, -1, self._talker.sizes.group_size))

    def _speech_mask(self, k: int, columns: _Columns, rows: int) -> Tensor:
        """(1, rows, all) bool: speech sees what came before it; as trained, of the text what was there in training."""
        among = torch.ones(rows, rows, dtype=torch.bool, device=self._device)
        if self._as_trained or self._talker.released_causal:
            among = among.tril()
        past = torch.ones(rows, len(columns.is_text), dtype=torch.bool, device=self._device)
        if self._as_trained and self._streaming:
            index = torch.arange(rows, device=self._device) + len(columns.is_text) - self._num_text
            limits = self._talker.text_limits(index, self._num_text, k)
            past[:, : self._num_text] = past[:, : self._num_text].cumsum(1) <= limits[:, None]
        return torch.cat([past, among], dim=1)[None]
