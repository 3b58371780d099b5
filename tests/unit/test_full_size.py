"""The full-size language models on the meta device: their parameters against what is known of Qwen2.5 and the paper.

The paper (table 4) says "7B" of the models and "0.5B" of the smallest (table 8): that is the backbone's name, without
blocks and audio ids. Qwen2.5's own cards state 7.61 B (6.53 B without embeddings) and 0.49 B (0.36 B).
"""

from __future__ import annotations

import pytest
import torch

from vita_mctp.models.vita import VitaMctpConfig, VitaMctpForCausalLM, is_mctp_parameter

SIZES = {
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 38,
        "tie_word_embeddings": False,
    },
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "num_hidden_layers": 34,
        "tie_word_embeddings": True,
    },
}
RELEASED_VOCABULARY, QWEN_VOCABULARY = 168_072, {"7B": 152_064, "0.5B": 151_936}


def full_size(name: str) -> VitaMctpForCausalLM:
    with torch.device("meta"):
        return VitaMctpForCausalLM(
            VitaMctpConfig(vocab_size=RELEASED_VOCABULARY, num_nextn_predict_layers=10, **SIZES[name])
        )


@pytest.mark.parametrize(
    ("name", "total", "body", "blocks", "stated"),
    [
        ("7B", 10_317_912_576, 6_525_621_760, 2_587_550_720, 7.61e9),
        ("0.5B", 673_688_704, 357_898_112, 165_198_080, 0.49e9),
    ],
)
def test_parameters(name: str, total: int, body: int, blocks: int, stated: float) -> None:
    model = full_size(name)
    counts = {key: parameter.numel() for key, parameter in model.named_parameters()}
    mctp = sum(count for key, count in counts.items() if is_mctp_parameter(model.config, key))
    ids = sum(count for key, count in counts.items() if "embed_tokens" in key or "lm_head" in key)
    assert (sum(counts.values()), sum(counts.values()) - mctp - ids, mctp) == (total, body, blocks)
    as_qwen = body + ids * QWEN_VOCABULARY[name] // RELEASED_VOCABULARY
    assert as_qwen == pytest.approx(stated, rel=0.01)


@pytest.mark.parametrize("name", SIZES)
def test_a_block_is_a_layer_a_projection_and_two_norms(name: str) -> None:
    model = full_size(name)
    hidden = model.config.hidden_size
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters() if "model.layers.0." in key}
    blocks = sum(p.numel() for key, p in model.named_parameters() if is_mctp_parameter(model.config, key))
    assert blocks == 10 * (sum(sizes.values()) + 2 * hidden * hidden + 2 * hidden)
    assert len(list(model.named_parameters())) == 12 * model.config.num_hidden_layers + 30 + (3 if name == "7B" else 2)
