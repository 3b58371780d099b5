"""CosyVoice2's decoder in windows of our own: samples depend on the codes and the voice, not on how codes arrive."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from cosyvoice2_reference_decoder import CosyVoice2ReferenceDecoder, SeededNoise, new_mel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vita_mctp.codecs.base import AudioDecoder
from vita_mctp.codecs.cosyvoice2.decoder import CosyVoice2Decoder
from vita_mctp.codecs.flow_decoder.windows import Windows
from vita_mctp.codecs.registry import audio_decoder
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray

TINY = Path(__file__).parents[1] / "parity" / "goldens" / "cosyvoice2"
SAMPLES_PER_CODE = 960
CODES = st.lists(st.integers(0, 95), max_size=45)
SOURCES = [CosyVoice2Decoder, CosyVoice2ReferenceDecoder]


@pytest.fixture(scope="module")
def folder(cosyvoice2_folder: Callable[..., Path]) -> Path:
    return cosyvoice2_folder(TINY, load_file(TINY / "flow" / "n49_prompt20.safetensors"))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> AudioDecoder:
    windows = {"chunk_sizes": [8, 12], "context": 20, "steps": [1]}
    return audio_decoder("cosyvoice2", folder, options={"windows": windows})


@pytest.fixture(scope="module")
def both(folder: Path) -> dict[type, AudioDecoder]:
    return {kind: kind.from_folder(folder) for kind in SOURCES}


def codes_of(ids: list[int], decoder: AudioDecoder) -> AudioCodes:
    return AudioCodes(np.array(ids, np.int64), decoder.codebook_size, decoder.frame_rate, decoder.name)


def streamed(decoder: AudioDecoder, blocks: list[list[int]], seed: int = 0) -> FloatArray:
    state, pieces = decoder.start(seed), []
    for index, codes in enumerate(blocks):
        chunk, state = decoder.decode_block(AudioBlock(tuple(codes), index, index == len(blocks) - 1), state)
        pieces.append(chunk.samples)
    return np.concatenate(pieces)


@st.composite
def windows(draw: st.DrawFn) -> Windows:
    overlap = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(overlap + 1, 16), min_size=1, max_size=3))
    return Windows(chunk_sizes=tuple(sizes), context=overlap + draw(st.integers(8, 20)), overlap=overlap, steps=(1,))


@settings(max_examples=12, deadline=None)
@given(ids=CODES, cuts=st.lists(st.integers(0, 45), max_size=6), windows=windows())
def test_streamed_equals_offline_for_every_cut(
    decoder: CosyVoice2Decoder, ids: list[int], cuts: list[int], windows: Windows
) -> None:
    decoder = decoder.in_windows(windows)
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    whole = decoder.decode(codes_of(ids, decoder)).samples
    assert len(whole) == len(ids) * SAMPLES_PER_CODE
    blocks = [ids[begin:end] for begin, end in pairwise(edges)]
    np.testing.assert_array_equal(streamed(decoder, blocks), whole)


def test_a_window_that_sees_all_is_the_flow_itself(folder: Path) -> None:
    opened = audio_decoder("cosyvoice2", folder, options={"windows": {"chunk_sizes": [60], "context": 60}})
    assert isinstance(opened, CosyVoice2Decoder)
    codes = list(range(59))
    _, state = opened.decode_block(AudioBlock((*codes, 5), 0, is_last=False), opened.start(3))
    noise = SeededNoise(3).mel(80, 160)
    wanted = new_mel(opened.flow, torch.tensor([[*codes, 5]]), opened.voice, noise, is_last=True)
    torch.testing.assert_close(torch.cat([state.mel, state.withheld], 1), wanted[0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_later_windows_see_the_voice_and_where_their_blocks_begin(decoder: CosyVoice2Decoder) -> None:
    """Two of one batch, behind 40 codes and behind none: each alone gives the same."""
    blocks = [AudioBlock(tuple(range(12)), 0, False), AudioBlock(tuple(range(20, 28)), 0, False)]
    _, far = decoder.decode_block(AudioBlock(tuple(range(40)), 0, False), decoder.start(1))
    states = [far, decoder.start(2)]
    together = decoder.decode_blocks(blocks, states)
    for block, state, (chunk, after) in zip(blocks, states, together, strict=True):
        alone, then = decoder.decode_block(block, state)
        torch.testing.assert_close(after.mel, then.mel, rtol=0, atol=1e-5)
        assert len(chunk.samples) == len(alone.samples) > 0
    other = CosyVoice2Decoder(decoder.flow, decoder.hift, 15, decoder.windows)
    _, voiceless = other.decode_block(blocks[0], far)
    assert (voiceless.mel - together[0][1].mel)[:, -12:].abs().max() > 1e-2


@pytest.mark.parametrize("kind", SOURCES)
@settings(max_examples=20, deadline=None)
@given(ids=CODES, wrong=st.one_of(st.integers(96, 10_000), st.integers(-5, -1)), at=st.integers(0, 45))
def test_no_id_beyond_the_codebook_reaches_the_flow(
    both: dict[type, AudioDecoder], kind: type, ids: list[int], wrong: int, at: int
) -> None:
    """As a talker's markers are: 6561 and more for released weights."""
    block = AudioBlock((*ids[:at], wrong, *ids[at:]), 0, is_last=True)
    with pytest.raises(ConfigError, match=rf"got the id {wrong}; wanted 0 to 95"):
        both[kind].decode_block(block, both[kind].start())


def test_a_folder_without_a_voice_says_how_to_make_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vita-mctp convert voice"):
        audio_decoder("cosyvoice2", folder, options={"voice": str(tmp_path / "none.safetensors")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mel": torch.zeros(80, 39)}, r"mel has shape \(80, 39\).* \(80, 40\)"),
        ({"codes": torch.full((20,), 96)}, "codes beyond 0..95"),
        ({"embedding": torch.zeros(3)}, "embedding has shape"),
        ({"more": torch.zeros(3)}, "holds more"),
    ],
)
def test_a_voice_that_does_not_fit_is_named(
    folder: Path, tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    path = tmp_path / "voice.safetensors"
    save_file(load_file(folder / "voice.safetensors") | change, path)
    with pytest.raises(CheckpointError, match=message):
        audio_decoder("cosyvoice2", folder, options={"voice": str(path)})


@pytest.mark.parametrize("name", ["flow.safetensors", "hift.safetensors", "voice.safetensors"])
def test_a_file_cut_short_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: -200 if file.name == name else None])
    with pytest.raises(CheckpointError, match=rf"{name} is cut short") as caught:
        audio_decoder("cosyvoice2", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_is_taken_for_the_released_model(folder: Path, tmp_path: Path) -> None:
    for name in ("flow.safetensors", "hift.safetensors", "voice.safetensors"):
        (tmp_path / name).symlink_to((folder / name).resolve())
    with pytest.raises(CheckpointError, match=r"flow.safetensors .*wants"):
        audio_decoder("cosyvoice2", tmp_path)


def test_windows_of_this_decoder_are_its_own(folder: Path) -> None:
    opened = audio_decoder("cosyvoice2", folder)
    assert isinstance(opened, CosyVoice2Decoder)
    assert opened.windows == Windows(chunk_sizes=(15, 15, 30), context=50, overlap=3)
