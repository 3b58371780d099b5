"""Metrics of the log, and the arithmetic that MFU is a fraction of."""

from __future__ import annotations

import pytest
import torch

from vita_mctp.models.vita import VITA, VitaMctpConfig, VitaMctpForCausalLM
from vita_mctp.models.vita.modeling import VitaMctpOutput
from vita_mctp.training.plan import peak_flops
from vita_mctp.training.trainer import Window, curve_line


def config(num_blocks: int) -> VitaMctpConfig:
    return VitaMctpConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3 + num_blocks,
        num_nextn_predict_layers=num_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def matrices(model: VitaMctpForCausalLM, *, without: str) -> int:
    """Weights that multiply: all matrices but the embedding table and those whose name holds `without`."""
    named = model.named_parameters()
    return sum(w.numel() for n, w in named if w.ndim == 2 and "embed_tokens" not in n and without not in n)


def test_flops_are_six_a_weight_when_all_is_trained_and_attention_is_short() -> None:
    got = VITA.flops_per_token(config(0), backbone_trains=True, context=0)
    assert got == 6 * matrices(VitaMctpForCausalLM(config(0)), without="none")
    longer = VITA.flops_per_token(config(0), backbone_trains=True, context=100)
    assert longer - got == 3 * 6 * 16 * 100, "PaLM: 12 * layers * hidden * context, half of it causal"


def test_a_frozen_backbone_runs_forward_only() -> None:
    model = VitaMctpForCausalLM(config(2))
    head = model.lm_head.weight.numel()
    frozen = matrices(VitaMctpForCausalLM(config(0)), without="lm_head")
    blocks = matrices(model, without="lm_head") - frozen
    wanted = 2 * frozen + 6 * blocks + head * (2 + 2 * 4)
    assert VITA.flops_per_token(config(2), backbone_trains=False, context=0) == wanted


def test_devices_are_known_by_a_part_of_their_name() -> None:
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H20") == 148e12 and peak_flops("some CPU") is None


def test_a_window_gives_losses_per_target_whatever_they_were_divided_by() -> None:
    window = Window()
    for items in (10, None):
        divided = torch.tensor([4.0, 6.0]) * (torch.tensor([8, 4]) / items if items else 1)
        output = VitaMctpOutput(
            lm_loss=divided[0],
            mtp_losses=(divided[1],),
            num_targets=torch.tensor([8, 4]),
            num_correct=torch.tensor([2, 4]),
        )
        window.add(output, items)
    window.add_tokens(100)
    found = window.metrics(lambda sums: sums, flops_per_token=5.0, peak_flops=1000.0)
    assert found["lm_loss"] == pytest.approx(4.0) and found["block0_loss"] == pytest.approx(6.0)
    assert found["lm_accuracy"] == pytest.approx(0.25) and found["block0_accuracy"] == 1.0
    assert found["mfu"] == pytest.approx(found["tokens_per_second"] * 5 / 1000)
    line = curve_line(7, 100, found | {"loss": 5.0, "learning_rate": 1e-3, "grad_norm": 2.0})
    assert line.startswith(
        "step 7 tokens 100 loss 5.000000 lm 4.0000 acc 0.250 mctp 6.000 acc 1.00 lr 1.00e-03 grad 2.000"
    )
