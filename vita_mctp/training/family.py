"""What training asks of the model family; the only module of `training` that names VITA's classes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from vita_mctp.models.vita.configuration import VitaMctpConfig as Config
from vita_mctp.models.vita.configuration import is_audio_encoder_parameter as is_encoder_parameter
from vita_mctp.models.vita.configuration import is_mctp_parameter as is_block_parameter
from vita_mctp.models.vita.losses import CHUNK_BYTES, SharedHead
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM as Model
from vita_mctp.models.vita.modeling import VitaMctpOutput as Output
from vita_mctp.models.vita.plus import VitaMctpPlusConfig, VitaMctpPlusForCausalLM
from vita_mctp.models.vita.rows import IGNORED
from vita_mctp.training.recipe import ModelShape

__all__ = ["CHUNK_BYTES", "IGNORED", "Config", "Model", "Output", "is_block_parameter", "is_encoder_parameter"]


def build_config(*, hears_features: bool, **sizes: Any) -> Config:
    """sizes: in the terms of the checkpoints' config.json."""
    return (VitaMctpPlusConfig if hears_features else Config)(**sizes)


def sizes_of(shape: ModelShape) -> dict[str, Any]:
    """All that a recipe says of a backbone but its depth, as `build_config` takes it."""
    return {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_key_value_heads or shape.num_heads,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tie_word_embeddings,
    }


def empty_model(config: Config) -> Model:
    """Of the config's class, its weights without storage."""
    with torch.device("meta"):
        return (VitaMctpPlusForCausalLM if isinstance(config, VitaMctpPlusConfig) else Model)(config)


def random_model(config: Config, attention: str) -> Model:
    return cast(Model, Model._from_config(config, attn_implementation=attention))


def hears_features(model: Model) -> bool:
    return isinstance(model, VitaMctpPlusForCausalLM)


def resize_vocabulary(model: Model, size: int, *, seed: int) -> None:
    """Give embeddings and head `size` rows; new ones are drawn around the mean of the old, as transformers does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(size, mean_resizing=True)
    weight = cast(nn.Linear, model.lm_head).weight
    head = SharedHead(1, 1)  # transformers has replaced it by a plain linear layer
    head.in_features, head.out_features, head.weight = weight.shape[1], weight.shape[0], weight
    model.lm_head = head
    model.tie_weights()
