"""The windowed GLM-4-Voice decoder: the samples depend on the codes, not on how they arrive or who shares the batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glm4_reference_decoder import ReleasedFlow
from safetensors.torch import load_file
from torch import Tensor, nn

from vita_mctp.codecs.flow_decoder import windows as windowed
from vita_mctp.codecs.flow_decoder.config import HiftConfig
from vita_mctp.codecs.flow_decoder.flow import CodeWindows
from vita_mctp.codecs.flow_decoder.hift import HarmonicSource, Hift, SourceNoise, noise_at
from vita_mctp.codecs.flow_decoder.windows import Windows, cross_fade
from vita_mctp.codecs.glm4_voice.decoder import (
    HOP_LENGTH,
    Glm4Flow,
    Glm4FlowConfig,
    Glm4VoiceDecoder,
    load_decoder_config,
)
from vita_mctp.codecs.registry import audio_decoder
from vita_mctp.errors import ConfigError
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray

TINY = Path(__file__).parents[1] / "parity" / "goldens" / "glm4_voice" / "decoder"
SAMPLES_PER_CODE = 1764


@pytest.fixture(scope="module")
def modules() -> tuple[Glm4Flow, Hift]:
    config = load_decoder_config(TINY)
    flow, hift = Glm4Flow(config.flow), Hift(config.hift)
    flow.load_state_dict(load_file(TINY / "flow.safetensors"))
    hift.load_state_dict(load_file(TINY / "hift.safetensors"))
    return flow.eval(), hift.eval()


@pytest.fixture(scope="module")
def decoder(modules: tuple[Glm4Flow, Hift]) -> Glm4VoiceDecoder:
    return Glm4VoiceDecoder(*modules, Windows(steps=(1, 2)))


def random_codes(decoder: Glm4VoiceDecoder, count: int, rng: random.Random) -> list[int]:
    return [rng.randrange(decoder.codebook_size) for _ in range(count)]


def cuts(codes: Sequence[int], rng: random.Random, largest: int = 30) -> list[AudioBlock]:
    """Random blocks, some of them empty; the last one may be."""
    blocks, begin = [], 0
    while begin < len(codes):
        size = rng.randint(0, largest)
        blocks.append(AudioBlock(tuple(codes[begin : begin + size]), len(blocks), is_last=False))
        begin += size
    return [*blocks, AudioBlock((), len(blocks), is_last=True)]


def offline(decoder: Glm4VoiceDecoder, codes: Sequence[int]) -> FloatArray:
    ids = np.array(codes, dtype=np.int64)
    return decoder.decode(AudioCodes(ids, decoder.codebook_size, decoder.frame_rate, decoder.name)).samples


def streamed(decoder: Glm4VoiceDecoder, blocks: Sequence[AudioBlock]) -> list[FloatArray]:
    state, chunks = decoder.start(), []
    for block in blocks:
        chunk, state = decoder.decode_block(block, state)
        chunks.append(chunk.samples)
    return chunks


@pytest.mark.parametrize("count", [0, 1, 10, 11, 20, 79])
def test_streamed_equals_offline(decoder: Glm4VoiceDecoder, count: int) -> None:
    rng = random.Random(count)
    codes = random_codes(decoder, count, rng)
    whole = offline(decoder, codes)
    assert len(whole) == count * SAMPLES_PER_CODE
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(streamed(decoder, cuts(codes, rng))), whole)


class SilentFlow(nn.Module):
    """A flow's shapes without its work, so that counting is quick."""

    def __init__(self, config: Glm4FlowConfig) -> None:
        super().__init__()
        self.config, self.like = config, torch.zeros(0)

    def mean(self, windows: CodeWindows) -> Tensor:
        assert int(windows.owners.max()) < windows.codes.shape[1]
        return torch.zeros(*windows.owners.shape, self.config.output_size)

    def speaker(self, embedding: Tensor) -> Tensor:
        return embedding

    def solve(self, mu: Tensor, cond: Tensor, speaker: Tensor, noise: Tensor, *_: object) -> Tensor:
        assert mu.transpose(1, 2).shape == cond.shape == noise.shape
        return torch.zeros_like(cond)


