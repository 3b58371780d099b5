"""`bench decoder`: seams found where they were put, costs and samples of decoders small enough to run here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from glm4_reference_decoder import Glm4VoiceReferenceDecoder
from ramp import RampDecoder

from vita_mctp.bench import Machine, models
from vita_mctp.bench.decoder import (
    ChunkCost,
    DecodedAnswer,
    bench_decoder,
    decode_answer,
    energy_jumps,
    growth,
    measure_seams,
)
from vita_mctp.bench.models import LoadedDecoder
from vita_mctp.codecs.cosyvoice2.decoder import CosyVoice2Decoder
from vita_mctp.codecs.flow_decoder.windows import Windows
from vita_mctp.codecs.glm4_voice.decoder import Glm4VoiceDecoder, parse_decoder_config
from vita_mctp.codecs.released import read_tagged_yaml
from vita_mctp.types import FloatArray

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens" / "glm4_voice"
MACHINE = Machine("cpu", "float32", bytes_per_second=1e9, flops_per_second=1e9)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smooth() -> LoadedDecoder:
    parts = Glm4VoiceDecoder.from_folder(GOLDENS / "decoder")
    windows = Windows(chunk_sizes=(10,), context=30, steps=(1,))
    return LoadedDecoder("smooth", Glm4VoiceDecoder(parts.flow, parts.hift, windows), (10,), CPU)


@pytest.fixture(scope="module")
def reference() -> LoadedDecoder:
    decoder = Glm4VoiceReferenceDecoder(Glm4VoiceDecoder.from_folder(GOLDENS / "decoder"))
    return LoadedDecoder("reference", decoder, (10,), CPU)


def noise(seconds: float, rate: int = 1000) -> FloatArray:
    return np.random.default_rng(0).uniform(-0.1, 0.1, round(seconds * rate)).astype(np.float32)


def test_the_random_decoder_has_the_released_sizes() -> None:
    released = parse_decoder_config(read_tagged_yaml(GOLDENS / "full_size" / "decoder_config.json"))
    ours = models.glm4_voice_decoder()
    encoder, wanted = ours.flow.encoder, released.flow.encoder
    training = {name: getattr(wanted, name) for name in ("dropout_rate", "positional_dropout_rate")}
    training |= {"attention_dropout_rate": wanted.attention_dropout_rate}
    flow = ours.flow.model_copy(update={"encoder": encoder.model_copy(update=training)})
    assert ours.model_copy(update={"flow": flow}) == released


def test_the_small_decoder_keeps_rates_and_windows() -> None:
    full, small = models.glm4_voice_decoder(), models.glm4_voice_decoder(small=True)
    assert small.frame_rate == full.frame_rate and small.flow.encoder.block_size == full.flow.encoder.block_size
    assert small.hift.upsample_rates == full.hift.upsample_rates and small.hift.base_channels < full.hift.base_channels


def test_cosyvoice2_is_drawn_in_its_released_size_behind_a_voice() -> None:
    with torch.device("meta"):
        decoder = models.random_decoder("cosyvoice2", torch.device("meta"))
    assert isinstance(decoder, CosyVoice2Decoder) and len(decoder.voice.codes) == 125
    stepped = models._stepped(decoder, [1, 2])
    assert isinstance(stepped, CosyVoice2Decoder) and stepped.voice is decoder.voice
    assert stepped.windows == decoder.windows.but(steps=[1, 2]) != decoder.windows
    assert (
        sum(weight.numel() for weight in decoder.flow.parameters())
        + sum(weight.numel() for weight in decoder.hift.parameters())
        > 130_000_000
    )


def test_a_jump_of_energy_is_its_ratio_in_decibels() -> None:
    samples = np.concatenate([np.full(50, 0.1), np.full(50, -0.2)]).astype(np.float32)
    jumps = energy_jumps(samples, np.array([25, 50, 60]), width=10)
    np.testing.assert_allclose(jumps, [0, 20 * np.log10(2), 0], atol=1e-4)


def test_a_gain_of_its_own_in_each_chunk_is_found_at_the_borders() -> None:
    whole = noise(4.0)
    plain = np.split(whole, [1000, 2000, 3000])
    scaled = [chunk * gain for chunk, gain in zip(plain, (1, 3, 1, 3), strict=True)]
    clean, loud = measure_seams(plain, whole, 1000), measure_seams(scaled, whole, 1000)
    assert clean["borders"] == loud["borders"] == 3
    assert clean["jump at borders"] == clean["jump offline"] == loud["jump offline"]
    assert clean["jump inside"] == clean["jump offline inside"] == loud["jump offline inside"] != clean["jump offline"]
    assert loud["jump at borders"] > clean["jump at borders"] + 5  # type: ignore[operator]
    assert measure_seams([whole], whole, 1000)["jump at borders"] is None


def test_smooth_loses_nothing_and_reference_loses_frames(smooth: LoadedDecoder, reference: LoadedDecoder) -> None:
    study = bench_decoder([smooth, reference], MACHINE, seconds=3.0, seam_seconds=4.0)
    exact, missing = study.column("samples")
    assert exact == "exact" and str(missing).endswith("missing")
    assert study.column("borders") == [5, 5]
    at_borders, inside = (study.column(name)[0] for name in ("jump at borders", "jump inside"))
    assert at_borders < 1.2 * inside  # type: ignore[operator]


def test_arithmetic_stays_the_same_in_smooth_and_grows_in_reference(
    smooth: LoadedDecoder, reference: LoadedDecoder
) -> None:
    least = {
        loaded.name: [seconds for _, seconds in decode_answer(loaded, 1, MACHINE, seconds=6.0).counted]
        for loaded in (smooth, reference)
    }
    assert least["smooth"][-1] == pytest.approx(least["smooth"][3], rel=0.02)
    assert least["reference"][-1] > 1.5 * least["reference"][1]


def test_streams_in_one_batch(smooth: LoadedDecoder) -> None:
    study = bench_decoder([smooth], MACHINE, seconds=3.0, streams=(1, 3), seam_seconds=0)
    assert study.column("streams") == [1, 3] and study.column("samples") == ["exact", "exact"]
    assert study.column("answer") == pytest.approx([3.04, 3.04]) and study.column("borders") == [0, 0]


def test_a_budget_ends_an_answer_and_says_so() -> None:
    ramp = LoadedDecoder("ramp", RampDecoder(), (8,), CPU)
    study = bench_decoder([ramp], MACHINE, seconds=60.0, budget=1e-9)
    assert study.column("chunks") == [1] and study.column("samples") == ["unfinished"]
    assert study.notes[0].startswith("ramp: left after")


def test_growth_is_the_last_quarter_over_the_first() -> None:
    assert growth([1, 2, 3, 4, 5, 6, 7, 8]) == 7.5 / 1.5
    assert growth([3.0]) == 1


def test_steady_chunks_are_those_of_the_repeating_size() -> None:
    costs = [ChunkCost(0, size, float(index), 1.0, 1) for index, size in enumerate((4, 8, 8, 2))]
    answer = DecodedAnswer(costs, 1, 10, finished=True)
    assert [cost.seconds for cost in answer.steady] == [1, 2]
