"""Every attention kernel computes the same, on packed rows, on filled caches and under explicit masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import DynamicCache
from transformers.integrations import flex_attention as flex_integration

from vita_mctp.errors import ConfigError
from vita_mctp.models.attention import attention_inputs
from vita_mctp.models.vita import VitaMctpForCausalLM

MakeModel = Callable[..., VitaMctpForCausalLM]
KERNELS = ["eager", "sdpa", "flex_attention"]
NEAR = {"rtol": 0, "atol": 1e-5}  # norms and one softmax compute in float32; a leak shows as 0.1 and more
PACKED = [*range(7), *range(1), *range(9), *range(3)]


@pytest.fixture(autouse=True)
def uncompiled_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mathematics without a minute of compiling."""
    monkeypatch.setattr(flex_integration, "WrappedFlexAttention", lambda training: lambda: flex_attention)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return request.param


def random_ids(length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(0, 48, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def test_packed_samples_are_as_if_each_were_alone(make_tiny_model: MakeModel, kernel: str) -> None:
    model = make_tiny_model(1, 3, attn=kernel)
    ids, positions = random_ids(len(PACKED)), torch.tensor([PACKED])
    levels = list(model.chain(ids, positions))
    starts = [index for index, position in enumerate(PACKED) if position == 0]
    for start, end in zip(starts, [*starts[1:], len(PACKED)], strict=True):
        for (rows, packed), (_, alone) in zip(levels, model.chain(ids[:, start:end]), strict=True):
            own = (rows.source[0] >= start) & (rows.source[0] < end)
            if own.any():
                torch.testing.assert_close(packed[0, own], alone[0], **NEAR)


@torch.no_grad()
def test_block_k_joins_a_token_with_the_hidden_state_before_it(make_tiny_model: MakeModel) -> None:
    model, ids, positions = make_tiny_model(1, 3), random_ids(9), torch.arange(9)[None]
    embeds = model.embed(ids)
    hidden = model.backbone(embeds, positions)
    for k, (_, chained) in enumerate(list(model.chain(ids))[1:]):
        hidden = model.block(k, embeds[:, k + 1 :], hidden[:, :-1], positions[:, k + 1 :])
        torch.testing.assert_close(chained, hidden, **NEAR)


@torch.no_grad()
def test_kernels_agree_on_packed_rows(make_tiny_model: MakeModel, kernel: str) -> None:
    ids, positions = random_ids(len(PACKED)), torch.tensor([PACKED])
    expected = list(make_tiny_model(1, 3, attn="eager").chain(ids, positions))
    for (_, hidden), (_, wanted) in zip(
        make_tiny_model(1, 3, attn=kernel).chain(ids, positions), expected, strict=True
    ):
        torch.testing.assert_close(hidden, wanted, **NEAR)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[5, 1, 1, 4], [1, 10], [11]])
def test_several_tokens_on_a_filled_cache_stay_causal(make_tiny_model: MakeModel, kernel: str, cuts: list[int]) -> None:
    model = make_tiny_model(1, 0, attn=kernel)
    embeds, positions = model.embed(random_ids(11)), torch.arange(11)[None]
    whole = model.backbone(embeds, positions)
    cache = DynamicCache()
    ends = torch.tensor(cuts).cumsum(0).tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        part = model.backbone(embeds[:, start:end], positions[:, start:end], cache=cache)
        torch.testing.assert_close(part, whole[:, start:end], **NEAR)


@torch.no_grad()
@pytest.mark.parametrize("additive", [False, True])
def test_an_explicit_mask_rules(make_tiny_model: MakeModel, kernel: str, additive: bool) -> None:
    """Left padding hidden by a mask, bool or additive, leaves the other positions as they are without it."""
    model = make_tiny_model(1, 0, attn=kernel)
    embeds, positions = model.embed(random_ids(9)), torch.arange(9)[None]
    padded = torch.cat([torch.randn(1, 4, 16, dtype=embeds.dtype), embeds], dim=1)
    padded_positions = torch.cat([torch.zeros(1, 4, dtype=torch.long), positions], dim=1)
    mask = torch.ones(1, 1, 13, 13, dtype=torch.bool).tril()
    mask[..., 4:, :4] = False
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    hidden = model.backbone(padded, padded_positions, attention_mask=mask)
    torch.testing.assert_close(hidden[:, 4:], model.backbone(embeds, positions), **NEAR)


def test_flash_gets_the_bounds_of_packed_samples_and_refuses_masks() -> None:
    inputs = attention_inputs("flash_attention_2", torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]), torch.bfloat16)
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [0, 3, 5, 9, 10]
    assert inputs["max_length_q"] == inputs["max_length_k"] == 4
    assert attention_inputs("flash_attention_2", torch.arange(4)[None], torch.bfloat16) == {"attention_mask": None}
    with pytest.raises(ConfigError, match="sdpa"):
        attention_inputs("flash_attention_2", torch.arange(4)[None], torch.bfloat16, torch.ones(1, 1, 4, 4).bool())
