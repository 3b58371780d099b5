"""Which weights a stage trains, in which groups, by which optimizer (AdamW, or Muon beside it), at which rate.

Trained are the MCTP blocks alone in stages 2 and 3, everything in 1 and 4 (VITA-Audio paper, section 3.3), or low-rank
adapters (peft), for fine-tuning on one GPU: put in before training, merged into the weights after it.

Groups follow the released scripts: backbone and MCTP parameters apart, each split by weight decay, which spares biases
only (RMSNorm weights, embeddings and head are decayed) unless the recipe spares the norms too.

Muon: momentum whose update is orthogonalised (Jordan et al. 2024), scaled to the RMS of AdamW's (Liu et al., arXiv
2502.16982), so that a rate means the same for both. It iterates in bfloat16, slowly on processors that lack it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.models.registry import ModelFamily, family_of
from vita_mctp.training.recipe import LoraRecipe, OptimizerRecipe, ScheduleRecipe

_NOT_HIDDEN = ("embed_tokens", "lm_head")


def set_trainable(model: Any, *, freeze_backbone: bool, parts: Sequence[str] = ()) -> int:
    """Sets `requires_grad` on every parameter and returns the number of trainable values, counted afterwards.

    Blocks are always trained, of the family's own parts those named. Raises ConfigError when what is trainable is not
    what was asked for, as with tied or shared parameters, and for an unknown part.
    """
    family, chosen = family_of(model.config.model_type), 0
    _modules_of(family, parts)
    for name, parameter in model.named_parameters():
        part = next((part for part, module in family.parts.items() if f"{module}." in name), None)
        frozen = (freeze_backbone if part is None else part not in parts) or family.is_never_trained(name)
        train = not frozen or family.is_block_parameter(model.config, name)
        parameter.requires_grad_(train)
        chosen += parameter.numel() if train else 0
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if trainable != chosen or trainable == 0:
        raise ConfigError(f"{trainable} parameter values are trainable, wanted {chosen} (and more than none)")
    return trainable


def _modules_of(family: ModelFamily, parts: Sequence[str]) -> list[str]:
    """Names of the family's parts' modules. Raises ConfigError for an unknown part."""
    if unknown := [part for part in parts if part not in family.parts]:
        raise ConfigError(f"trains: got {unknown[0]!r}; wanted of {', '.join(family.parts) or 'nothing'}")
    return [family.parts[part] for part in parts]


def add_adapters(model: Any, recipe: LoraRecipe, parts: Sequence[str] = ()) -> tuple[Any, int]:
    """The model with adapters on every linear layer of backbone and blocks, and the number of weights they train.

    parts: of the family's, that are trained whole beside them, in float32.

    Raises:
        ConfigError: something else than the adapters is trainable.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError('adapters need the package peft: pip install "vita-mctp[train]"') from error
    family, values = family_of(model.config.model_type), adapter_weights(model, recipe, parts)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=family.shrinks.pattern,
        modules_to_save=_modules_of(family, parts) or None,
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    if trainable != values:
        raise ConfigError(f"{trainable} values are trainable, the adapters have {values}; check peft's version")
    return adapted, trainable


def adapter_weights(model: Any, recipe: LoraRecipe, parts: Sequence[str] = ()) -> int:
    """Weights of all adapters, two thin matrices beside each adapted one, and of the parts trained whole."""
    family = family_of(model.config.model_type)
    adapted, whole = family.shrinks, tuple(f"{module}." for module in _modules_of(family, parts))
    layers = [each for name, each in model.named_modules() if adapted.fullmatch(name) and isinstance(each, nn.Linear)]
    own = sum(each.numel() for name, each in model.named_parameters() if any(module in name for module in whole))
    return own + sum(recipe.rank * (each.in_features + each.out_features) for each in layers)


def split_groups(
    config: Any, named: Iterable[tuple[str, nn.Parameter]], lr: float, recipe: OptimizerRecipe
) -> list[dict[str, Any]]:
    """The trainable ones of `named` as backbone decay, backbone no-decay, MCTP decay, MCTP no-decay; none empty.

    In the form that torch optimizers take. lr: the backbone's.
    """
    is_block = family_of(config.model_type).is_block_parameter
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (mctp, decayed): [] for mctp in (False, True) for decayed in (True, False)
    }
    for name, parameter in named:
        if parameter.requires_grad:
            groups[is_block(config, name), _is_decayed(name, recipe)].append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * recipe.mctp_lr_multiplier if mctp else lr,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (mctp, decayed), parameters in groups.items()
        if parameters
    ]


def _is_decayed(name: str, recipe: OptimizerRecipe) -> bool:
    return "bias" not in name and (recipe.decay_norms or "norm" not in name)


def build_optimizer(model: nn.Module, config: Any, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Over the trainable parameters of `model`, which may be wrapped; groups as `split_groups` makes them."""
    named = list(model.named_parameters())
    hidden = {name for name, parameter in named if recipe.name == "muon" and _is_hidden_matrix(name, parameter)}
    parts: list[torch.optim.Optimizer] = []
    if others := split_groups(config, [(n, p) for n, p in named if n not in hidden], recipe.lr, recipe):
        parts.append(torch.optim.AdamW(others, betas=recipe.betas, eps=recipe.eps, fused=True))
    if hidden:
        groups = split_groups(config, [(n, p) for n, p in named if n in hidden], recipe.muon_lr or 0.0, recipe)
        parts.append(torch.optim.Muon(groups, momentum=recipe.muon_momentum, adjust_lr_fn="match_rms_adamw"))
    return parts[0] if recipe.name == "adamw" else SideBySide(parts)


class SideBySide(torch.optim.Optimizer):
    """Several optimizers over different parameters, stepped, saved and scheduled as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and parameter.requires_grad and not any(part in name for part in _NOT_HIDDEN)


def lr_factor(step: int, max_steps: int, schedule: ScheduleRecipe) -> float:
    """What every group's rate is multiplied with at `step` (0-based) of `max_steps`; in (0, 1] until the end."""
    warmup = max(1, math.ceil(schedule.warmup_ratio * max_steps))
    if step < warmup:
        return (step + 1) / warmup
    shape = _cosine(step, warmup, max_steps) if schedule.kind == "cosine" else _plateau(step, max_steps, schedule)
    return schedule.final_lr_fraction + (1 - schedule.final_lr_fraction) * shape


def _cosine(step: int, warmup: int, max_steps: int) -> float:
    progress = (step - warmup) / max(1, max_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _plateau(step: int, max_steps: int, schedule: ScheduleRecipe) -> float:
    decay = max(1, round((schedule.decay_fraction or 0.0) * max_steps))
    return min(1.0, max(0.0, (max_steps - step) / decay))
