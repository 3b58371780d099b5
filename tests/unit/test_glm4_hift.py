"""HiFT with small random weights: batches, stretches of a stream, weight norm, random numbers."""

from __future__ import annotations

import copy
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from glm4_reference_decoder import draw_noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vita_mctp.codecs.flow_decoder.config import F0PredictorConfig, HiftConfig, IstftConfig
from vita_mctp.codecs.flow_decoder.hift import (
    PITCH_REACH,
    Hift,
    SourceNoise,
    noise_at,
    phase_of,
    starting_phase,
)
from vita_mctp.codecs.flow_decoder.layers import fold_weight_norm

CONFIG = HiftConfig(
    in_channels=8,
    base_channels=16,
    nb_harmonics=3,
    sampling_rate=22050,
    nsf_alpha=0.1,
    nsf_sigma=0.003,
    nsf_voiced_threshold=10,
    upsample_rates=(8, 8),
    upsample_kernel_sizes=(16, 16),
    istft_params=IstftConfig(n_fft=16, hop_len=4),
    resblock_kernel_sizes=(3, 7, 11),
    resblock_dilation_sizes=((1, 3, 5),) * 3,
    source_resblock_kernel_sizes=(7, 11),
    source_resblock_dilation_sizes=((1, 3, 5),) * 2,
    f0_predictor=F0PredictorConfig(in_channels=8, cond_channels=8),
)
HARMONICS, HOP = 4, 256


def small_hift() -> Hift:
    torch.manual_seed(0)
    hift = Hift(CONFIG).eval().requires_grad_(False)
    with torch.no_grad():
        hift.f0_predictor.classifier.weight *= 600  # pitch on both sides of the threshold
        for block in [*hift.resblocks, *hift.source_resblocks]:
            for snake in [*block.activations1, *block.activations2]:
                snake.alpha.uniform_(0.5, 2)
    return hift


HIFT = small_hift()


def random_mel(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 8, frames, generator=torch.Generator().manual_seed(seed))


def noise_of(seed: int, first: int, frames: int) -> Tensor:
    return noise_at(seed, HARMONICS, first, frames, HOP)


def random_source(frames: int, seed: int = 0) -> Tensor:
    return 0.5 * torch.randn(1, frames * HOP, generator=torch.Generator().manual_seed(seed))


def test_a_batch_of_unequal_streams_equals_each_alone() -> None:
    lengths = [5, 1, 12]
    mels, sources = [random_mel(n, n) for n in lengths], [random_source(n, n) for n in lengths]
    mel, source = torch.full((3, 8, 12), 7.0), torch.full((3, 12 * HOP), 7.0)
    for row, n in enumerate(lengths):
        mel[row, :, :n], source[row, : n * HOP] = mels[row], sources[row]
    together, pitch = HIFT(mel, source, torch.tensor(lengths)), HIFT.f0_predictor(mel, torch.tensor(lengths))
    for row, n in enumerate(lengths):
        torch.testing.assert_close(together[row : row + 1, : n * HOP], HIFT(mels[row], sources[row]), atol=1e-5, rtol=0)
        torch.testing.assert_close(pitch[row : row + 1, :n], HIFT.f0_predictor(mels[row]), atol=1e-3, rtol=0)
        assert not pitch[row, n:].any()


def test_frames_behind_the_end_leave_the_phases_alone() -> None:
    pitch, noise = torch.tensor([[130.0, 210.0, 0.0, 0.0]]), noise_of(1, 0, 4)
    phase = phase_of(1, HARMONICS)
    _, padded = HIFT.m_source(pitch, SourceNoise(phase, noise))
    _, alone = HIFT.m_source(pitch[:, :2], SourceNoise(phase, noise[..., : 2 * HOP]))
    torch.testing.assert_close(padded, alone, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=25)
@given(cuts=st.sets(st.integers(1, 39)), seed=st.integers(0, 2**31))
def test_excitation_in_stretches_equals_the_whole(cuts: set[int], seed: int) -> None:
    pitch = 400 * torch.rand(1, 40, generator=torch.Generator().manual_seed(seed)) - 50
    pitch = pitch.clamp(min=0)
    whole, end = HIFT.m_source(pitch, SourceNoise(phase_of(seed, HARMONICS), noise_of(seed, 0, 40)))
    phase, pieces = phase_of(seed, HARMONICS), []
    borders = [0, *sorted(cuts), 40]
    for low, high in pairwise(borders):
        random = SourceNoise(phase, noise_of(seed, low, high - low))
        piece, phase = HIFT.m_source(pitch[:, low:high], random)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close((phase - end + 0.5) % 1, torch.full_like(end, 0.5), atol=1e-9, rtol=0)


