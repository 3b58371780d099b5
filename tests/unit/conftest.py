"""Fixtures for models small enough to compute with in a test, and lively enough not to repeat themselves."""

from collections.abc import Callable

import pytest
import torch

from vita_mctp.models.vita.configuration import VitaMctpConfig
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM

TINY_VOCAB = 48


def random_model(
    seed: int, num_blocks: int, *, tied: bool = False, attn: str = "sdpa", max_positions: int = 512
) -> VitaMctpForCausalLM:
    """A model of 1 or 2 backbone layers in float64, weights N(0, 1.5 / sqrt(fan in)) so that greedy output varies."""
    config = VitaMctpConfig(
        vocab_size=TINY_VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=1 + seed % 2 + num_blocks,
        num_nextn_predict_layers=num_blocks,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        attn_implementation=attn,
    )
    model = VitaMctpForCausalLM(config).to(torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                fan_in = 1 if "embed_tokens" in name else weight.shape[1]
                weight.normal_(0, 1.5 * fan_in**-0.5, generator=generator)
    return model


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., VitaMctpForCausalLM]:
    """`random_model(seed, num_blocks, tied=, attn=, max_positions=)`; ids run from 0 to 47."""
    return random_model