class SilentSource(HarmonicSource):
    """As `SilentFlow`, of the excitation."""

    def forward(self, pitch: Tensor, random: SourceNoise) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, pitch.shape[1] * HOP_LENGTH), random.phase


class SilentHift(nn.Module):
    """As `SilentFlow`, of the vocoder."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config, self.context_frames, self.m_source = config, 14, SilentSource(config)

    def f0_predictor(self, mel: Tensor, lengths: Tensor) -> Tensor:
        return torch.zeros(len(mel), mel.shape[2])

    def forward(self, mel: Tensor, source: Tensor, lengths: Tensor) -> Tensor:
        assert source.shape[1] == mel.shape[2] * HOP_LENGTH
        return torch.zeros_like(source)


def test_a_thousand_random_cuts_lose_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(_seed: int, rows: int, _first: int, frames: int, hop: int) -> Tensor:
        return torch.zeros(1, rows, frames * hop)

    monkeypatch.setattr(windowed, "noise_at", silence)
    config, rng = load_decoder_config(TINY), random.Random(5)
    for _ in range(1000):
        sizes = tuple(rng.randint(6, 40) for _ in range(rng.randint(1, 4)))
        windows = Windows(chunk_sizes=sizes, context=rng.randint(10, 60), overlap=rng.randint(1, 5))
        decoder = Glm4VoiceDecoder(SilentFlow(config.flow), SilentHift(config.hift), windows)  # type: ignore[arg-type]
        count = rng.randint(0, 80)
        chunks = streamed(decoder, cuts([0] * count, rng))
        assert sum(map(len, chunks)) == count * SAMPLES_PER_CODE, (windows, count)


def test_sixteen_streams_in_one_batch_equal_each_alone(modules: tuple[Glm4Flow, Hift]) -> None:
    """In float64: the vocoder enlarges float32's rounding a hundredfold."""
    flow, hift = (deepcopy(module).double() for module in modules)
    decoder = Glm4VoiceDecoder(flow, hift, Windows(chunk_sizes=(7, 12), context=20, steps=(1, 2)))
    rng = random.Random(1)
    answers = [random_codes(decoder, rng.randrange(1, 28), rng) for _ in range(16)]
    plans = [cuts(codes, rng, largest=20) for codes in answers]
    states = [decoder.start(seed) for seed in range(16)]
    heard: list[list[FloatArray]] = [[] for _ in answers]
    for step in range(max(map(len, plans))):
        alive = [stream for stream, plan in enumerate(plans) if step < len(plan)]
        results = decoder.decode_blocks([plans[one][step] for one in alive], [states[one] for one in alive])
        for stream, (chunk, state) in zip(alive, results, strict=True):
            heard[stream].append(chunk.samples)
            states[stream] = state
    for seed, (codes, chunks) in enumerate(zip(answers, heard, strict=True)):
        alone, _ = decoder.decode_block(AudioBlock(tuple(codes), 0, is_last=True), decoder.start(seed))
        np.testing.assert_allclose(np.concatenate(chunks), alone.samples, atol=1e-6)


def test_a_window_that_sees_all_is_the_flow_itself(modules: tuple[Glm4Flow, Hift]) -> None:
    """A first window has no context and nothing to fade: its mel must be the flow's own for these codes."""
    decoder = Glm4VoiceDecoder(*modules, Windows(chunk_sizes=(64,), context=64))
    codes = random_codes(decoder, 63, random.Random(2))
    _, state = decoder.decode_block(AudioBlock((*codes, 5), 0, is_last=False), decoder.start())
    frames = torch.cat([state.mel, state.withheld], 1)
    flow = modules[0]
    window = torch.tensor([[*codes, 5]])
    mu = ReleasedFlow(flow).mean(window)
    assert mu.shape[1] == frames.shape[1] == 441
    speaker = flow.speaker(mu.new_zeros(1, flow.config.spk_embed_dim))
    noise = noise_at(1 << 64, mu.shape[2], 0, 441, hop=1)
    wanted = flow.solve(mu, torch.zeros_like(noise), speaker, noise)
    torch.testing.assert_close(frames, wanted[0])


