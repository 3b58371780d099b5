"""Which part of the model makes the next token: modes as data, and the cursor that walks them.

A mode is an even-length list [main_1, mctp_1, main_2, mctp_2, ...]: main_1 tokens from the backbone, mctp_1 from the
MCTP blocks, and so on; the last pair repeats for ever. The schedule is positional: content never influences it.
VITA-Audio paper, section 3.4 (inference paradigms Turbo, Boost, Balance, Vanilla).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from vita_mctp.errors import ConfigError
from vita_mctp.types import BACKBONE


@dataclass(frozen=True, slots=True)
class Mode:
    """A named schedule. `counts` alternates backbone and MCTP tokens; the last pair repeats.

    verified: the blocks draft behind each backbone token and the backbone's next pass verifies, so that the answer is
    that of `counts` without blocks. A chain of drafts ends with the one that makes the product of their probabilities
    less than `stop_below`.
    typical: above 0, a verified mode is lossy: what `is_typical` finds at this threshold stands too.
    talker: a speed of a model that speaks by a talker, as `decoding.talker.parse_talker_mode` takes it: its text comes
    from the backbone alone.
    """

    name: str
    counts: tuple[int, ...]
    verified: bool = False
    stop_below: float = 0.0
    typical: float = 0.0
    talker: bool = False

    @property
    def lossless(self) -> bool:
        """Whether drafts decide how fast an answer comes, and nothing of what it is."""
        return self.verified and not self.typical

    def __post_init__(self) -> None:
        if not self.counts or len(self.counts) % 2:
            raise ConfigError(f"mode {self.name!r} has {len(self.counts)} counts; {_FORM}")
        if any(not isinstance(count, int) or count < 0 for count in self.counts):
            raise ConfigError(f"mode {self.name!r} has a count that is negative or not an integer; {_FORM}")
        if sum(self.counts[-2:]) == 0:
            raise ConfigError(f"mode {self.name!r} ends in 0,0, which would repeat for ever without a token; {_FORM}")


_FORM = "wanted an even-length list of counts >= 0 such as 1,10,4,10 (backbone, MCTP, backbone, MCTP, ...)"

MODES: Mapping[str, Mode] = MappingProxyType(
    {
        mode.name: mode
        for mode in (
            Mode("vanilla", (8192, 0)),
            Mode("balance", (1, 4, 3, 8, 4, 10)),
            Mode("boost", (1, 10, 4, 10)),
            Mode("turbo", (1, 10)),
            Mode("verified", (8192, 0), verified=True, stop_below=0.1),
            Mode("lossy", (8192, 0), verified=True, stop_below=0.1, typical=0.3),
        )
    }
)


def parse_mode(spec: str | Sequence[int] | Mode | None, num_blocks: int) -> Mode:
    """Read a mode's name ("boost"), its counts ("1,10,4,10" or a list), or None for the released default [1, K].

    Counts of a named mode give that mode. Counts beyond the model's K blocks are legal: a longer run falls back to the
    backbone and starts over.

    Raises:
        ConfigError: unknown name, odd length, empty, negative counts, or a last pair of zeros.
    """
    if isinstance(spec, Mode):
        return spec
    if isinstance(spec, str):
        name = spec.strip().lower()
        if name in MODES:
            return MODES[name]
        if lossy := re.fullmatch(r"lossy,(0?\.\d*[1-9])", name):
            return replace(MODES["lossy"], name=name, typical=float(lossy[1]))
        if re.fullmatch(r"\d+x(,\w+)?", name):
            return Mode(name, (1, 0), talker=True)
        try:
            counts = tuple(int(part) for part in name.split(","))
        except ValueError:
            raise ConfigError(
                f"unknown mode {spec!r}; known: {', '.join(MODES)}, lossy,0.1, or 3x of a talker; or {_FORM}"
            ) from None
    else:
        counts = (1, num_blocks) if spec is None else tuple(spec)
    named = {mode.counts: mode for mode in MODES.values() if not mode.verified}
    return named.get(counts) or Mode(",".join(map(str, counts)), counts)


@dataclass(frozen=True, slots=True)
class PlanCursor:
    """A position in a mode's endless schedule, for `num_blocks` blocks. A value: stepping returns a new one."""

    mode: Mode
    num_blocks: int
    pair: int
    used: int
    """Tokens already taken from this pair."""
    level: int
    """The level that made the last token; behind the deepest, and before the first token, the backbone must come."""

    @classmethod
    def start(cls, mode: Mode, num_blocks: int) -> PlanCursor:
        """The cursor before the first new token, which is always the backbone's: it reads the prompt."""
        return cls(mode, num_blocks, pair=0, used=0, level=num_blocks)

    def step(self) -> tuple[int, PlanCursor]:
        """The level that makes the next token and the cursor behind it."""
        counts, pair, used = self.mode.counts, self.pair, self.used
        last = len(counts) // 2 - 1
        while used >= counts[2 * pair] + counts[2 * pair + 1]:
            pair, used = min(pair + 1, last), 0
        mctp_token = used >= counts[2 * pair]
        level = self.level + 1 if mctp_token and self.level < self.num_blocks else BACKBONE
        return level, PlanCursor(self.mode, self.num_blocks, pair, used + 1, level)

    @property
    def reach(self) -> int:
        """Levels up to this one can still be called; deeper ones never again (an upper bound)."""
        if self.mode.verified:
            return self.num_blocks
        backbone, mctp = self.mode.counts[2 * self.pair :: 2], self.mode.counts[2 * self.pair + 1 :: 2]
        joined_runs = 0 in backbone
        return self.num_blocks if joined_runs else min(self.num_blocks, max(mctp))
