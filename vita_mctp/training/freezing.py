"""Which weights a stage trains: the MCTP blocks alone in stages 2 and 3, everything in 1 and 4, or adapters.

VITA-Audio paper, section 3.3. The audio encoder of VITA-Audio-Plus stays as it was in every stage. Low-rank adapters
(peft) are for fine-tuning on one GPU: put in before training, merged into the weights after it.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.training.family import Model, is_block_parameter, is_encoder_parameter
from vita_mctp.training.recipe import LoraRecipe

_ADAPTED = re.compile(r"(?:.*\.)?(?:[qkvo]_proj|gate_proj|up_proj|down_proj)|mtp_projs\.\d+")


def set_trainable(model: Model, *, freeze_backbone: bool) -> int:
    """Set `requires_grad` on every parameter and return the number of trainable values, counted afterwards.

    MCTP parameters are always trained. Raises ConfigError when what is trainable is not what was asked for, as with
    tied or shared parameters.
    """
    wanted = 0
    for name, parameter in model.named_parameters():
        frozen = freeze_backbone or is_encoder_parameter(name)
        train = not frozen or is_block_parameter(model.config, name)
        parameter.requires_grad_(train)
        wanted += parameter.numel() if train else 0
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if trainable != wanted or trainable == 0:
        raise ConfigError(f"{trainable} parameter values are trainable, wanted {wanted} (and more than none)")
    return trainable


def add_adapters(model: Model, recipe: LoraRecipe) -> tuple[Any, int]:
    """The model with adapters on every linear layer of backbone and blocks, and the number of weights they train.

    Raises:
        ConfigError: something else than the adapters is trainable.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError('adapters need the package peft: pip install "vita-mctp[train]"') from error
    wanted = adapter_weights(model, recipe)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=_ADAPTED.pattern
    )
    adapted = get_peft_model(model, config)
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    if trainable != wanted:
        raise ConfigError(f"{trainable} values are trainable, the adapters have {wanted}; check peft's version")
    return adapted, trainable


def adapter_weights(model: nn.Module, recipe: LoraRecipe) -> int:
    """Weights of all adapters: two thin matrices beside each adapted one."""
    adapted = [each for name, each in model.named_modules() if _ADAPTED.fullmatch(name) and isinstance(each, nn.Linear)]
    return sum(recipe.rank * (each.in_features + each.out_features) for each in adapted)


def merge_adapters(adapted: Any) -> Model:
    """The plain model with what the adapters learned added to its weights."""
    merged: Model = adapted.merge_and_unload()
    return merged
