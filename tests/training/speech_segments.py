"""An answer's ids taken apart again; several tests of interleaving share it."""

from __future__ import annotations

from collections.abc import Sequence


def deinterleave(ids: Sequence[int], begin: int, end: int) -> tuple[list[int], list[int]]:
    """(text ids, audio ids): everything outside and inside the segments; the last segment may lack its end."""
    text: list[int] = []
    audio: list[int] = []
    target = text
    for token in ids:
        if token == begin:
            target = audio
        elif token == end:
            target = text
        else:
            target.append(token)
    return text, audio
