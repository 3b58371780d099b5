"""A loaded model as a folder of its own, or as a repository of the hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vita_mctp.checkpoints.hub import HUB_ID, MODEL_PATTERNS
from vita_mctp.checkpoints.opening import GENERATION_FILE, OpenedModel
from vita_mctp.checkpoints.speech import SPEECH_FILE
from vita_mctp.checkpoints.weights import copy_others, new_folder
from vita_mctp.errors import ConfigError, OutputError
from vita_mctp.models.registry import SpeechModel

_CARDS = ("README.md", "LICENSE*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", GENERATION_FILE)
_CODECS = "codec"


def save_opened(opened: OpenedModel, model: SpeechModel | None, folder: Path) -> None:
    """Writes a new folder that `open_model` opens. model: its weights in memory; None: they are the origin's.

    Raises OutputError for a folder that holds something or cannot be written, ConfigError for quantised weights.
    """
    origin, weights = opened.folder, model
    with new_folder(folder) as target:
        if weights is not None:
            _save_weights(weights, target)
        kept = (*MODEL_PATTERNS, *_CARDS)

        def chosen(path: Path) -> bool:
            if weights is not None and any(fnmatch(path.name, pattern) for pattern in _WEIGHTS):
                return False
            return path.name == _CODECS or any(fnmatch(path.name, pattern) for pattern in kept)

        copy_others(origin, target, chosen)
        if (origin / SPEECH_FILE).is_file():
            _save_speech(opened, target)


def push_folder(
    save: Callable[[Path], None], repo_id: str, *, private: bool | None, token: str | None, message: str
) -> str:
    """Uploads what `save` writes into a folder to a repository of the hub; its address.

    Raises ConfigError for what is no hub id, OutputError where the hub refuses or cannot be reached.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise ConfigError(f"{repo_id!r} is no hub id; wanted owner/name")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    transport_error: Any = HfHubHTTPError.__mro__[1]  # of huggingface_hub's HTTP library
    with tempfile.TemporaryDirectory(prefix="vita-mctp-") as folder:
        save(Path(folder) / "model")
        api = HfApi(token=token)
        try:
            address = str(api.create_repo(repo_id, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo_id, folder_path=Path(folder) / "model", commit_message=message)
        except (HfHubHTTPError, transport_error, OSError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise OutputError(
                f"cannot upload to {repo_id} ({reason}); wanted a repository that you may write: hf auth login"
            ) from None
    return address


def _save_weights(model: Any, target: Path) -> None:
    import torch

    if any(type(weight.data) is not torch.Tensor for weight in model.parameters()):
        raise ConfigError("quantised weights cannot be saved; load the model without quantize")
    model.save_pretrained(target)


def _save_speech(opened: OpenedModel, target: Path) -> None:
    """speech.json, with codecs that lie elsewhere copied in."""
    settings, origin = opened.speech, opened.folder.resolve()
    for key in ("audio_tokenizer", "audio_decoder"):
        ref = getattr(settings, key)
        source = Path(ref.folder)
        inside = source == origin or origin in source.parents
        name = source.relative_to(origin).as_posix() if inside else f"{_CODECS}/{key}"
        if source != origin and not (target / name).exists():
            shutil.copytree(source, target / name)
        settings = settings.but(**{key: ref.model_copy(update={"folder": name})})
    if (check := settings.self_check) is not None:
        question = Path(check.question).relative_to(opened.folder).as_posix()
        settings = settings.but(self_check=check.model_copy(update={"question": question}))
    settings.write(target)
