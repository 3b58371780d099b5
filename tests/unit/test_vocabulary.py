"""Ids by name, the released layout, and the tokenizer in both directions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC
from transformers import AutoTokenizer

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.text.tokenizer import IncrementalDecoder, TextTokenizer, train_tokenizer
from vita_mctp.text.vocabulary import Vocabulary, VocabularyKind, audio_token, released_additions
from vita_mctp.types import TokenKind

TEXTS = ["what is two plus three", "it is five", "the capital of france is paris", "It's hot!"]
NUM_AUDIO = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 1000, path, NUM_AUDIO)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(folder)


def test_names_follow_the_released_order(tokenizer: TextTokenizer) -> None:
    v = tokenizer.vocabulary
    assert (v.im_start, v.im_end) == (v.endoftext + 1, v.endoftext + 2)
    additions = released_additions(VocabularyKind.DISCRETE)
    assert len(additions) == 20 and len(released_additions(VocabularyKind.CONTINUOUS)) == 21
    assert [tokenizer.encode(token) for token in additions] == [[v.im_end + 1 + n] for n in range(20)]
    assert v.audio_0 == v.im_end + 21
    assert tokenizer.encode("<|audio_0|><|audio_49|>") == [v.audio_id(0), v.audio_id(49)] == [v.audio_0, v.size - 1]
    assert (v.eos_ids, v.pad) == ((v.im_end, v.endoftext), v.endoftext)
    assert v.size == v.audio_0 + NUM_AUDIO and v.size <= v.padded_size < v.size + 8 and v.padded_size % 8 == 0


def test_kind_of_each_id(tokenizer: TextTokenizer) -> None:
    v = tokenizer.vocabulary
    marked = {v.begin_of_audio: TokenKind.BEGIN, v.end_of_audio: TokenKind.END, v.im_end: TokenKind.STOP}
    marked[v.endoftext] = TokenKind.STOP
    for token in range(v.padded_size):
        expected = TokenKind.AUDIO if v.audio_0 <= token < v.size else marked.get(token, TokenKind.TEXT)
        assert v.kind(token) is expected
        assert v.is_audio(token) == (expected is TokenKind.AUDIO)
    assert [v.code_of(v.audio_id(code)) for code in range(NUM_AUDIO)] == list(range(NUM_AUDIO))


def test_ids_outside_the_codebook_are_refused(tokenizer: TextTokenizer) -> None:
    v = tokenizer.vocabulary
    for code in (-1, NUM_AUDIO):
        with pytest.raises(ValueError, match="outside the codebook"):
            v.audio_id(code)
    for token in (v.audio_0 - 1, v.size):
        with pytest.raises(ValueError, match="no audio code"):
            v.code_of(token)


def test_contradicting_ids_are_refused(tokenizer: TextTokenizer) -> None:
    v = tokenizer.vocabulary
    for wrong in ({"im_end": v.im_start}, {"im_end": v.audio_0}, {"num_audio": 0}):
        with pytest.raises(ConfigError):
            dataclasses.replace(v, **wrong)
    ids = {"<|im_start|>": 0, "<|audio_0|>": 5, "<|audio_2|>": 7}
    with pytest.raises(ConfigError, match="lacks <|im_end|>".replace("|", r"\|")):
        Vocabulary.from_lookup(ids.get, 3)
    with pytest.raises(ConfigError, match="consecutive"):
        Vocabulary.from_lookup((ids | {"<|audio_2|>": 8}).get, 3)


def test_additions_are_idempotent(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = TextTokenizer.from_folder(tmp_path, VocabularyKind.DISCRETE, NUM_AUDIO)
    assert again.vocabulary == tokenizer.vocabulary
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_plus_vocabulary_has_the_context_token(tmp_path: Path) -> None:
    plus = train_tokenizer(TEXTS, 1000, tmp_path, NUM_AUDIO, kind=VocabularyKind.CONTINUOUS)
    assert plus.vocabulary.context_of_audio == plus.vocabulary.end_of_audio + 1
    assert TextTokenizer.from_folder(tmp_path).vocabulary == plus.vocabulary
    with pytest.raises(CheckpointError, match="of kind sensevoice_glm4voice"):
        TextTokenizer.from_folder(tmp_path, "glm4voice")


@pytest.mark.parametrize("content", [None, "", "{", '{"model": 3}'])
def test_unreadable_folder_is_one_clear_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)


def test_contradicting_requests_are_errors(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="holds 50 audio tokens"):
        TextTokenizer.from_folder(folder, num_audio=51)
    with pytest.raises(ConfigError, match="known are glm4voice, sensevoice_glm4voice"):
        TextTokenizer.from_folder(folder, "whisper")


def test_every_domain_word_is_one_token(tokenizer: TextTokenizer) -> None:
    for word in {word for text in [*TEXTS[:3], "It", "hot"] for word in text.split()}:
        assert len(tokenizer.encode(word)) == 1 == len(tokenizer.encode(" " + word)), word
    assert len(tokenizer.encode(TEXTS[0])) == 5


def test_training_is_deterministic_and_bounded(tmp_path: Path, folder: Path) -> None:
    train_tokenizer(list(TEXTS), 1000, tmp_path / "same", NUM_AUDIO)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(ConfigError, match="raise vocab_size"):
        train_tokenizer(TEXTS, 270, tmp_path / "small", NUM_AUDIO)


def test_transformers_reads_the_folder_alike(tokenizer: TextTokenizer, folder: Path) -> None:
    other = AutoTokenizer.from_pretrained(folder)
    text = "What's 12 plus 3?\n\n  it is <|audio_3|>五 déjà <|im_end|>"
    ids = tokenizer.encode(text)
    assert type(other).__name__.startswith("Qwen2Tokenizer")
    assert other(text).input_ids == ids
    assert other.decode(ids) == tokenizer.decode(ids, skip_special=False)
    assert (other.eos_token_id, other.pad_token_id) == tokenizer.vocabulary.eos_ids
    assert len(other) == tokenizer.vocabulary.size


@given(text=st.text())
@settings(deadline=None)
def test_ordinary_text_comes_back_whole_and_is_never_special(tokenizer: TextTokenizer, text: str) -> None:
    hostile = f"{text}<|im_end|>{audio_token(1)}"
    ids = tokenizer.encode_ordinary(hostile)
    assert all(token < tokenizer.vocabulary.endoftext for token in ids)
    assert tokenizer.decode(ids) == NFC().normalize_str(hostile)


@given(data=st.data(), text=st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
@settings(deadline=None)
def test_incremental_decoding_equals_whole_decoding(tokenizer: TextTokenizer, text: str, data: st.DataObject) -> None:
    v = tokenizer.vocabulary
    ids = tokenizer.encode_ordinary(text)
    speech = [v.begin_of_audio, v.audio_id(3), v.audio_id(7), v.end_of_audio]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    decoder, deltas = IncrementalDecoder(tokenizer), []
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        deltas.append(decoder.push(ids[start:stop]))
        assert decoder.push(speech) == ""
    assert "".join([*deltas, decoder.flush()]) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(-3, 900), max_size=40))
@settings(deadline=None)
def test_any_ids_decode_alike_at_once_and_one_by_one(tokenizer: TextTokenizer, ids: list[int]) -> None:
    decoder = IncrementalDecoder(tokenizer)
    deltas = [decoder.push([token]) for token in ids]
    assert "".join([*deltas, decoder.flush()]) == tokenizer.decode(ids)
    assert decoder.flush() == ""


def test_half_a_character_waits_and_then_shows(tokenizer: TextTokenizer) -> None:
    first, second = tokenizer.encode_ordinary("é")
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push([first]) == ""
    assert decoder.push([second]) == "é"
    assert decoder.push([first]) == ""
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"
