"""The loss of all levels in chunks: what the plain one gives, in less memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vita_mctp.models import losses
from vita_mctp.models.losses import SharedHead
from vita_mctp.text.chat import IGNORED

SCRIPT = Path(__file__).with_name("loss_memory.py")
WORDS, SIZE, LENGTHS = 37, 8, (50, 41, 1)


def levels(dtype: torch.dtype) -> tuple[SharedHead, list[Tensor], list[Tensor], Tensor]:
    """A head, and the hidden states, targets and scales of three levels; the last has no target."""
    generator = torch.Generator().manual_seed(3)
    head = SharedHead(SIZE, WORDS)
    torch.nn.init.normal_(head.weight, std=0.3, generator=generator)
    head.to(dtype)
    states = [torch.randn(2, n, SIZE, generator=generator).to(dtype).requires_grad_() for n in LENGTHS]
    targets = [torch.randint(0, WORDS, (2, n), generator=generator) for n in LENGTHS]
    targets[0][:, ::3] = IGNORED
    targets[2][:] = IGNORED
    return head, states, targets, torch.tensor([0.5, 0.25, 2.0])


def gradients(head: SharedHead, states: list[Tensor]) -> list[Tensor]:
    found = [head.weight.grad, *[each.grad for each in states]]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_losses_and_gradients_are_the_plain_ones(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", rows * WORDS * 4)
    head, states, targets, scales = levels(dtype)
    chunked = head.losses(states, targets, scales, count_correct=True)
    (3 * chunked.loss).backward()
    got = gradients(head, states)
    head.zero_grad()
    plain_states = [each.detach().requires_grad_() for each in states]
    wide = torch.promote_types(dtype, torch.float32)
    logits = [head(each).flatten(0, 1).to(wide) for each in plain_states]
    flat = [each.flatten() for each in targets]
    sums = [F.cross_entropy(a, b, reduction="sum", ignore_index=IGNORED) for a, b in zip(logits, flat, strict=True)]
    (3 * (torch.stack(sums) * scales).sum()).backward()
    tolerance = {"rtol": 0.06, "atol": 0.06} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(chunked.totals, torch.stack(sums).detach(), rtol=1e-5, atol=1e-6)
    for a, b in zip(got, gradients(head, plain_states), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    right = [int((a.argmax(-1) == b).sum()) for a, b in zip(logits, flat, strict=True)]
    assert chunked.num_correct is not None and chunked.num_correct.tolist() == right


def test_many_small_chunks_in_bfloat16_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states that mostly agree, so that each chunk adds a little to a sum that is large by then."""
    found = []
    for rows in (1, 4000):
        monkeypatch.setattr(losses, "CHUNK_BYTES", rows * WORDS * 4)
        head, *_ = levels(torch.bfloat16)
        states = torch.ones(4000, SIZE, dtype=torch.bfloat16, requires_grad=True)
        head.losses([states], [torch.zeros(4000, dtype=torch.long)], torch.tensor([1.0])).loss.backward()
        assert head.weight.grad is not None and head.weight.grad.dtype == torch.bfloat16
        found.append(head.weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=0.01, atol=0.0)


def test_a_frozen_head_gets_no_gradient_and_autocast_is_followed() -> None:
    head, states, targets, scales = levels(torch.float32)
    head.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.losses(states, targets, scales)
    found.loss.backward()
    assert head.weight.grad is None and found.totals.dtype == torch.float32
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in states)
    exact = head.losses(states, targets, scales).totals
    assert not torch.equal(found.totals, exact)
    torch.testing.assert_close(found.totals, exact, rtol=0.01, atol=0.0)


def test_a_second_backward_pass_is_refused() -> None:
    head, states, targets, scales = levels(torch.float32)
    loss = head.losses(states, targets, scales).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_its_memory_does_not_grow_with_positions_and_blocks() -> None:
    size = ["1024", "20000", "5", "8"]
    peaks = {}
    for kind in ("plain", "chunked"):
        done = subprocess.run([sys.executable, SCRIPT, kind, *size], capture_output=True, text=True, check=True)
        peaks[kind] = int(done.stdout.split()[0])
    assert peaks["chunked"] < 0.5 * peaks["plain"], peaks
