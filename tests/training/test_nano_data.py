"""The nano model's samples: the very prompts of inference, nothing held out, any position again the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from chat_prompts import asr_prompt, spoken_prompt, text_prompt, tts_prompt
from speech_segments import deinterleave

from vita_mctp.data.row_stream import Pool
from vita_mctp.errors import ConfigError
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.samples import CodeStore, nano_pools, nano_tokenizer
from vita_mctp.text.chat import IGNORED, ChatFormat
from vita_mctp.text.interleave import BOOST_RATIO, Ratio
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
    return nano_pools((Corpus(tiny_data["corpus"]), store), ChatFormat(tokenizer), (BOOST_RATIO,))


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


def test_natural_voices_ask_and_the_answer_keeps_the_codes_that_are_spoken(
    tiny_data: dict[str, Path], tokenizer: TextTokenizer, store: CodeStore, tmp_path: Path
) -> None:
    shutil.copytree(tiny_data["corpus"], tmp_path, dirs_exist_ok=True)
    index = tmp_path / "corpus.json"
    index.write_text(index.read_text().replace('["questions", "questions"]', '["natural_questions", "questions"]'))
    natural, asked = Corpus(tmp_path), build_domain().train[0]
    heard = CodeStore(np.full(4, 7, np.int16), np.array([[n, 0, 0, 4] for n in range(len(natural))]))
    chat, ratios = ChatFormat(tokenizer), (BOOST_RATIO, Ratio((1, 4, 3, 8)))
    pools = nano_pools((Corpus(tiny_data["corpus"]), heard), chat, ratios, store, (natural, heard))
    told = {pools["natural_sqa"].make(0, draw) for draw in range(20)}
    assert len(told) == 2 and len({len(sample) for sample in told}) == 2, "in either rhythm"
    v = tokenizer.vocabulary
    for sample in told:
        codes = [v.code_of(token) for token in sample.ids if v.is_audio(token)]
        spoken = 8 + sorted({qa.answer for qa in build_domain().train[:8]}).index(asked.answer)
        assert tuple(codes) == (7, 7, 7, 7, *store.codes(spoken, 0))
    assert asked.question in tokenizer.decode(pools["natural_asr"].make(0, 0).ids)


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