def test_the_phase_stays_exact_over_as_many_cycles_as_a_deep_voice_has_in_five_minutes() -> None:
    frames = 2_500
    pitch = torch.full((1, frames), 1102.5)
    start = torch.zeros(1, HARMONICS, dtype=torch.float64)
    _, end = HIFT.m_source(pitch, SourceNoise(start, torch.zeros(1, HARMONICS, frames * HOP)))
    for harmonic in range(1, HARMONICS + 1):
        step = Fraction((pitch[0, 0] * harmonic / CONFIG.sampling_rate).item())
        assert end[0, harmonic - 1].item() == pytest.approx(float(step * frames * HOP % 1), abs=1e-9)


def test_a_window_with_its_context_equals_the_whole() -> None:
    frames, reach = 50, HIFT.context_frames
    mel, source = random_mel(frames), random_source(frames)
    whole = HIFT(mel, source)
    for low, high in [(0, 7), (7, 9), (20, 26), (33, 50)]:
        first, last = max(0, low - reach), min(frames, high + reach)
        window = HIFT(mel[..., first:last], source[:, first * HOP : last * HOP])
        inner = window[:, (low - first) * HOP : (high - first) * HOP]
        torch.testing.assert_close(inner, whole[:, low * HOP : high * HOP], atol=1e-5, rtol=0)


@pytest.mark.parametrize("through", ["mel", "source"])
def test_the_context_is_no_larger_than_needed(through: str) -> None:
    """A change of one frame is felt up to `context_frames` away at most, and nearly as far through the excitation."""
    frames, middle, reach = 60, 30, HIFT.context_frames
    hift = copy.deepcopy(HIFT).double()
    mel, source = random_mel(frames).double(), random_source(frames).double()
    before = hift(mel, source)
    if through == "mel":
        mel[..., middle] += 3
    else:
        source[:, middle * HOP : (middle + 1) * HOP] += 3
    felt = (hift(mel, source) - before).abs().reshape(frames, HOP).amax(1) > 0
    distance = (felt.nonzero()[:, 0] - middle).abs().max().item()
    assert reach - 2 <= distance <= reach


def test_the_pitch_sees_as_far_as_it_says() -> None:
    mel = random_mel(30)
    before = HIFT.f0_predictor(mel)
    mel[..., 15] += 3
    felt = (HIFT.f0_predictor(mel) - before).abs()[0] > 0
    assert felt.nonzero()[:, 0].tolist() == list(range(15 - PITCH_REACH, 15 + PITCH_REACH + 1))


def test_folding_changes_names_and_nothing_else() -> None:
    mel, source, folded = random_mel(9), random_source(9), copy.deepcopy(HIFT)
    fold_weight_norm(folded)
    torch.testing.assert_close(folded(mel, source), HIFT(mel, source), atol=1e-6, rtol=0)
    torch.testing.assert_close(folded.f0_predictor(mel), HIFT.f0_predictor(mel), atol=1e-3, rtol=0)
    names = {name.replace("weight_v", "weight") for name in HIFT.state_dict() if not name.endswith("weight_g")}
    assert set(folded.state_dict()) == names
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_noise_belongs_to_its_position_alone() -> None:
    whole = noise_of(3, 0, 12)
    assert torch.equal(torch.cat([noise_of(3, 0, 5), noise_of(3, 5, 0), noise_of(3, 5, 7)], -1), whole)
    assert not torch.equal(noise_of(4, 0, 12), whole)
    assert not torch.equal(whole[..., :HOP], whole[..., HOP : 2 * HOP])
    assert abs(whole.mean()) < 0.05 and abs(whole.std() - 1) < 0.05


def test_drawing_takes_the_reference_order_and_spares_the_global_generator() -> None:
    torch.manual_seed(9)
    angles = torch.distributions.Uniform(-torch.pi, torch.pi).sample((1, HARMONICS, 1))
    noise, _, after = torch.randn(1, HARMONICS, 512), torch.randn(1, 1, 512), torch.rand(3)
    generator, state = torch.Generator().manual_seed(9), torch.get_rng_state()
    drawn = draw_noise(generator, HARMONICS, 512)
    assert torch.equal(drawn.phase, starting_phase(angles[..., 0])) and torch.equal(drawn.noise, noise)
    assert torch.equal(torch.rand(3, generator=generator), after)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_starting_phase_is_in_cycles_and_the_fundamental_starts_at_zero() -> None:
    phase = starting_phase(torch.tensor([[1.0, -torch.pi / 2, torch.pi / 4]]))
    torch.testing.assert_close(phase, torch.tensor([[0.0, 0.75, 0.125]], dtype=torch.float64))


def test_a_call_changes_nothing_of_the_model() -> None:
    attributes = {name: dict(vars(module)) for name, module in HIFT.named_modules()}
    HIFT(random_mel(4), random_source(4), torch.tensor([3]))
    assert {name: dict(vars(module)) for name, module in HIFT.named_modules()} == attributes


def test_a_length_beyond_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 4 steps"):
        HIFT(random_mel(4), random_source(4), torch.tensor([5]))
