"""The nano model's samples: the very prompts of inference, nothing held out, any position again the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_prompts import asr_prompt, spoken_prompt, text_prompt, tts_prompt
from speech_segments import deinterleave

from vita_mctp.data.row_stream import Pool
from vita_mctp.errors import ConfigError
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.samples import CodeStore, nano_pools, nano_tokenizer
from vita_mctp.text.chat import IGNORED, ChatFormat
from vita_mctp.text.tokenizer import TextTokenizer

NUM_CODES = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return nano_tokenizer(tmp_path_factory.mktemp("tokenizer"), NUM_CODES)


@pytest.fixture
def store(tiny_data: dict[str, Path]) -> CodeStore:
    return CodeStore.load(tiny_data["tokens"])


@pytest.fixture
def pools(tiny_data: dict[str, Path], tokenizer: TextTokenizer, store: CodeStore) -> dict[str, Pool]:
    return nano_pools(Corpus(tiny_data["corpus"]), store, ChatFormat(tokenizer), (1, 10, 4, 10))


def test_a_sample_is_the_prompt_of_inference_and_then_only_targets(
    pools: dict[str, Pool], tokenizer: TextTokenizer, store: CodeStore
) -> None:
    chat, first, answers = ChatFormat(tokenizer), build_domain().train[0], 8
    spoken = sorted({qa.answer for qa in build_domain().train[:8]})
    codes = store.codes(0, 1)
    prompts = {
        "asr": asr_prompt(chat, codes),
        "sqa": spoken_prompt(chat, codes),
        "sqa_text": spoken_prompt(chat, codes, system=None),
        "tts_answers": tts_prompt(chat, spoken[0]),
        "text": text_prompt(chat, first.question),
    }
    for name, prompt in prompts.items():
        sample = pools[name].make(0, 1)
        assert sample.ids[: len(prompt.ids)] == prompt.ids, name
        assert set(sample.labels[: len(prompt.ids)]) == {IGNORED}, name
        assert sample.labels[len(prompt.ids) :] == sample.ids[len(prompt.ids) :], name
    answer = pools["sqa"].make(0, 1).ids[len(prompts["sqa"].ids) : -2]
    v = tokenizer.vocabulary
    text, audio = deinterleave(answer, v.begin_of_audio, v.end_of_audio)
    assert tokenizer.decode(text) == first.answer
    assert tuple(map(v.code_of, audio)) == store.codes(answers + spoken.index(first.answer), 0)


def test_held_out_speech_is_in_no_pool(pools: dict[str, Pool], tokenizer: TextTokenizer) -> None:
    held_out = build_domain().held_out[0].question
    for name, pool in pools.items():
        written = {tokenizer.decode(pool.make(item, 0).ids) for item in range(pool.size)}
        assert not any(held_out in text for text in written), name
    assert pools["asr"].size == pools["sqa"].size == 8


def test_every_word_and_prompt_is_short(tokenizer: TextTokenizer) -> None:
    chat = ChatFormat(tokenizer)
    for word in build_domain().vocabulary:
        assert len(chat.text(f" {word}")) == 1, word
    assert len(spoken_prompt(chat, []).ids) < 40


def test_a_question_is_heard_in_all_its_variants(pools: dict[str, Pool]) -> None:
    assert pools["asr"].make(0, 0) != pools["asr"].make(0, 1)
    assert pools["asr"].make(0, 0) == pools["asr"].make(0, 2)
    assert pools["tts_answers"].make(0, 0) == pools["tts_answers"].make(0, 1)


def test_missing_codes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenise the corpus first"):
        CodeStore.load(tmp_path)
