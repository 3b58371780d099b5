"""The nano codec with random weights: sample accounting and streaming are properties of its shape, not of training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vita_mctp.codecs.base import AudioDecoder, AudioTokenizer
from vita_mctp.codecs.nano import NanoCodecConfig, NanoDecoder, NanoTokenizer
from vita_mctp.codecs.nano.config import LogMel
from vita_mctp.codecs.nano.networks import FiniteScalarQuantizer, NanoEncoder, NanoMelDecoder, NanoVocoder
from vita_mctp.errors import CheckpointError
from vita_mctp.types import AudioBlock, AudioCodes, Wave

SMALL = NanoCodecConfig(fine_width=24, coarse_width=32, vocoder_width=24, encoder_coarse_layers=2, vocoder_layers=2)


def small_decoder() -> NanoDecoder:
    torch.manual_seed(1)
    return NanoDecoder(SMALL, NanoMelDecoder(SMALL).eval(), NanoVocoder(SMALL).eval())


DECODER = small_decoder()


def codes_of(ids: list[int]) -> AudioCodes:
    return AudioCodes(np.array(ids, np.int64), SMALL.codebook_size, SMALL.frame_rate, "nano")


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, 999), max_size=30), cuts=st.lists(st.integers(0, 30), max_size=8))
def test_streaming_equals_offline_for_every_cut(ids: list[int], cuts: list[int]) -> None:
    borders = sorted({0, *(min(cut, len(ids)) for cut in cuts)})
    pieces = [ids[low:high] for low, high in zip(borders, [*borders[1:], len(ids)], strict=True)]
    state, streamed = DECODER.start(), []
    for index, piece in enumerate(pieces):
        chunk, state = DECODER.decode_block(AudioBlock(tuple(piece), index, index == len(pieces) - 1), state)
        streamed.append(chunk.samples)
    offline = DECODER.decode(codes_of(ids)).samples
    assert len(offline) == len(ids) * SMALL.samples_per_code
    np.testing.assert_allclose(np.concatenate(streamed), offline, atol=2e-6)


def test_an_empty_last_block_flushes_what_was_held_back() -> None:
    ids = list(range(16))
    state = DECODER.start()
    first, state = DECODER.decode_block(AudioBlock(tuple(ids), 0, False), state)
    last, _ = DECODER.decode_block(AudioBlock((), 1, True), state)
    assert 0 < len(last.samples) < len(first.samples)
    assert len(first.samples) + len(last.samples) == 16 * SMALL.samples_per_code


def test_two_streams_do_not_mix() -> None:
    one, other = list(range(24)), list(range(500, 524))
    states, waves = [DECODER.start(), DECODER.start()], ([], [])
    for low in range(0, 24, 8):
        for row, ids in enumerate((one, other)):
            block = AudioBlock(tuple(ids[low : low + 8]), low // 8, low == 16)
            chunk, states[row] = DECODER.decode_block(block, states[row])
            waves[row].append(chunk.samples)
    for ids, wave in zip((one, other), waves, strict=True):
        np.testing.assert_allclose(np.concatenate(wave), DECODER.decode(codes_of(ids)).samples, atol=2e-6)


@pytest.mark.parametrize(
    ("rate", "samples", "expected"), [(16_000, 1, 1), (16_000, 1280, 1), (16_000, 1281, 2), (8_000, 6_400, 10)]
)
def test_a_code_for_every_80_ms_begun(rate: int, samples: int, expected: int) -> None:
    tokenizer = NanoTokenizer(SMALL, NanoEncoder(SMALL).eval())
    noise = np.random.default_rng(0).standard_normal(samples).astype(np.float32) * 0.1
    codes = tokenizer.encode(Wave(noise, rate))
    assert len(codes.ids) == expected
    assert isinstance(tokenizer, AudioTokenizer)
    assert isinstance(DECODER, AudioDecoder)


def test_quantizer_codes_name_their_grid_points() -> None:
    quantizer = FiniteScalarQuantizer((8, 5, 5, 5))
    points, codes = quantizer(torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) * 2)
    assert codes.min() >= 0 and codes.max() < 1000 and len(codes.unique()) > 500
    torch.testing.assert_close(quantizer.embed(codes), points)
    every = torch.arange(1000)
    assert len(quantizer.embed(every).unique(dim=0)) == 1000


def test_quantizer_passes_gradients_through() -> None:
    x = torch.zeros(3, 4, requires_grad=True)
    FiniteScalarQuantizer((8, 5, 5, 5))(x)[0].sum().backward()
    assert x.grad is not None and bool((x.grad > 0).all())


def test_log_mel_finds_a_tone_at_its_frequency() -> None:
    config = NanoCodecConfig()
    time = torch.arange(16_000) / 16_000
    peaks = [
        int(LogMel(config)(torch.sin(2 * torch.pi * hertz * time)[None])[0, 50].argmax()) for hertz in (300, 1000, 4000)
    ]
    mel = [2595 * np.log10(1 + hertz / 700) for hertz in (300, 1000, 4000)]
    step = 2595 * np.log10(1 + 8000 / 700) / (config.num_mels + 1)
    assert all(abs(peak + 1 - value / step) <= 1 for peak, value in zip(peaks, mel, strict=True))


def write_decoder(folder, change=None) -> None:  # type: ignore[no-untyped-def]
    modules = nn.ModuleDict({"mel_decoder": DECODER.mel_decoder, "vocoder": DECODER.vocoder})
    tensors = {name: value.half().contiguous() for name, value in modules.state_dict().items()}
    if change:
        change(tensors)
    SMALL.save(folder)
    save_file(tensors, folder / "decoder.safetensors")


def test_a_saved_decoder_speaks_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_decoder(tmp_path)
    loaded = NanoDecoder.from_folder(tmp_path).decode(codes_of([3, 1, 4, 1, 5]))
    np.testing.assert_allclose(loaded.samples, DECODER.decode(codes_of([3, 1, 4, 1, 5])).samples, atol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("vocoder.norm.bias"), "lacks vocoder.norm.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "holds extra"),
        (lambda tensors: tensors.update({"vocoder.norm.bias": torch.zeros(3)}), r"vocoder.norm.bias has shape \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    write_decoder(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        NanoDecoder.from_folder(tmp_path)


def test_a_file_cut_short_is_an_error(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_decoder(tmp_path)
    path = tmp_path / "decoder.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        NanoDecoder.from_folder(tmp_path)
