"""Runs one stage of training: `train_stage(recipe, out=...)`, in one process or in each of many."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig

import vita_mctp
from vita_mctp.checkpoints.speech import copy_speech, read_portable
from vita_mctp.data.mixture import Mixture
from vita_mctp.data.row_stream import Pool, RowStream, open_pools
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import family_of
from vita_mctp.schema import read_json
from vita_mctp.text.chat import RELEASED_STYLE
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.training.arguments import (
    Evaluate,
    EvaluateSometimes,
    rank,
    read_deepspeed,
    stdout_to_stderr,
    tensorboard,
    training_arguments,
    world_size,
    zero_stage,
)
from vita_mctp.training.optimizer import add_adapters, set_trainable
from vita_mctp.training.recipe import Recipe, load_recipe
from vita_mctp.training.run_folder import DATA_FILE, RunFolder, TrainingRecord, read_record
from vita_mctp.training.start import check_family, find_parent, released_folder, start_model
from vita_mctp.training.trainer import VitaTrainer

_INTERVALS = frozenset({"log_interval", "checkpoint_interval", "eval_interval", "report_to"})
_MAY_CHANGE = _INTERVALS | {"max_tokens", "max_steps"}


@dataclass(frozen=True)
class TrainingData:
    """What a caller trains on instead of the files that the recipe names.

    Attributes:
        pools: samples by the names of the mixture's sets, rendered with a tokenizer.
        tokenizer: of a model that begins from nothing, written to a folder.
        speech: folder whose speech.json says how a model that begins from nothing hears and speaks; None: none does.
    """

    pools: Callable[[Recipe, TextTokenizer], Mapping[str, Pool]]
    tokenizer: Callable[[Recipe, Path], TextTokenizer]
    speech: Callable[[Recipe], Path | None] = lambda recipe: None


def files_of(recipe_folder: Path) -> TrainingData:
    """What recipes name: sets below `data.root`; for a model from nothing the folder `tokenizer`, speech.json too."""

    def pools(recipe: Recipe, tokenizer: TextTokenizer) -> Mapping[str, Pool]:
        if recipe.data.root is None:
            raise ConfigError(f"{recipe.name}: say where the tokenised sets are: --set data.root=FOLDER")
        mixture = Mixture.from_file(recipe_folder / recipe.data.mixture)
        chat = family_of(recipe.model_type).chat(tokenizer, RELEASED_STYLE)
        return open_pools(mixture, recipe_folder / recipe.data.root, chat, *recipe.data.ratios)

    def tokenizer(recipe: Recipe, _folder: Path) -> TextTokenizer:
        if recipe.tokenizer is None:
            raise ConfigError(f"{recipe.name}: a model from nothing wants a tokenizer: --set tokenizer=FOLDER")
        return TextTokenizer.from_folder(recipe_folder / recipe.tokenizer)

    def speech(recipe: Recipe) -> Path | None:
        return None if recipe.tokenizer is None else recipe_folder / recipe.tokenizer

    return TrainingData(pools, tokenizer, speech)


def train_stage(
    recipe_path: Path,
    data: TrainingData,
    *,
    out: Path,
    settings: Sequence[str] = (),
    resume: bool = True,
    evaluate: Evaluate | None = None,
) -> Path | None:
    """Run one stage, or finish it where it stopped.

    The result is `out/NAME/final`, a checkpoint folder for `load_model` with the tokenizer beside the weights; NAME is
    the recipe's, and a later stage finds it by that name as its parent.

    Args:
        settings: changes of the recipe, see `load_recipe`.
        resume: continue an interrupted run of this name; False deletes it first.
        evaluate: (model, step) -> a line for the log, called as the recipe says.

    Returns:
        The finished checkpoint; None when SIGTERM or Ctrl-C ended the run early, everything saved.

    Raises:
        ConfigError: recipe, mixture or data are wrong or missing.
        CheckpointError: the parent is missing or of another stage, or the recipe changed since the run began.
        OutputError: the run's folder cannot be written.
    """
    recipe = load_recipe(recipe_path, settings)
    if recipe.attention == "flex" and not torch.cuda.is_available():
        raise ConfigError(f"{recipe.name}: attention: flex has no gradients on a CPU; take sdpa, or a GPU")
    folder = RunFolder(out / recipe.name)
    if not resume and rank() == 0:
        folder.clear()  # of several processes the others may see it before it is gone
    if resume and folder.final.exists():
        _check_same_recipe(read_record(folder.final).recipe, recipe.to_json_values(), _INTERVALS)
        return folder.final
    with folder.opened(), stdout_to_stderr():
        newest = folder.newest() if resume else None
        return _Run(recipe, recipe_path.parent, folder, data).finish(out, newest, evaluate)


class _Run:
    """One start of one stage."""

    def __init__(self, recipe: Recipe, recipe_folder: Path, folder: RunFolder, data: TrainingData) -> None:
        self._recipe, self._recipe_folder, self._folder, self._data = recipe, recipe_folder, folder, data

    def finish(self, out: Path, newest: Path | None, evaluate: Evaluate | None) -> Path | None:
        """newest: the checkpoint to go on from."""
        recipe, folder = self._recipe, self._folder
        done = _record(recipe) if newest is None else read_record(newest)
        _check_same_recipe(done.recipe, recipe.to_json_values())
        saved_whole = newest if recipe.lora is None else None  # adapters are put on the parent's model again
        origin = saved_whole or find_parent(recipe, self._recipe_folder, out) or self._released()
        tokenizer = self._tokenizer(origin)
        speaks_as = origin or self._data.speech(recipe)
        if speaks_as is not None:
            read_portable(speaks_as)  # or it would be found damaged at the first checkpoint
        model = start_model(recipe, origin, tokenizer)
        dtype = model.dtype
        model, trainable = self._trainable(model)
        stream = self._stream(tokenizer, newest)
        trainer = VitaTrainer(
            model,
            training_arguments(recipe, folder.root, self._recipe_folder),
            recipe,
            stream,
            folder,
            save=partial(
                save_checkpoint,
                tokenizer=tokenizer,
                mode=family_of(recipe.model_type).inference_mode(recipe.data.interleave_ratio),
                before=lambda: folder.newest() or speaks_as,
            ),
            record=_record(recipe),
            pad_id=tokenizer.vocabulary.pad,
            tokens=done.tokens,
        )
        self._log(done.step, f"{recipe.name}: {trainable} trainable, {recipe.num_steps} steps")
        if rank() == 0:
            for callback in tensorboard(folder.root / "tensorboard", done.step):
                trainer.add_callback(callback)
        if evaluate is not None:
            self._refuse_sharded_evaluation()
            trainer.add_callback(EvaluateSometimes(evaluate, recipe.eval_interval, folder.log))
        if done.step < recipe.num_steps:
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
            if rank() == 0:
                folder.draw()
        if trainer.was_stopped:
            self._log(None, f"stopped at step {trainer.state.global_step}: run the same command again to resume")
            return None
        fill = stream.report.fill(recipe.data.row_length)
        self._log(None, f"{recipe.name}: rows {fill:.1%} full, {stream.report.over_long} samples were over-long")
        if recipe.lora is not None:
            trainer.model = trainer.model.merge_and_unload().to(dtype)
        return trainer.save_final()

    def _trainable(self, model: Any) -> tuple[Any, int]:
        """The model to train, and the number of weights that it trains."""
        if self._recipe.gradient_checkpointing:
            _keep_layer_inputs_only(model)
        if self._recipe.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._recipe.seed)  # else they start from whatever the process drew before
                return add_adapters(model, self._recipe.lora, self._recipe.trains)
        frozen = self._recipe.freeze_backbone
        return model, set_trainable(model, freeze_backbone=frozen, parts=self._recipe.trains)

    def _released(self) -> Path | None:
        return None if self._recipe.model is not None else released_folder(self._recipe, self._recipe_folder)

    def _tokenizer(self, origin: Path | None) -> TextTokenizer:
        if origin is None:
            return self._data.tokenizer(self._recipe, self._folder.root / "tokenizer")
        check_family(self._recipe, origin)
        return family_of(self._recipe.model_type).load_tokenizer(origin)

    def _stream(self, tokenizer: TextTokenizer, newest: Path | None) -> RowStream:
        state = None if newest is None else read_json(newest / DATA_FILE)
        mixture = Mixture.from_file(self._recipe_folder / self._recipe.data.mixture)
        pools = self._data.pools(self._recipe, tokenizer)
        length, processes = self._recipe.data.row_length, world_size()
        return RowStream(mixture, pools, row_length=length, rank=rank(), world_size=processes, state=state)

    def _refuse_sharded_evaluation(self) -> None:
        file = self._recipe.deepspeed
        if file is not None and zero_stage(read_deepspeed(self._recipe_folder / file)) == 3:
            raise ConfigError(f"{file} (ZeRO-3) leaves no process a whole model to evaluate; take ZeRO-2")

    def _log(self, resumed_at: int | None, line: str) -> None:
        if rank() == 0:
            if resumed_at is not None:
                self._folder.cut_log(resumed_at)
            self._folder.log(line)


def save_checkpoint(
    model: nn.Module,
    folder: Path,
    weights: dict[str, Tensor] | None,
    *,
    tokenizer: TextTokenizer,
    mode: Any,
    before: Callable[[], Path | None] = lambda: None,
) -> None:
    """Write what `load_model` and the speech model read: weights, tokenizer, and the mode to decode in.

    mode: None leaves the generation settings as the model has them.
    before: the checkpoint before this one, at first that of the parent, which may say how the model hears and speaks.
    """
    vocabulary = tokenizer.vocabulary
    model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    tokenizer.save(folder)
    if mode is not None:
        defaults = GenerationConfig(
            do_sample=False,
            eos_token_id=list(vocabulary.eos_ids),
            pad_token_id=vocabulary.pad,
            mtp_inference_mode=mode,
        )
        defaults.save_pretrained(folder)
    if (last := before()) is not None:
        copy_speech(last, folder)


def _check_same_recipe(
    saved: dict[str, Any], current: dict[str, Any], may_change: frozenset[str] = _MAY_CHANGE
) -> None:
    """Raises CheckpointError if a run would follow another recipe than the one it began with, or was finished with."""
    changed = [key for key in sorted(current) if key not in may_change and saved.get(key) != current[key]]
    if changed:
        words = "; ".join(f"{key} was {saved.get(key)!r} and is {current[key]!r}" for key in changed)
        raise CheckpointError(f"the recipe changed since this run began ({words}); restore it, or give another --out")


def _keep_layer_inputs_only(model: nn.Module) -> None:
    """Gradient checkpointing, by the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # type: ignore[operator]


def _record(recipe: Recipe) -> TrainingRecord:
    versions = {
        "vita_mctp": vita_mctp.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    return TrainingRecord(
        name=recipe.name, stage=recipe.stage, parent=recipe.parent, recipe=recipe.to_json_values(), versions=versions
    )
