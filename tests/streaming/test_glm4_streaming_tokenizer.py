"""Hearing while somebody speaks, with segments of 2 s and blocks of 0.4 s: cuts and loudness change no code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_mctp.audio.mel import DYNAMIC_RANGE
from vita_mctp.codecs.glm4_voice.config import TokenizerConfig, load_tokenizer_config
from vita_mctp.codecs.glm4_voice.streaming_tokenizer import StreamingTokenizer, StreamingTokenizerState
from vita_mctp.codecs.glm4_voice.tokenizer import Glm4VoiceTokenizer, load_encoder
from vita_mctp.errors import AudioError
from vita_mctp.types import FloatArray, Wave

MODEL = Path(__file__).parents[1] / "parity" / "goldens" / "glm4_voice" / "tokenizer" / "model"
RATE = 16_000
BLOCK, SEGMENT = 6_400, 32_000


def small_blocks() -> Glm4VoiceTokenizer:
    released = load_tokenizer_config(MODEL)
    config = TokenizerConfig(
        features=released.features.model_copy(update={"chunk_length": 2}),
        encoder=released.encoder.model_copy(update={"quantize_causal_block_size": 20}),
    )
    assert (config.samples_per_block, config.features.segment_samples) == (BLOCK, SEGMENT)
    return Glm4VoiceTokenizer(config, load_encoder(config.encoder, MODEL))


TOKENIZER = small_blocks()


def noise(samples: int, peak: float = 0.3, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).uniform(-peak, peak, samples).astype(np.float32)


def speak(
    stream: StreamingTokenizer, samples: FloatArray, cuts: list[int]
) -> tuple[list[int], StreamingTokenizerState]:
    """The codes given out before the end, and the state at the end."""
    state, ids = stream.start(), []
    for piece in np.split(samples, sorted({min(cut, len(samples)) for cut in cuts})):
        codes, state = stream.push(piece, state)
        ids += codes.ids.tolist()
    return ids, state


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    peaks=st.lists(st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 1.0]), min_size=1, max_size=14),
    cuts=st.lists(st.integers(0, 14 * 5_000 * 3), max_size=12),
    rate=st.sampled_from([8_000, RATE, 22_050, 48_000]),
    odd=st.integers(0, 1_300),
)
def test_all_codes_are_those_of_the_recording(peaks: list[float], cuts: list[int], rate: int, odd: int) -> None:
    piece = 5_000 * rate // RATE
    samples = np.concatenate([noise(piece, peak, seed) for seed, peak in enumerate(peaks)])[odd:]
    stream = StreamingTokenizer(TOKENIZER, rate)
    ids, state = speak(stream, samples, cuts)
    assert ids + stream.finish(state).ids.tolist() == TOKENIZER.encode(Wave(samples, rate)).ids.tolist()


@pytest.mark.parametrize("samples", [0, 1, 1280, 1281, BLOCK, BLOCK + 39, BLOCK + 40, SEGMENT, SEGMENT + 1])
def test_every_border(samples: int) -> None:
    wave, stream = noise(samples), StreamingTokenizer(TOKENIZER)
    ids, state = speak(stream, wave, [100, BLOCK])
    ids += stream.finish(state).ids.tolist()
    assert len(ids) == -(-samples // 1280)
    assert ids == TOKENIZER.encode(Wave(wave, RATE)).ids.tolist()


@pytest.mark.parametrize("segments", [0, 1])
def test_the_last_frame_sees_behind_it_what_it_sees_offline(segments: int) -> None:
    """Its mirror image in a recording of one segment; zeros where a full segment lies in the same batch."""
    wave, stream = noise(segments * SEGMENT + 1_280), StreamingTokenizer(TOKENIZER)
    heard: list[torch.Tensor] = []
    handle = TOKENIZER.encoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    stream.finish(speak(stream, wave, [])[1])
    TOKENIZER.encode(Wave(wave, RATE))
    handle.remove()
    torch.testing.assert_close(heard[-2][0, :, -1], heard[-1][-1, :, 7], atol=1e-5, rtol=0)


def computed_at_finish(stream: StreamingTokenizer, state: StreamingTokenizerState) -> int:
    """Encoder frames that `finish` computes."""
    counts: list[int] = []
    handle = TOKENIZER.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].shape[1]))
    stream.finish(state)
    handle.remove()
    return sum(counts)


def test_the_last_block_alone_is_left_for_the_end() -> None:
    stream = StreamingTokenizer(TOKENIZER)
    _, state = speak(stream, noise(4 * BLOCK + 2_560), [])
    assert computed_at_finish(stream, state) == 8


def test_a_louder_end_computes_again_what_its_clamp_changes() -> None:
    stream = StreamingTokenizer(TOKENIZER)
    quiet_third = [noise(2 * BLOCK), noise(BLOCK, 1e-5), noise(BLOCK), noise(2_560, 1.0)]
    _, state = speak(stream, np.concatenate(quiet_third), [])
    assert computed_at_finish(stream, state) == 2 * 20 + 8


def test_codes_that_no_sound_can_change_come_out_at_once() -> None:
    stream = StreamingTokenizer(TOKENIZER)
    wave = noise(2 * BLOCK + 40, 1.0)
    ids, state = speak(stream, wave, [])
    assert state.segment.blocks[1].quietest > stream.highest_clamp
    assert len(ids) == 2 * 5 and len(stream.provisional(state).ids) == 0


def test_provisional_codes_stand_until_something_louder_comes() -> None:
    stream = StreamingTokenizer(TOKENIZER)
    wave = np.concatenate([noise(BLOCK, 1e-5), noise(2 * BLOCK + 40, 0.01)])
    ids, state = speak(stream, wave, [])
    assert ids == []
    expected = TOKENIZER.encode(Wave(wave[: 3 * BLOCK], RATE)).ids.tolist()
    assert stream.provisional(state).ids.tolist() == expected


def test_a_state_has_more_than_one_future() -> None:
    stream = StreamingTokenizer(TOKENIZER)
    beginning, endings = noise(BLOCK + 500, 0.01), [noise(9_000, 1.0, seed=1), noise(4_000, 0.02, seed=2)]
    _, state = speak(stream, beginning, [700])
    for ending in endings:
        codes, later = stream.push(ending, state)
        ids = [*codes.ids, *stream.finish(later).ids]
        assert ids == TOKENIZER.encode(Wave(np.concatenate([beginning, ending]), RATE)).ids.tolist()


def test_a_state_holds_one_segment_at_most() -> None:
    stream = StreamingTokenizer(TOKENIZER)
    state, held = stream.start(), []
    for start in range(0, 4 * SEGMENT, 1_000):
        _, state = stream.push(noise(1_000, 0.01, start), state)
        held.append((len(state.segment.blocks), len(state.segment.samples), len(state.resampler.tail)))
    assert np.max(held, axis=0)[0] < SEGMENT // BLOCK and np.max(held, axis=0)[1] < BLOCK + 1_500
    assert state.segment.index == 4


@pytest.mark.parametrize("sample", [1.01, -2.0, np.nan])
def test_samples_beyond_full_scale_are_refused(sample: float) -> None:
    stream = StreamingTokenizer(TOKENIZER)
    with pytest.raises(AudioError, match=r"\[-1, 1\]"):
        stream.push(np.array([0.0, sample], np.float32), stream.start())


@settings(deadline=None, max_examples=40, derandomize=True)
@given(hertz=st.floats(10, 3_990), power=st.sampled_from([0.0, 0.3, 1.0]), rate=st.sampled_from([8_000, RATE, 48_000]))
def test_no_sound_lifts_the_clamp_over_the_bound(hertz: float, power: float, rate: int) -> None:
    """power 1 is a sine, 0 a square wave."""
    sine = np.sin(2 * np.pi * hertz * np.arange(rate // 10) / rate + 0.1)
    heard = TOKENIZER.resample(Wave((np.sign(sine) * np.abs(sine) ** power).astype(np.float32), rate))
    features = TOKENIZER.features
    energies = features.energies(features.pad_right(features.pad_left(torch.from_numpy(heard)[None])))
    assert energies.max().item() - DYNAMIC_RANGE <= StreamingTokenizer(TOKENIZER, rate).highest_clamp
