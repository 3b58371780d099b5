"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vita_mctp.errors import OutputError


def write_whole(path: Path, data: bytes) -> None:
    """Puts `data` under `path`, on the disk and in one step. Raises OSError; `path` is then as it was before."""
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")  # ids of processes and threads come again
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # an interrupt must not leave the part behind either
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_output(path: Path, data: bytes) -> None:
    """`write_whole` below folders that are made where they lack. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise cannot_write(path, error) from None


def check_output(path: Path) -> None:
    """Before any work is spent: raises OutputError for a path that `write_output` is bound to fail at."""
    above = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}; wanted a file in a folder that may be written: name another path")


def cannot_write(path: object, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror}; name another path or free some space")
