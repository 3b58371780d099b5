"""The ramp codec and the chunker keep count of every sample, however a stream is cut."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ramp import RampDecoder, RampSettings, RampTokenizer

from vita_mctp.codecs import registry
from vita_mctp.codecs.base import AudioChunker, AudioDecoder, AudioTokenizer
from vita_mctp.codecs.registry import audio_decoder, audio_tokenizer, register
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.types import AudioBlock, AudioCodes, Wave

RATE = Fraction(25, 2)
CODES = st.lists(st.integers(0, 63), max_size=40)
BOOKS = st.sampled_from([1, 2, 5, 8])


def codes_of(flat: list[int], books: int) -> AudioCodes:
    """Whole frames of Q ids, as (N,) for one codebook."""
    ids = np.array(flat[: len(flat) // books * books], np.int64)
    return AudioCodes(ids if books == 1 else ids.reshape(-1, books), 64, RATE, "ramp")


@given(flat=CODES, books=BOOKS, cuts=st.lists(st.integers(0, 40), max_size=12), look_ahead=st.integers(0, 9))
def test_streamed_equals_offline_for_every_cut(flat: list[int], books: int, cuts: list[int], look_ahead: int) -> None:
    decoder = RampDecoder(RampSettings(look_ahead=look_ahead, num_codebooks=books))
    codes = codes_of(flat, books)
    every = codes.as_block().codes
    edges = [0, *sorted(min(cut, len(every)) for cut in cuts), len(every)]
    state, pieces = decoder.start(), []
    for index, (begin, end) in enumerate(pairwise(edges)):
        block = AudioBlock(every[begin:end], index, index == len(edges) - 2)
        chunk, state = decoder.decode_block(block, state)
        pieces.append(chunk.samples)
    offline = decoder.decode(codes)
    assert len(offline.samples) == len(every) * 1280 and codes.num_codebooks == books
    np.testing.assert_array_equal(np.concatenate(pieces), offline.samples)


@given(flat=st.lists(st.integers(0, 63), min_size=8, max_size=24), books=BOOKS, short=st.integers(0, 1279))
def test_codes_survive_the_round_trip(flat: list[int], books: int, short: int) -> None:
    settings, codes = RampSettings(num_codebooks=books), codes_of(flat, books)
    wave = RampDecoder(settings).decode(codes)
    part = 1280 // books
    cut = Wave(wave.samples[: len(wave.samples) - short % part], wave.sample_rate)
    heard = RampTokenizer(settings).encode(cut)
    assert heard.ids.tolist() == codes.ids.tolist() and heard.ids.shape == codes.ids.shape


@pytest.mark.parametrize("shape", [(), (2, 3, 4), (3, 0)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="AudioCodes"):
        AudioCodes(np.zeros(shape, np.int64), 64, RATE, "ramp")


@given(codes=CODES, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_blocks_hold_all_codes_and_the_last_one_always_comes(codes: list[int], sizes: list[int]) -> None:
    chunker = AudioChunker(sizes)
    full = [block for code in codes if (block := chunker.push(code)) is not None]
    blocks = [*full, chunker.finish()]
    assert [code for block in blocks for code in block.codes] == codes
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert [block.is_last for block in blocks] == [False] * len(full) + [True]
    assert [len(block.codes) for block in full] == [*sizes, *[sizes[-1]] * len(full)][: len(full)]


def test_a_last_block_on_an_edge_is_sent_empty() -> None:
    chunker = AudioChunker([2])
    assert chunker.push(5) is None and chunker.push(6) == AudioBlock((5, 6), 0, False)
    assert chunker.finish() == AudioBlock((), 1, True)


@pytest.mark.parametrize("sizes", [(), (0,), (8, 0), (-1, 4)])
def test_blocks_without_codes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least one code"):
        AudioChunker(sizes)


def test_codecs_come_by_name(tmp_path: Path) -> None:
    (tmp_path / "ramp.json").write_text('{"codebook_size": 8}')
    tokenizer, decoder = audio_tokenizer("ramp", tmp_path), audio_decoder("ramp", tmp_path)
    assert isinstance(tokenizer, AudioTokenizer) and isinstance(decoder, AudioDecoder)
    assert tokenizer.codebook_size == decoder.codebook_size == 8


class Placed:
    """A codec that runs on a device of the caller's choice."""

    def __init__(self, folder: Path, device: str) -> None:
        self.opened = (folder, device)

    @classmethod
    def from_folder(cls, folder: Path, *, device: str = "nowhere") -> Placed:
        return cls(folder, device)


def test_a_codec_that_takes_a_device_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._CLASSES["audio decoder"], "placed", "placed:Placed")
    monkeypatch.setattr(registry, "import_module", lambda name: SimpleNamespace(Placed=Placed))
    assert audio_decoder("placed", tmp_path, "cuda:1").opened == (tmp_path, "cuda:1")  # type: ignore[attr-defined]


def test_an_unknown_codec_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown audio decoder 'mp3'; known: .*nano, .*ramp"):
        audio_decoder("mp3", tmp_path)


def test_a_codec_name_stands_for_one_codec() -> None:
    with pytest.raises(ConfigError, match="already stands for"):
        register("ramp", decoder="somewhere.else:Decoder")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "ramp.json"),
        ('{"hop": 3}', "hop"),
        ('{"codebook_size": 1000000000000}', "codebook_size"),
        ('{"num_codebooks": 3}', "whole number"),
        ("[1]", "ramp.json"),
        ("{", "ramp.json"),
    ],
)
def test_a_bad_ramp_folder_is_named(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "ramp.json").write_text(text)
    with pytest.raises(CheckpointError, match=complaint):
        audio_decoder("ramp", tmp_path)
