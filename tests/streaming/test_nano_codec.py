"""The nano codec with random weights: sample accounting and streaming are properties of its shape, not of training.

Its graphs are held to the networks that are trained, which know no blocks: what is streamed equals them for every cut.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vita_mctp.codecs.base import AudioDecoder, AudioTokenizer
from vita_mctp.codecs.nano import NanoCodecConfig, NanoDecoder, NanoTokenizer, grid_points
from vita_mctp.codecs.nano import codes_of as quantized
from vita_mctp.codecs.nano.config import LOG_FLOOR, LOG_MEAN, LOG_SCALE, LogMel, mel_filterbank, pad_to_codes
from vita_mctp.codecs.nano.graphs import decoder_shapes, encoder_shapes
from vita_mctp.codecs.nano.networks import FiniteScalarQuantizer, NanoEncoder, NanoMelDecoder, NanoVocoder
from vita_mctp.errors import CheckpointError
from vita_mctp.types import AudioBlock, AudioCodes, Wave

SMALL = NanoCodecConfig(fine_width=24, coarse_width=32, vocoder_width=24, encoder_coarse_layers=2, vocoder_layers=2)


def arrays(networks: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in networks.state_dict().items()}


def networks_of(config: NanoCodecConfig) -> tuple[NanoEncoder, nn.ModuleDict]:
    """All weights drawn, biases too: torch begins those of `reduce` as zeros."""
    torch.manual_seed(1)
    encoder = NanoEncoder(config)
    decoder = nn.ModuleDict({"mel_decoder": NanoMelDecoder(config), "vocoder": NanoVocoder(config)})
    for name, weight in (*encoder.named_parameters(), *decoder.named_parameters()):
        if name.endswith("bias"):
            nn.init.normal_(weight, std=0.1)
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


ENCODER, NETWORKS = networks_of(SMALL)
DECODER = NanoDecoder(SMALL, arrays(NETWORKS))


def spoken_by_networks(ids: list[int]) -> np.ndarray:
    points = FiniteScalarQuantizer(SMALL.levels).embed(torch.tensor([ids]))
    return NETWORKS["vocoder"](NETWORKS["mel_decoder"](points))[0].clamp(-1, 1).numpy()


def codes_of(ids: list[int]) -> AudioCodes:
    return AudioCodes(np.array(ids, np.int64), SMALL.codebook_size, SMALL.frame_rate, "nano")


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, 999), min_size=1, max_size=30), cuts=st.lists(st.integers(0, 30), max_size=8))
def test_streaming_equals_offline_and_the_trained_networks_for_every_cut(ids: list[int], cuts: list[int]) -> None:
    borders = sorted({0, *(min(cut, len(ids)) for cut in cuts)})
    pieces = [ids[low:high] for low, high in zip(borders, [*borders[1:], len(ids)], strict=True)]
    state, streamed = DECODER.start(), []
    for index, piece in enumerate(pieces):
        chunk, state = DECODER.decode_block(AudioBlock(tuple(piece), index, index == len(pieces) - 1), state)
        streamed.append(chunk.samples)
    offline = DECODER.decode(codes_of(ids)).samples
    assert len(offline) == len(ids) * SMALL.samples_per_code
    np.testing.assert_allclose(np.concatenate(streamed), offline, atol=2e-6)
    np.testing.assert_allclose(offline, spoken_by_networks(ids), atol=2e-5)


def test_an_answer_without_codes_has_no_samples() -> None:
    chunk, _ = DECODER.decode_block(AudioBlock((), 0, True), DECODER.start())
    assert len(chunk.samples) == 0


@settings(deadline=None, max_examples=20)
@given(samples=st.integers(1, 40_000), seed=st.integers(0, 99))
def test_the_encoder_hears_what_the_trained_network_hears(samples: int, seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1
    frames = torch.from_numpy(LogMel(SMALL)(pad_to_codes(noise, SMALL)))
    _, codes = ENCODER(frames[None])
    assert NanoTokenizer(SMALL, arrays(ENCODER)).encode(Wave(noise, 16_000)).ids.tolist() == codes[0].tolist()


@pytest.mark.parametrize("config", [SMALL, NanoCodecConfig()])
def test_the_graphs_want_the_tensors_that_are_trained(config: NanoCodecConfig) -> None:
    for networks, shapes in zip(networks_of(config), (encoder_shapes(config), decoder_shapes(config)), strict=True):
        assert {name: weight.shape for name, weight in arrays(networks).items()} == shapes


def test_an_empty_last_block_flushes_what_was_held_back() -> None:
    ids = list(range(16))
    state = DECODER.start()
    first, state = DECODER.decode_block(AudioBlock(tuple(ids), 0, False), state)
    last, _ = DECODER.decode_block(AudioBlock((), 1, True), state)
    assert 0 < len(last.samples) < len(first.samples)
    assert len(first.samples) + len(last.samples) == 16 * SMALL.samples_per_code


@settings(deadline=None, max_examples=40)
@given(
    streams=st.lists(st.lists(st.integers(0, 999), max_size=24), min_size=2, max_size=5),
    sizes=st.lists(st.integers(0, 9), min_size=5, max_size=5),
)
def test_streams_in_one_batch_sound_as_each_does_alone(streams: list[list[int]], sizes: list[int]) -> None:
    """Whichever lengths meet; a stream is over with its last block."""
    states = [DECODER.start() for _ in streams]
    waves: list[list[np.ndarray]] = [[] for _ in streams]
    at, index, running = [0] * len(streams), 0, list(range(len(streams)))
    while running:
        blocks, over = [], []
        for row in running:
            end = at[row] + sizes[row]
            last = end >= len(streams[row]) or index > 3
            blocks.append(AudioBlock(tuple(streams[row][at[row] : None if last else end]), index, last))
            at[row] = end
            over += [row] if last else []
        for row, (chunk, state) in zip(
            running, DECODER.decode_blocks(blocks, [states[row] for row in running]), strict=True
        ):
            states[row] = state
            waves[row].append(chunk.samples)
        running = [row for row in running if row not in over]
        index += 1
    for ids, wave in zip(streams, waves, strict=True):
        np.testing.assert_allclose(np.concatenate(wave), DECODER.decode(codes_of(ids)).samples, atol=2e-6)


@pytest.mark.parametrize(
    ("rate", "samples", "expected"), [(16_000, 1, 1), (16_000, 1280, 1), (16_000, 1281, 2), (8_000, 6_400, 10)]
)
def test_a_code_for_every_80_ms_begun(rate: int, samples: int, expected: int) -> None:
    tokenizer = NanoTokenizer(SMALL, arrays(ENCODER))
    noise = np.random.default_rng(0).standard_normal(samples).astype(np.float32) * 0.1
    codes = tokenizer.encode(Wave(noise, rate))
    assert len(codes.ids) == expected
    assert isinstance(tokenizer, AudioTokenizer)
    assert isinstance(DECODER, AudioDecoder)


def test_quantizer_codes_name_their_grid_points() -> None:
    quantizer = FiniteScalarQuantizer((8, 5, 5, 5))
    reals = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) * 2
    points, codes = quantizer(reals)
    assert quantized(reals.numpy(), (8, 5, 5, 5)).tolist() == codes.tolist()
    np.testing.assert_allclose(grid_points(codes.numpy(), (8, 5, 5, 5)), points, atol=1e-6)
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
    time = np.arange(16_000, dtype=np.float32) / 16_000
    peaks = [int(LogMel(config)(np.sin(2 * np.pi * hertz * time))[50].argmax()) for hertz in (300, 1000, 4000)]
    mel = [2595 * np.log10(1 + hertz / 700) for hertz in (300, 1000, 4000)]
    step = 2595 * np.log10(1 + 8000 / 700) / (config.num_mels + 1)
    assert all(abs(peak + 1 - value / step) <= 1 for peak, value in zip(peaks, mel, strict=True))


def test_log_mel_frames_are_those_of_torch() -> None:
    config, margin = NanoCodecConfig(), 176
    waves = np.random.default_rng(0).standard_normal((2, 12_800)).astype(np.float32) * 0.1
    padded = nn.functional.pad(torch.from_numpy(waves), (margin, margin))
    spectrum = torch.stft(padded, 512, 160, window=torch.hann_window(512), center=False, return_complex=True).abs()
    filters = torch.from_numpy(mel_filterbank(16_000, 512, 80))
    wanted = ((filters @ spectrum).clamp_min(LOG_FLOOR).log() - LOG_MEAN) / LOG_SCALE
    np.testing.assert_allclose(LogMel(config)(waves), wanted.transpose(1, 2), atol=1e-5)


def write_decoder(folder, change=None) -> None:  # type: ignore[no-untyped-def]
    tensors = {name: value.half().contiguous() for name, value in NETWORKS.state_dict().items()}
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
