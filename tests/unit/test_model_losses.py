"""Training forward on packed rows: what is trained on what, reductions, detaching, degenerate rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vita_mctp.errors import ConfigError
from vita_mctp.models.vita import VitaMctpForCausalLM, VitaMctpOutput, is_mctp_parameter
from vita_mctp.models.vita.rows import Rows
from vita_mctp.text.chat import IGNORED

MakeModel = Callable[..., VitaMctpForCausalLM]
BLOCKS = 3


def packed(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 48, (1, sum(lengths)), generator=generator)
    return {
        "input_ids": ids,
        "labels": ids.clone(),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
    }


def losses(output: VitaMctpOutput) -> list[float]:
    assert output.lm_loss is not None and output.mtp_losses is not None
    return torch.stack([output.lm_loss, *output.mtp_losses]).tolist()


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_each_level_is_trained_within_its_sample_only(lengths: list[int], seed: int) -> None:
    batch = packed(lengths, seed)
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    rows = Rows.of(batch["position_ids"])
    for level in range(BLOCKS + 1):
        targets = rows.targets(torch.arange(sum(lengths))[None], "per_sample")[0]
        trained = targets != IGNORED
        assert bool((targets[trained] == rows.source[0, trained] + 1).all())
        assert bool((sample[targets[trained]] == sample[rows.source[0, trained]]).all())
        assert int(trained.sum()) == sum(max(0, length - 1 - level) for length in lengths)
        rows, _ = rows.next(level)


@torch.no_grad()
def test_losses_of_a_packed_row_are_those_of_its_samples(make_tiny_model: MakeModel) -> None:
    model, batch, lengths = make_tiny_model(0, BLOCKS), packed([9, 2, 6]), [9, 2, 6]
    whole = losses(model(**batch, num_items_in_batch=17))
    alone = torch.zeros(BLOCKS + 1)
    for sample in zip(*(batch[name][0].split(lengths) for name in batch), strict=True):
        part = {name: value[None] for name, value in zip(batch, sample, strict=True)}
        alone += torch.tensor(losses(model(**part, num_items_in_batch=17)))
    assert whole == pytest.approx(alone.tolist(), rel=1e-6)


@torch.no_grad()
def test_the_reference_shift_trains_on_the_next_samples_first_label(make_tiny_model: MakeModel) -> None:
    model, batch = make_tiny_model(0, BLOCKS), packed([9, 6])
    ours, reference = (model(**batch, label_shift=shift) for shift in ("per_sample", "reference_row"))
    assert (reference.num_targets - ours.num_targets).tolist() == [1] * (BLOCKS + 1)
    for level in range(BLOCKS + 1):
        batch["labels"][0, 9 + level] = IGNORED
    ours, reference = (model(**batch, label_shift=shift) for shift in ("per_sample", "reference_row"))
    assert losses(ours) == pytest.approx(losses(reference), rel=1e-6)
    with pytest.raises(ConfigError, match="one row"):
        model(**{name: value.expand(2, -1) for name, value in batch.items()}, label_shift="reference_row")


@torch.no_grad()
def test_several_rows_are_as_good_as_one(make_tiny_model: MakeModel) -> None:
    """Ragged rows, padded by lone zeros or counted on, give the losses of the same samples packed."""
    model, lengths = make_tiny_model(1, BLOCKS), [9, 4]
    batch = packed(lengths)
    expected = losses(model(**batch))
    rows = {
        name: torch.nn.utils.rnn.pad_sequence(
            list(value[0].split(lengths)), batch_first=True, padding_value=IGNORED if name == "labels" else 0
        )
        for name, value in batch.items()
    }
    assert losses(model(**rows)) == pytest.approx(expected, rel=1e-6)
    assert losses(model(rows["input_ids"], rows["labels"])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("lengths", [[1], [2], [2, 1, 1], [3, 2]])
def test_samples_too_short_for_a_block_leave_it_a_zero_gradient(make_tiny_model: MakeModel, lengths: list[int]) -> None:
    model = make_tiny_model(0, BLOCKS)
    output = model(**packed(lengths))
    output.loss.backward()
    assert torch.isfinite(output.loss) and losses(output)[-1] == 0
    for parameter in model.parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())


def test_reductions(make_tiny_model: MakeModel) -> None:
    model, batch = make_tiny_model(0, BLOCKS), packed([9, 6])
    mean, summed = model(**batch), model(**batch, num_items_in_batch=torch.tensor(15))
    expected = torch.tensor(losses(mean)) * mean.num_targets / 15
    assert losses(summed) == pytest.approx(expected.tolist(), rel=1e-6)
    model.config.mtp_loss_weight = 0.25
    weighted = model(**batch)
    lm_loss, *mtp_losses = losses(weighted)
    assert weighted.loss.item() == pytest.approx(lm_loss + 0.25 * sum(mtp_losses) / BLOCKS, rel=1e-6)
    model.config.mtp_loss_weight = 1.0


def gradients(model: VitaMctpForCausalLM, batch: dict[str, Tensor], detach: str) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    model(**batch, detach=detach).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_always_detaching_leaves_the_backbone_the_language_model_loss_alone(make_tiny_model: MakeModel) -> None:
    model, batch = make_tiny_model(1, BLOCKS), packed([9, 6])
    model.config.mtp_loss_weight = 0.0
    alone = gradients(model, batch, "when_frozen")
    model.config.mtp_loss_weight = 1.0
    detached = gradients(model, batch, "always")
    attached = gradients(model, batch, "when_frozen")
    shared = {"model.norm.weight", "lm_head.weight"}
    for name in alone:
        if is_mctp_parameter(model.config, name) or name in shared:
            assert detached[name] is not None
        else:
            torch.testing.assert_close(detached[name], alone[name])
            assert not torch.allclose(attached[name], alone[name])


def test_a_frozen_language_model_gets_no_gradient_and_no_loss(make_tiny_model: MakeModel) -> None:
    model, batch = make_tiny_model(1, BLOCKS), packed([9, 6])
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_mctp_parameter(model.config, name))
    output = model(**batch)
    assert output.loss.item() == pytest.approx(sum(losses(output)[1:]) / BLOCKS, rel=1e-6)
    grads = gradients(model, batch, "when_frozen")
    assert [name for name in names if grads[name] is not None] == [
        name for name in names if is_mctp_parameter(model.config, name)
    ]


@torch.no_grad()
def test_accuracy_counts(make_tiny_model: MakeModel) -> None:
    model, batch = make_tiny_model(1, BLOCKS), packed([12])
    batch["labels"][0, 1:] = model(batch["input_ids"]).logits[0, :-1].argmax(dim=-1)
    counts = model(**batch, count_correct=True)
    assert counts.num_targets.tolist() == [11, 10, 9, 8]
    assert counts.num_correct[0] == 11 and bool((counts.num_correct[1:] < counts.num_targets[1:]).all())
    assert model(**batch).num_correct is None


def test_gradient_checkpointing_changes_no_gradient(make_tiny_model: MakeModel) -> None:
    model, batch = make_tiny_model(1, BLOCKS).train(), packed([9, 6])
    plain = gradients(model, batch, "when_frozen")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    checkpointed = gradients(model, batch, "when_frozen")
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


@pytest.mark.parametrize("positions", [[1, 2, 3], [0, 1, 3], [0, 2, 1]])
def test_positions_that_do_not_count_are_refused(make_tiny_model: MakeModel, positions: list[int]) -> None:
    with pytest.raises(ValueError, match="restart at 0"):
        make_tiny_model(0, 1)(torch.zeros(1, 3, dtype=torch.long), position_ids=torch.tensor([positions]))
