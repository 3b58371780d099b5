"""Text and speech of one answer as one token sequence, cut by a ratio (VITA-Audio paper, section 3).

An answer arrives as text around one audio segment: `text BEGIN codes END text`. A ratio [t1, a1, t2, a2, ...] turns it
into `t1 text tokens, a1 audio tokens, t2 text tokens, ...`; each a counts the segment's BEGIN and END too, and the last
pair repeats. What one side has left when the other ends goes into the last piece.

Text is cut after exactly t tokens even where that divides a character's bytes, since decoding modes count on the exact
rhythm; `IncrementalDecoder` joins the halves, so that the text comes out whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from vita_mctp.errors import ConfigError, DataError

MARKERS = 2
"""BEGIN and END are counted by a ratio's audio numbers."""


@dataclass(frozen=True)
class Ratio:
    """Alternating numbers of text and audio tokens; the last pair repeats for ever."""

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        text, audio = self.counts[::2], self.counts[1::2]
        if not self.counts or len(text) != len(audio) or min(text) < 1 or min(audio) <= MARKERS:
            raise ConfigError(
                f"ratio {list(self.counts)} does not interleave; wanted pairs of text tokens (at least 1) and audio "
                f"tokens (at least {MARKERS + 1}, the segment's two markers included), as [1, 10, 4, 10]"
            )

    def cut_text(self, ids: Sequence[int]) -> list[list[int]]:
        return _cut(ids, self.counts[::2])

    def cut_audio(self, ids: Sequence[int]) -> list[list[int]]:
        return _cut(ids, [count - MARKERS for count in self.counts[1::2]])


BOOST_RATIO = Ratio((1, 10, 4, 10))


def interleave(
    ids: Sequence[int], ratio: Ratio | Sequence[int], begin: int, end: int, *, reference: bool = False
) -> list[int]:
    """Spread the one audio segment of `ids` (marked by `begin` and `end`) over its text by `ratio`.

    Without markers, or with nothing but the segment, the ids come back as they are. An empty segment is put behind the
    whole text; with `reference` it costs all text after the first chunk, as in the released code.

    Raises DataError unless there is exactly one segment, ConfigError for a ratio that cannot interleave.
    """
    ratio = ratio if isinstance(ratio, Ratio) else Ratio(tuple(ratio))
    text, audio = _split_single_segment(ids, begin, end)
    if audio is None or not text:
        return list(ids)
    if not audio and not reference:
        return [*text, begin, end]
    text_chunks, audio_chunks = ratio.cut_text(text), ratio.cut_audio(audio) or [[]]
    if not audio:
        text_chunks = text_chunks[:1]
    pieces = min(len(text_chunks), len(audio_chunks))
    pairs = zip(_merge_tail(text_chunks, pieces), _merge_tail(audio_chunks, pieces), strict=True)
    return [token for words, codes in pairs for token in (*words, begin, *codes, end)]


def _split_single_segment(ids: Sequence[int], begin: int, end: int) -> tuple[list[int], list[int] | None]:
    """(text before and after the segment, the segment's codes); the latter None if there is no segment."""
    ids = list(ids)
    if begin not in ids and end not in ids:
        return ids, None
    starts, ends = ids.count(begin), ids.count(end)
    if starts != 1 or ends != 1 or ids.index(end) < ids.index(begin):
        raise DataError(
            f"an answer to interleave wants one audio segment, its begin before its end; got {starts} begin and {ends} "
            "end markers" + (" the other way round" if (starts, ends) == (1, 1) else "")
        )
    first, last = ids.index(begin), ids.index(end)
    return ids[:first] + ids[last + 1 :], ids[first + 1 : last]


def _cut(ids: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Pieces of `sizes`, the last size repeating; the last piece may be shorter."""
    pieces: list[list[int]] = []
    position = 0
    for size in chain(sizes, repeat(sizes[-1])):
        if position >= len(ids):
            return pieces
        pieces.append(list(ids[position : position + size]))
        position += size
    return pieces


def _merge_tail(pieces: list[list[int]], count: int) -> list[list[int]]:
    """The first count - 1 pieces and one that holds all the others."""
    return [*pieces[: count - 1], list(chain.from_iterable(pieces[count - 1 :]))]