def test_what_a_stream_keeps_and_sees_is_bounded(decoder: Glm4VoiceDecoder) -> None:
    state, sizes = decoder.start(), []
    rng = random.Random(3)
    for index in range(6):
        _, state = decoder.decode_block(AudioBlock(tuple(random_codes(decoder, 40, rng)), index, is_last=False), state)
        sizes.append((len(state.codes) <= 50 + 40, state.mel.shape[1], len(state.source)))
    assert len(set(sizes[2:])) == 1
    assert state.frames * HOP_LENGTH > 0.8 * 240 * SAMPLES_PER_CODE


def test_borders_jump_no_more_than_other_places(modules: tuple[Glm4Flow, Hift]) -> None:
    """Where chunks meet, the energy of 5 ms changes, and the samples step, as at every border of two mel frames."""
    decoder = Glm4VoiceDecoder(*modules, Windows(chunk_sizes=(10,), context=30, steps=(2,)))
    codes = random_codes(decoder, 200, random.Random(4))
    wave, width = offline(decoder, codes), 110
    power = np.convolve(wave**2, np.ones(width), "valid") / width
    energy = np.abs(10 * np.log10((power[width:] + 1e-9) / (power[:-width] + 1e-9)))
    step = np.abs(np.diff(wave))
    everywhere = np.arange(1, len(wave) // HOP_LENGTH - 1) * HOP_LENGTH
    overlap = ceil(5 * decoder.frames_per_code)
    borders = np.array([ceil(10 * n * decoder.frames_per_code) - overlap for n in range(1, 20)]) * HOP_LENGTH
    for measure, offsets in ((energy, -width), (step, -1)):
        assert measure[borders + offsets].mean() <= 1.2 * measure[everywhere + offsets].mean()


def test_fades_keep_what_both_agree_on() -> None:
    old, new = torch.full((2, 3), 4.0), torch.full((2, 5), 4.0)
    torch.testing.assert_close(cross_fade(old, new), new)
    faded = cross_fade(torch.zeros(4), torch.ones(6))
    assert faded.tolist() == [0.125, 0.375, 0.625, 0.875, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"chunk_sizes": [5]}, "overlap 5"),
        ({"overlap": 0}, "overlap: got 0"),
        ({"steps": []}, "steps"),
        ({"steps": [0]}, "steps.0: got 0"),
        ({"context": 10**12}, "context"),
    ],
)
def test_windows_that_cannot_work_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Windows().but(**options)


def test_a_context_shorter_than_the_vocoder_looks_back_is_refused(modules: tuple[Glm4Flow, Hift]) -> None:
    with pytest.raises(ConfigError, match="longer context"):
        Glm4VoiceDecoder(*modules, Windows(context=6))


def test_settings_may_say_how_answers_are_cut() -> None:
    few = {"windows": {"chunk_sizes": [10, 40], "steps": [1, 2, 4, 10]}}
    opened = audio_decoder("glm4_voice", TINY, options=few)
    assert isinstance(opened, Glm4VoiceDecoder)
    assert opened.windows == Windows(chunk_sizes=(10, 40), steps=(1, 2, 4, 10))
    with pytest.raises(ConfigError, match="sizes"):
        audio_decoder("glm4_voice", TINY, options={"windows": {"sizes": [10]}})
    with pytest.raises(ConfigError, match="has no option steps; it has: windows"):
        audio_decoder("glm4_voice", TINY, options={"steps": 3})
