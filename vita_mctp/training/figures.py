"""What a run's log says: losses and accuracies per level, tokens a second, MFU. K blocks, so K+1 levels."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from vita_mctp.models.vita.modeling import VitaMctpOutput

Sum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


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

    def add(self, output: VitaMctpOutput, num_items: Tensor | int | None) -> None:
        """The levels' losses of one forward pass. num_items: denominator of its losses; None: each level's targets."""
        assert output.lm_loss is not None and output.mtp_losses is not None and output.num_targets is not None
        losses = torch.stack([output.lm_loss, *output.mtp_losses]).detach()
        self._sums[0] += losses * (output.num_targets if num_items is None else num_items)
        self._sums[1] += output.num_targets
        if output.num_correct is not None:
            self._sums[2] += output.num_correct
            self._sums[3] += output.num_targets

    def figures(self, total: Sum, flops_per_token: float, peak_flops: float | None) -> dict[str, float]:
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
    """One line of the text log from the figures of a window."""
    blocks = range(sum(name.startswith("block") and name.endswith("_loss") for name in logs))
    figures = [f"step {step} tokens {tokens} loss {logs['loss']:.6f} lm {logs['lm_loss']:.4f}"]
    if "lm_accuracy" in logs:
        figures.append(f"acc {logs['lm_accuracy']:.3f}")
    if blocks:
        figures.append("mctp " + " ".join(f"{logs[f'block{k}_loss']:.3f}" for k in blocks))
        if "lm_accuracy" in logs:
            figures.append("acc " + " ".join(f"{logs[f'block{k}_accuracy']:.2f}" for k in blocks))
    figures.append(f"lr {logs['learning_rate']:.2e} grad {logs.get('grad_norm', float('nan')):.3f}")
    figures.append(f"tok/s {logs['tokens_per_second']:.0f}" + (f" mfu {logs['mfu']:.3f}" if "mfu" in logs else ""))
    return " ".join(figures)
