"""Batches of the flow: a stream of a padded batch comes out as it does alone, whatever lies in its padding."""

from __future__ import annotations

import pytest
import torch
from glm4_reference_decoder import ReleasedFlow, nearest_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vita_mctp.codecs.flow_decoder.flow import CodeWindows, attended_keys, time_steps
from vita_mctp.codecs.flow_decoder.layers import RaggedGroupNorm, length_mask
from vita_mctp.codecs.glm4_voice.decoder import Glm4Flow, Glm4FlowConfig
from vita_mctp.errors import ConfigError

BANDS, VOCABULARY, BLOCK = 8, 32, 4
NEAR = {"rtol": 0.0, "atol": 1e-5}


def tiny_flow() -> Glm4Flow:
    values = {
        "input_size": 12,
        "output_size": BANDS,
        "spk_embed_dim": 6,
        "vocab_size": VOCABULARY,
        "input_frame_rate": 12.5,
        "encoder": {
            "input_size": 12,
            "output_size": 16,
            "attention_heads": 2,
            "linear_units": 24,
            "num_blocks": 2,
            "block_size": BLOCK,
        },
        "length_regulator": {"channels": BANDS, "sampling_ratios": [1, 1]},
        "decoder": {
            "in_channels": 3 * BANDS,
            "n_spks": 1,
            "spk_emb_dim": BANDS,
            "cfm_params": {"inference_cfg_rate": 0.7},
            "estimator": {
                "in_channels": 4 * BANDS,
                "out_channels": BANDS,
                "channels": [16, 16],
                "attention_head_dim": 4,
                "n_blocks": 1,
                "num_mid_blocks": 1,
                "num_heads": 2,
            },
        },
    }
    config = Glm4FlowConfig.parse(values, "flow")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Glm4Flow(config).eval()
        for parameter in flow.parameters():  # unlike fresh norms and position biases, none is zero or one
            nn.init.normal_(parameter, std=0.3)
    return flow


FLOW = tiny_flow()
RELEASED = ReleasedFlow(FLOW)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(1, 14), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_streams_of_a_batch_equal_each_alone(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, longest = len(lengths), max(lengths)
    tokens = torch.randint(VOCABULARY, (batch, longest), generator=generator)
    frames = RELEASED.num_frames(longest)
    cond, noise, speaker = drawn(seed, batch, BANDS, frames), drawn(seed + 1, batch, BANDS, frames), drawn(2, batch, 6)

    owners = [nearest_codes(length, RELEASED.num_frames(length)) for length in lengths]
    frame_lengths = torch.tensor(list(map(len, owners)))
    padded = nn.utils.rnn.pad_sequence(owners, batch_first=True)
    mu = FLOW.mean(CodeWindows(tokens, padded, torch.tensor(lengths), frame_lengths))
    mel = FLOW.solve(mu, cond, FLOW.speaker(speaker), noise, frame_lengths, steps=2)

    for row, (length, own) in enumerate(zip(lengths, frame_lengths.tolist(), strict=True)):
        one = slice(row, row + 1)
        alone = RELEASED.mean(tokens[one, :length])
        torch.testing.assert_close(mu[one, :own], alone, **NEAR)
        solved = FLOW.solve(alone, cond[one, :, :own], FLOW.speaker(speaker[one]), noise[one, :, :own], steps=2)
        torch.testing.assert_close(mel[one, :, :own], solved, **NEAR)
        assert not mel[row, :, own:].any() and not mu[row, own:].any()


@given(offset=st.integers(0, 30), size=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_a_window_keeps_the_blocks_of_its_stream(offset: int, size: int) -> None:
    every = torch.arange(offset + size)[None]
    whole, window = attended_keys(every, BLOCK, None), attended_keys(every[:, offset:], BLOCK, None)

    assert torch.equal(window, whole[..., offset:, offset:])


@torch.inference_mode()
def test_tokens_of_finished_blocks_never_change() -> None:
    tokens = torch.arange(2 * BLOCK + 3)[None]
    finished = FLOW.encode_codes(tokens)[:, : 2 * BLOCK]

    torch.testing.assert_close(FLOW.encode_codes(tokens[:, : 2 * BLOCK]), finished, **NEAR)
    cut_inside = FLOW.encode_codes(tokens[:, : 2 * BLOCK - 1])
    assert (cut_inside - finished[:, :-1]).abs().max() > 1e-3  # a block sees its own future


@torch.inference_mode()
def test_windows_of_one_batch_may_begin_anywhere() -> None:
    tokens = torch.arange(14).view(2, 7)
    lengths, at = torch.tensor([7, 5]), torch.tensor([[3], [8]]) + torch.arange(7)
    states = FLOW.encode_codes(tokens, lengths, at)

    torch.testing.assert_close(states[:1], FLOW.encode_codes(tokens[:1], positions=at[:1]), **NEAR)
    torch.testing.assert_close(states[1:, :5], FLOW.encode_codes(tokens[1:, :5], positions=at[1:, :5]), **NEAR)
    assert (states[:1] - FLOW.encode_codes(tokens[:1])).abs().max() > 1e-3


def test_group_norm_counts_own_steps_only() -> None:
    norm = RaggedGroupNorm(2, 6)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    x = drawn(0, 2, 6, 9)
    mask = length_mask([9, 4], x, 9)

    normed = norm(x, mask)

    torch.testing.assert_close(normed[:1], norm(x[:1]), **NEAR)
    torch.testing.assert_close(normed[1:, :, :4], norm(x[1:, :, :4]), **NEAR)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_steps_fill_the_time_and_grow(steps: int) -> None:
    durations = [duration for _, duration in time_steps(steps)]

    assert sum(durations) == pytest.approx(1, abs=1e-6)
    assert durations == sorted(durations) and len(durations) == steps


def test_contradictory_calls_say_why() -> None:
    tokens, none = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64)
    with pytest.raises(ConfigError, match="at least one step, got 0"):
        RELEASED(tokens, none, torch.zeros(1, 0, BANDS), torch.zeros(1, 6), drawn(0, 1, BANDS, 13), steps=0)
    with pytest.raises(ConfigError, match=r"14 known mel frames of 2 codes.*13"):
        RELEASED(tokens, none, torch.zeros(1, 14, BANDS), torch.zeros(1, 6), drawn(0, 1, BANDS, 13))
    with pytest.raises(ConfigError, match="of 0 codes"):
        RELEASED(none, none, torch.zeros(1, 0, BANDS), torch.zeros(1, 6), drawn(0, 1, BANDS, 0))
    with pytest.raises(ValueError, match=r"1 to 2 steps, got lengths \[3\]"):
        FLOW.encode_codes(tokens, torch.tensor([3]))


def test_frames_are_counted_in_float32() -> None:
    assert [n for n in range(1, 4001) if RELEASED.num_frames(n) != n * 441 // 64] == [3392, 3776]
