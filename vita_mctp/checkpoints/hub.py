"""Repositories of the Hugging Face hub as local folders, or one line that says why not and what to do.

What is in the local cache is never asked for again. `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_HOME` are huggingface_hub's
own settings and work here too; a download that was cut off goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vita_mctp.checkpoints.released import MODEL_FILES, MODEL_PATTERNS, RELEASED, Repository, missing_files
from vita_mctp.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SHARD_INDEX = "model.safetensors.index.json"


def repository(hub_id: str) -> Repository:
    """What is known of a hub id; of an unknown one, that it holds a model."""
    unknown = Repository(hub_id, "not one of the released", "size unknown", "see its page", MODEL_FILES, MODEL_PATTERNS)
    return RELEASED.get(hub_id, unknown)


def fetch(wanted: Repository) -> Path:
    """The folder of a repository: out of the local cache, or downloaded into it.

    Raises:
        CheckpointError: it cannot be had, or is half downloaded and the rest cannot be had.
        ConfigError: the hub id cannot be one.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        folder = _in_cache(wanted)
        if folder is None or absent(folder, wanted):
            folder = _download(wanted)
    except HFValidationError as error:
        raise ConfigError(f"{wanted.id!r} is no hub id: {_one_line(error)}; give owner/name") from None
    if lacking := absent(folder, wanted):
        raise CheckpointError(
            f"{wanted.id} is half downloaded: {folder} lacks {_some(lacking)}; go on with: {wanted.how_to_get}"
        )
    return folder


def absent(folder: Path, wanted: Repository) -> list[str]:
    """Files that a folder lacks to be a copy of `wanted`, shards that its index names included."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    lacking = missing_files(names, wanted.required)
    if _SHARD_INDEX in names and "model.safetensors" not in names:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # damage is named by the loader
            placed = json.loads((folder / _SHARD_INDEX).read_bytes())["weight_map"]
            lacking += sorted(set(placed.values()) - names)
    return lacking


def _in_cache(wanted: Repository) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(wanted.id, allow_patterns=list(wanted.patterns), local_files_only=True))
    return None


def _download(wanted: Repository) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    transport_error = cast(
        "type[Exception]", HfHubHTTPError.__mro__[1]
    )  # of the HTTP library that this huggingface_hub is built on
    try:
        return Path(snapshot_download(wanted.id, allow_patterns=list(wanted.patterns)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_unreachable(wanted)) from error
    except HfHubHTTPError as error:
        raise CheckpointError(_refused(wanted, error)) from error
    except (OSError, transport_error) as error:
        raise CheckpointError(
            f"the download of {wanted.id} stopped ({_one_line(error)}); it goes on with: {wanted.how_to_get}"
        ) from error


def _unreachable(wanted: Repository) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub cannot be reached"
    return (
        f"{wanted.id} is neither a folder here nor whole in the Hugging Face cache, and {why}; "
        f"get it where there is a network with: {wanted.how_to_get}"
    )


def _refused(wanted: Repository, error: HfHubHTTPError) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"{wanted.id} is gated: accept its terms at https://huggingface.co/{wanted.id}, log in with: "
            f"hf auth login, and then: {wanted.how_to_get}"
        )
    if isinstance(error, RepositoryNotFoundError) or error.response.status_code == 401:
        return (
            f"{wanted.id} is neither a folder here nor a public repository of the hub; check the name, or, if it is "
            f"private, log in with: hf auth login, and then: {wanted.how_to_get}"
        )
    return f"the hub refuses {wanted.id} ({_one_line(error)}); try again later with: {wanted.how_to_get}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
