"""Optimizer groups of the four stages, and the optimizer over them: AdamW, or Muon and AdamW side by side.

Groups follow the released scripts: backbone and MCTP parameters apart, each split by weight decay, which spares biases
only (RMSNorm weights, embeddings and head are decayed) unless the recipe spares the norms too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vita_mctp.models.vita.configuration import VitaMctpConfig, is_mctp_parameter
from vita_mctp.training.muon import Muon
from vita_mctp.training.recipe import OptimizerRecipe

_NOT_HIDDEN = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float

    def as_torch(self) -> dict[str, Any]:
        """The form that torch optimizers take."""
        return {"params": list(self.parameters), "lr": self.lr, "weight_decay": self.weight_decay}


def split_groups(
    config: VitaMctpConfig, named: Iterable[tuple[str, nn.Parameter]], lr: float, recipe: OptimizerRecipe
) -> list[ParameterGroup]:
    """The trainable ones of `named` as backbone decay, backbone no-decay, MCTP decay, MCTP no-decay; none empty.

    lr: the backbone's.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    groups = []
    for mctp, decayed in ((False, True), (False, False), (True, True), (True, False)):
        members = [
            (name, parameter)
            for name, parameter in trained
            if is_mctp_parameter(config, name) == mctp and _is_decayed(name, recipe) == decayed
        ]
        if members:
            names, parameters = zip(*members, strict=True)
            rate = lr * recipe.mctp_lr_multiplier if mctp else lr
            groups.append(ParameterGroup(names, parameters, rate, recipe.weight_decay if decayed else 0.0))
    return groups


def _is_decayed(name: str, recipe: OptimizerRecipe) -> bool:
    return "bias" not in name and (recipe.decay_norms or "norm" not in name)


def build_optimizer(model: nn.Module, config: VitaMctpConfig, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Over the trainable parameters of `model`, which may be wrapped; groups as `split_groups` makes them."""
    named = list(model.named_parameters())
    hidden = {name for name, parameter in named if recipe.name == "muon" and _is_hidden_matrix(name, parameter)}
    adamw = split_groups(config, [(n, p) for n, p in named if n not in hidden], recipe.lr, recipe)
    if not hidden:
        return _adamw(adamw, recipe)
    muon = split_groups(config, [(n, p) for n, p in named if n in hidden], recipe.muon_lr or 0.0, recipe)
    return SideBySide([_adamw(adamw, recipe), _muon(muon, recipe)] if adamw else [_muon(muon, recipe)])


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


def _adamw(groups: list[ParameterGroup], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW([g.as_torch() for g in groups], betas=recipe.betas, eps=recipe.eps, fused=True)


def _muon(groups: list[ParameterGroup], recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    precision = torch.bfloat16 if recipe.newton_schulz_precision == "bf16" else torch.float32
    return Muon([g.as_torch() for g in groups], momentum=recipe.muon_momentum, precision=precision)


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and parameter.requires_grad and not any(part in name for part in _NOT_HIDDEN)
