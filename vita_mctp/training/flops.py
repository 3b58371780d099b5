"""How much arithmetic a stage is, and how much a device can do. L backbone layers, K blocks, H hidden, V vocabulary."""

from __future__ import annotations

from vita_mctp.models.vita.configuration import VitaMctpConfig

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 2, 2, 2
"""FLOPs of one weight for one token in each pass (Kaplan et al., arXiv 2001.08361, section 2.1)."""

PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "H20": 148e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16, from NVIDIA's data sheets, by a part of the device's name. Looked up in this order."""


def peak_flops(device_name: str) -> float | None:
    """Of one device in bfloat16; None for one that is not in the table."""
    return next((flops for name, flops in PEAK_BF16_FLOPS.items() if name in device_name), None)


def flops_per_token(config: VitaMctpConfig, *, backbone_trains: bool, context: int) -> float:
    """FLOPs that training needs for one token, without recomputation.

    A frozen backbone is run forward only, and a frozen head gives its input's gradient alone. Attention takes
    4 * H * context / 2 FLOPs forward in each layer, causal (PaLM, arXiv 2204.02311, appendix B).

    Args:
        context: tokens of one sample.
    """
    layer, block, head = layer_weights(config), block_weights(config), config.hidden_size * config.vocab_size
    attention = FORWARD * config.hidden_size * context
    trained = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT
    backbone = trained if backbone_trains else FORWARD
    level_head = trained if backbone_trains else FORWARD + INPUT_GRADIENT
    backbone_flops = config.num_backbone_layers * (layer * backbone + attention * backbone / FORWARD)
    block_flops = config.num_nextn_predict_layers * (block * trained + attention * trained / FORWARD)
    heads = head * (backbone + config.num_nextn_predict_layers * level_head)
    return float(backbone_flops + block_flops + heads)


def layer_weights(config: VitaMctpConfig) -> int:
    """Weights of one decoder layer's matrices."""
    size, heads = config.hidden_size, config.num_attention_heads
    keys = config.num_key_value_heads * (size // heads)
    return 2 * size * size + 2 * size * keys + 3 * size * config.intermediate_size


def block_weights(config: VitaMctpConfig) -> int:
    """Weights of one MCTP block's matrices: a layer and the projection of two halves."""
    return layer_weights(config) + 2 * config.hidden_size**2
