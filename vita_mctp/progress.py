"""Progress of what takes long: how far, how fast, how long still. On standard error where that is a terminal.

A bar comes only with the work's second second, and its library is imported only where there is a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")

_DELAY_SECONDS = 1.0


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, as they are taken. total: how many, where they do not say themselves; without it, no time is left."""
    if not sys.stderr.isatty():
        return iter(items)
    return iter(_bar(items, desc=what, total=total))


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function of (part of the work, number of what is done, how many in all), with a bar for each part."""
    with ExitStack() as last:
        name, bar = "", None

        def show(what: str, done: int, total: int) -> None:
            nonlocal name, bar
            if what != name:
                last.close()
                name, bar = what, last.enter_context(_bar(desc=what, total=total, initial=done - 1))
            if bar is not None:
                bar.update()

        yield show if sys.stderr.isatty() else lambda what, done, total: None


def _bar(*items: Any, **options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(*items, delay=_DELAY_SECONDS, dynamic_ncols=True, **options)
