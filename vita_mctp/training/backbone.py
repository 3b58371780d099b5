"""A small backbone from scratch, and the first values of its audio embeddings. V vocabulary, H hidden, D levels."""

from __future__ import annotations

from math import prod
from typing import cast

import torch
from torch import Tensor

from vita_mctp.models.vita.configuration import VitaMctpConfig
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM
from vita_mctp.text.vocabulary import Vocabulary
from vita_mctp.training.recipe import ModelShape

_OWN_SHARE = 0.3
"""Spread of an audio embedding's own part, relative to what it shares with its neighbours on the grid."""


def build_backbone(shape: ModelShape, vocabulary: Vocabulary, *, seed: int, attention: str) -> VitaMctpForCausalLM:
    """A randomly initialised model without MCTP blocks, reproducible from `seed`; leaves the global generator alone."""
    config = VitaMctpConfig(
        vocab_size=vocabulary.padded_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_nextn_predict_layers=0,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads or shape.num_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tie_word_embeddings,
        speech_token_offset=vocabulary.audio_0,
        eos_token_id=vocabulary.im_end,
        pad_token_id=vocabulary.pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VitaMctpForCausalLM._from_config(config, attn_implementation=attention)
        if shape.audio_code_levels is not None:
            codes = slice(vocabulary.audio_0, vocabulary.size)
            grid = grid_embeddings(shape.audio_code_levels, shape.hidden_size, config.initializer_range)
            with torch.no_grad():
                model.model.embed_tokens.weight[codes] = grid
    return cast(VitaMctpForCausalLM, model)


def grid_embeddings(levels: tuple[int, ...], hidden_size: int, std: float) -> Tensor:
    """(prod(levels), H) embeddings of a finite scalar quantiser's codes, near for codes that are near on its grid.

    Each is the sum, over the grid's D dimensions, of a direction times the coordinate and a vector of its level, and
    a part of its own. Digit d of a code counts units of levels[0] * .. * levels[d-1].
    """
    codes, unit = torch.arange(prod(levels)), 1
    total = torch.zeros(len(codes), hidden_size)
    for count in levels:
        digit = codes // unit % count
        unit *= count
        coordinate = 2 * digit / (count - 1) - 1
        total += coordinate[:, None] * torch.randn(hidden_size) + torch.randn(count, hidden_size)[digit]
    total = total / total.std() + _OWN_SHARE * torch.randn_like(total)
    return total * (std / total.std())
