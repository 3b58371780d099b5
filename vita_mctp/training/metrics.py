"""What a run's log says: loss and accuracy of each level, tokens a second, MFU. K blocks: level 0 is the backbone.

L backbone layers, H hidden, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from vita_mctp.training.family import Config, Output

Sum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 2, 2, 2
"""FLOPs of one weight for one token in each pass (Kaplan et al., arXiv 2001.08361, section 2.1)."""

PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "H20": 148e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16, from NVIDIA's data sheets, by a part of the device's name. Looked up in this order."""


class Window:
    """Sums of one process since the last line of the log."""

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self._sums = torch.zeros(4, num_levels, dtype=torch.float64, device=device)
        """Rows: loss summed over targets, targets, right predictions, targets whose prediction was looked at."""
        self._tokens = 0
        self._started = time.monotonic()

    def add_tokens(self, tokens: int) -> None:
        """Tokens that all processes together are about to train on."""
        self._tokens += tokens

    def add(self, output: Output, num_items: Tensor | int | None) -> None:
        """The levels' losses of one forward pass. num_items: denominator of its losses; None: each level's targets."""
        assert output.lm_loss is not None and output.mtp_losses is not None and output.num_targets is not None
        losses = torch.stack([output.lm_loss, *output.mtp_losses]).detach()
        self._sums[0] += losses * (output.num_targets if num_items is None else num_items)
        self._sums[1] += output.num_targets
        if output.num_correct is not None:
            self._sums[2] += output.num_correct
            self._sums[3] += output.num_targets

    def metrics(self, total: Sum, flops_per_token: float, peak_flops: float | None) -> dict[str, float]:
        """Loss per target and accuracy of each level, over all processes; tokens per second and MFU of all together.

        MFU, model FLOPs utilisation, as in PaLM (arXiv 2204.02311, appendix B): the FLOPs that the model needs, without
        recomputation, over what the hardware could do. peak_flops: of all processes' devices together.
        """
        nats, targets, correct, looked_at = total(self._sums).tolist()
        names = ["lm", *(f"block{k}" for k in range(len(nats) - 1))]
        found = {f"{name}_loss": nats[n] / max(1, targets[n]) for n, name in enumerate(names)}
        if any(looked_at):
            found |= {f"{name}_accuracy": correct[n] / max(1, looked_at[n]) for n, name in enumerate(names)}
        speed = self._tokens / (time.monotonic() - self._started)
        found["tokens_per_second"] = speed
        if peak_flops is not None:
            found["mfu"] = speed * flops_per_token / peak_flops
        return found


def curve_line(step: int, tokens: int, logs: dict[str, float]) -> str:
    """One line of the text log from the metrics of a window."""
    blocks = range(sum(name.startswith("block") and name.endswith("_loss") for name in logs))
    words = [f"step {step} tokens {tokens} loss {logs['loss']:.6f} lm {logs['lm_loss']:.4f}"]
    if "lm_accuracy" in logs:
        words.append(f"acc {logs['lm_accuracy']:.3f}")
    if blocks:
        words.append("mctp " + " ".join(f"{logs[f'block{k}_loss']:.3f}" for k in blocks))
        if "lm_accuracy" in logs:
            words.append("acc " + " ".join(f"{logs[f'block{k}_accuracy']:.2f}" for k in blocks))
    words.append(f"lr {logs['learning_rate']:.2e} grad {logs.get('grad_norm', float('nan')):.3f}")
    words.append(f"tok/s {logs['tokens_per_second']:.0f}" + (f" mfu {logs['mfu']:.3f}" if "mfu" in logs else ""))
    return " ".join(words)


def peak_flops(device_name: str) -> float | None:
    """Of one device in bfloat16; None for one that is not in the table."""
    return next((flops for name, flops in PEAK_BF16_FLOPS.items() if name in device_name), None)


def flops_per_token(config: Config, *, backbone_trains: bool, context: int) -> float:
    """FLOPs that training needs for one token, without recomputation.

    A frozen backbone is run forward only, and a frozen head gives its input's gradient alone. Attention takes
    4 * H * context / 2 FLOPs forward in each layer, causal (PaLM, arXiv 2204.02311, appendix B).

    Args:
        context: tokens of one sample.
    """
    layer, block, head = _layer_weights(config), _block_weights(config), config.hidden_size * config.vocab_size
    attention = FORWARD * config.hidden_size * context
    trained = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT
    backbone = trained if backbone_trains else FORWARD
    level_head = trained if backbone_trains else FORWARD + INPUT_GRADIENT
    backbone_flops = config.num_backbone_layers * (layer * backbone + attention * backbone / FORWARD)
    block_flops = config.num_nextn_predict_layers * (block * trained + attention * trained / FORWARD)
    heads = head * (backbone + config.num_nextn_predict_layers * level_head)
    return float(backbone_flops + block_flops + heads)


def _layer_weights(config: Config) -> int:
    """Weights of one decoder layer's matrices."""
    size, heads = config.hidden_size, config.num_attention_heads
    keys = config.num_key_value_heads * (size // heads)
    return 2 * size * size + 2 * size * keys + 3 * size * config.intermediate_size


def _block_weights(config: Config) -> int:
    """Weights of one MCTP block's matrices: a layer and the projection of two halves."""
    return _layer_weights(config) + 2 * config.hidden_size**2
