"""XY-Tokenizer's decoder in windows of our own: the samples depend on the codes alone, not on how they arrive."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vita_mctp.codecs.base import AudioDecoder, AudioTokenizer
from vita_mctp.codecs.registry import audio_decoder, audio_tokenizer
from vita_mctp.codecs.xy_tokenizer import XyDecoder, XyState, XyWindows
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.types import AudioBlock, AudioCodes, Wave

TINY = Path(__file__).parents[1] / "parity" / "goldens" / "xy_tokenizer"
SAMPLES_PER_FRAME = 1280


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("xy")
    (made / "model.safetensors").symlink_to(TINY / "model.safetensors")
    (made / "config.json").write_text(json.dumps(json.loads((TINY / "index.json").read_text())["config"]))
    return made


@pytest.fixture(scope="module")
def decoder(folder: Path) -> XyDecoder:
    opened = audio_decoder("xy_tokenizer", folder)
    assert isinstance(opened, XyDecoder)
    return opened


def codes_of(ids: list[int], decoder: XyDecoder) -> AudioCodes:
    """8 ids a frame, of the drawn ones in turn."""
    frames = np.array([[(id * 7 + book) % 32 for book in range(8)] for id in ids], np.int64).reshape(-1, 8)
    return AudioCodes(frames, decoder.codebook_size, decoder.frame_rate, decoder.name)


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, 31), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    windows=st.builds(XyWindows, hop=st.integers(1, 12), left=st.integers(0, 20), right=st.integers(0, 5)),
)
def test_streamed_equals_offline_for_every_cut(
    decoder: XyDecoder, ids: list[int], cuts: list[int], windows: XyWindows
) -> None:
    decoder = XyDecoder(decoder.config, decoder.network, windows)
    codes = codes_of(ids, decoder)
    every, state, pieces = codes.as_block().codes, decoder.start(), []
    edges = [0, *sorted(min(cut, len(every)) for cut in cuts), len(every)]
    for index, (begin, end) in enumerate(pairwise(edges)):
        chunk, state = decoder.decode_block(AudioBlock(every[begin:end], index, index == len(edges) - 2), state)
        pieces.append(chunk.samples)
        assert len(state.codes) <= windows.left + windows.hop + windows.right
    whole = decoder.decode(codes).samples
    assert len(whole) == len(every) * SAMPLES_PER_FRAME
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_what_fits_into_one_window_is_the_authors_answer(decoder: XyDecoder) -> None:
    codes = codes_of(list(range(20)), decoder)
    wide = XyDecoder(decoder.config, decoder.network, XyWindows(hop=20, left=0, right=0))
    np.testing.assert_array_equal(wide.decode(codes).samples, decoder.decode_whole(codes).samples)


def test_both_halves_keep_the_protocols(folder: Path, decoder: XyDecoder) -> None:
    tokenizer = audio_tokenizer("xy_tokenizer", folder)
    assert isinstance(tokenizer, AudioTokenizer) and isinstance(decoder, AudioDecoder)
    assert (tokenizer.num_codebooks, tokenizer.codebook_size, tokenizer.frame_rate) == (8, 32, decoder.frame_rate)
    for count, frames in ((0, 0), (1_279, 0), (1_280, 1), (1_281, 1), (12_800, 10)):
        noise = np.random.default_rng(count).standard_normal(count).astype(np.float32) / 8
        assert tokenizer.encode(Wave(noise, 16_000)).ids.shape == (frames, 8)


@pytest.mark.parametrize("wrong", [32, 1_000, -1])
def test_an_id_beyond_the_codebooks_is_refused(decoder: XyDecoder, wrong: int) -> None:
    with pytest.raises(ConfigError, match=f"got the id {wrong}; wanted 0 to 31"):
        decoder.decode_block(AudioBlock(((0, 1, 2, 3, 4, 5, 6, wrong),), 0, is_last=True), XyState())


def test_the_released_file_is_read_as_it_is(folder: Path, tmp_path: Path, decoder: XyDecoder) -> None:
    """Its tensors lie under one key, and it holds the positions and what only training needed."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    torch.save({"generator": tensors, "step": 3}, tmp_path / "xy_tokenizer.ckpt")
    opened, codes = audio_decoder("xy_tokenizer", tmp_path), codes_of([1, 2, 3], decoder)
    np.testing.assert_array_equal(opened.decode(codes).samples, decoder.decode(codes).samples)

    torch.save({"optimizer": tensors}, tmp_path / "xy_tokenizer.ckpt")
    with pytest.raises(CheckpointError, match="something else than a mapping of names to tensors"):
        audio_decoder("xy_tokenizer", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut short"):
        audio_decoder("xy_tokenizer", tmp_path)


@pytest.mark.parametrize("options", [{"hop": 0}, {"left": 10**9}, {"overlap": 3}])
def test_windows_that_cannot_work_are_refused(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="windows of the audio decoder xy_tokenizer"):
        audio_decoder("xy_tokenizer", folder, options={"windows": options})
