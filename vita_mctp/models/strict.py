"""transformers' own loader made strict, for the model classes of every family."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, logging

from vita_mctp.errors import CheckpointError
from vita_mctp.schema import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_PROBLEMS = {
    "missing_keys": ("lacks", "the config wants it (new MCTP blocks are made by load_model(num_mctp_blocks=...))"),
    "unexpected_keys": ("holds", "the config describes no such tensor"),
}


class StrictLoading(_Base):
    """Stands before transformers' class: every tensor must be there, none left over, only safetensors are read."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.generation_config = GenerationConfig()

    @classmethod
    def can_generate(cls) -> bool:
        """False: `vita_mctp.decoding` decodes, not transformers' generate()."""
        return False

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Raises CheckpointError for a tensor that is missing, surplus or misshapen, and for another class's model."""
        cls._refuse_other_model(Path(name), kwargs.get("config"))
        wants_info = kwargs.pop("output_loading_info", False)
        strict = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            with quiet_transformers():
                model, info = super().from_pretrained(name, *args, **(kwargs | strict))
        except (SafetensorError, OSError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{name} cannot be read ({reason}): get it again") from error
        refuse_incomplete(name, info)
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        if model.config.tie_word_embeddings and head is not None and head.weight is not embeddings.weight:
            raise CheckpointError(f"{name}: the config ties the head, but lm_head.weight differs from the embeddings")
        hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
        try:
            model.generation_config = GenerationConfig.from_pretrained(name, _from_model_config=None, **hub)
        except (OSError, RecursionError) as error:  # a checkpoint without generation settings keeps the defaults
            if (damaged := Path(name) / GENERATION_CONFIG_NAME).is_file():
                raise CheckpointError(f"{damaged} is damaged ({error}): download it again") from error
        return (model, info) if wants_info else model

    @classmethod
    def _refuse_other_model(cls, folder: Path, config: Any) -> None:
        if config is None and not (folder / "config.json").is_file():  # a hub id
            return
        kind = config.model_type if config else dict(read_json(folder / "config.json")).get("model_type")
        if kind != cls.config_class.model_type:
            raise CheckpointError(
                f"{folder} holds a {kind} model, {cls.__name__} wants {cls.config_class.model_type}: open it with "
                "load_model, which picks the class"
            )

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """As transformers', and the generation settings (decoding mode, sampling) beside the weights."""
        with quiet_transformers():
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self.generation_config.save_pretrained(save_directory)


def cache_argument(layer: type[Any]) -> str:
    """What a transformers decoder layer calls its cache: 5.24 renamed it."""
    return "cache" if "cache" in signature(layer.forward).parameters else "past_key_values"


def make_known(model_class: Any) -> None:
    """Registers a model with transformers' AutoConfig and AutoModelForCausalLM."""
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class, exist_ok=True)
    AutoModelForCausalLM.register(model_class.config_class, model_class, exist_ok=True)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars, and its loading report: here that becomes one error."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


def refuse_incomplete(name: str | Path, loaded: Mapping[str, Any]) -> None:
    """loaded: transformers' loading info. Raises CheckpointError for a tensor missing, surplus or misshapen."""
    for tensor, stored, described in sorted(loaded["mismatched_keys"]):
        raise CheckpointError(f"{name}: {tensor} has shape {tuple(stored)}, the config wants {tuple(described)}")
    for problem, (verb, reason) in _PROBLEMS.items():
        if tensors := sorted(loaded[problem]):
            others = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise CheckpointError(f"{name} {verb} {tensors[0]}{others}: {reason}")
