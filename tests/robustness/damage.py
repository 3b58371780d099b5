"""Ways to damage what a user may hand over: JSON and YAML values, bytes, and files that are no files."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EXIT_CODE = "exit code"
"""The property of a test that holds what its command gave."""

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**12, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x", "\0", "../evil",
    "/etc/passwd", "1e-3", "\ud800", "é" * 300, [], [1, 2], [[]], [10**12], {}, {"x": 1}, {"": None},
]  # fmt: skip


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def damaged_value(value: Any, draw: random.Random) -> Any:
    """`value` (of JSON or YAML) with one to three of its parts replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        paths = list(_paths(value))
        if not paths:
            return draw.choice(VALUES)
        *above, last = draw.choice(paths)
        parent = value
        for key in above:
            parent = parent[key]
        match draw.randrange(6):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[str(last) + "_"] = parent.pop(last)
            case 2 if isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
                parent[last] = draw.choice([-parent[last], parent[last] + 1, parent[last] * 7, parent[last] / 3])
            case 3 if isinstance(parent, list):
                parent.append(draw.choice(VALUES))
            case _:
                parent[last] = draw.choice(VALUES)
    return value


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """Cut, flipped, doubled, or with something put in."""
    at = draw.randint(0, len(content))
    match draw.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[at:]
        case 2:
            return b"\xef\xbb\xbf" + content
        case 3:
            return content[:at] + draw.choice([b"\0", b"\xff\xfe", b"\n\n", b"{", b"\x80" * 9, b": :"]) + content[at:]
        case 4:
            return b"[" * draw.choice([10, 3000, 200_000]) + content
        case 5:
            return content + content
        case 6:
            return draw.randbytes(draw.choice([0, 1, 100, 5000]))
        case _:
            changed = bytearray(content)
            for _ in range(draw.randint(1, 20) if changed else 0):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            return bytes(changed)


def damage_file(path: Path, draw: random.Random, load: Callable[[str], Any] | None, dump: Callable[[Any], str]) -> str:
    """Damages one file in place; says how. `load` reads its values, None: bytes alone."""
    kind = draw.choice(["values"] * 6 + ["bytes"] * 3 + ["odd"]) if load else draw.choice(["bytes"] * 9 + ["odd"])
    if kind == "values":
        assert load is not None
        text = dump(damaged_value(load(path.read_text()), draw))
        path.write_bytes(text.encode(errors="surrogatepass"))
        return f"{path.name} with {text[:3000]}"
    if kind == "bytes":
        content = damaged_bytes(path.read_bytes(), draw)
        path.write_bytes(content)
        return f"{path.name} with {content[:200]!r}"
    path.unlink()
    odd = draw.choice(["missing", "folder", "loop", "broken link"])
    if odd == "folder":
        path.mkdir()
    elif odd != "missing":
        path.symlink_to(path.name if odd == "loop" else "nothing")
    return f"{path.name}: {odd}"


def dump_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) % 7 else text.replace("{", '{"twice": 1, "twice": 2, ', 1)


def tree(folder: Path) -> set[str]:
    """Every path below a folder, with the size of what is a file."""
    return {
        f"{path.relative_to(folder)} {path.lstat().st_size if not path.is_dir() else ''}"
        for root, folders, files in os.walk(folder)
        for path in [Path(root, name) for name in folders + files]
    }
