"""ChatML samples, packs and prompts, exactly, against what the reference made of the same conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vita_mctp.codecs.registry import feature_positions
from vita_mctp.data.row_stream import PackedRow, join
from vita_mctp.text.chat import ChatFormat, Clip, FeatureSpan, Message, PromptStyle, Sample
from vita_mctp.text.interleave import BOOST_RATIO
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import Role, Task, Turn


class ReferencePacker:
    """The released packing with its defects.

    Rows in order of arrival, the last never emitted; padding belongs to the last sample; the features of a row's first
    sample that has any are not moved to where that sample stands.
    """

    def __init__(self, max_length: int, pad_id: int) -> None:
        self._max_length = max_length
        self._pad_id = pad_id
        self._pending: list[Sample] = []

    @property
    def pending_tokens(self) -> int:
        return sum(map(len, self._pending))

    def push(self, sample: Sample) -> PackedRow | None:
        """A padded row when `sample` does not fit behind the others any more; it then starts the next row."""
        if len(sample) > self._max_length:
            return None
        if self.pending_tokens + len(sample) <= self._max_length:
            self._pending.append(sample)
            return None
        finished, self._pending = self._pending, [sample]
        row = join(finished)
        padded = row.padded(self._max_length, self._pad_id)
        positions = padded.position_ids.copy()
        positions[len(row) :] += len(finished[-1])  # the padding goes on where the last sample ends
        ends = (*row.ends[:-1], self._max_length)
        return replace(padded, position_ids=positions, ends=ends, features=_misplaced_features(finished, row.ends))


def _misplaced_features(samples: Sequence[Sample], ends: Sequence[int]) -> tuple[FeatureSpan, ...]:
    starts = [0, *ends[:-1]]
    starts[next((index for index, sample in enumerate(samples) if sample.features), 0)] = 0
    spans = [(start, span) for start, sample in zip(starts, samples, strict=True) for span in sample.features]
    return tuple(replace(span, clip=clip, start=start + span.start) for clip, (start, span) in enumerate(spans))


@pytest.fixture(params=[kind.value for kind in VocabularyKind])
def golden(preprocess_file: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    everything = json.loads(preprocess_file.read_text())
    kind = request.param
    if kind not in everything["kinds"]:
        pytest.skip(f"{preprocess_file} has no case of kind {kind}")
    tokenizer = TextTokenizer.from_folder(preprocess_file.parent / "tokenizer", kind)
    clips = {
        name: Clip(tuple(codes), feature_positions("sensevoice", everything["fbank_frames"][name]))
        for name, codes in everything["audio_codes"].items()
    }
    return everything["kinds"][kind] | {"chat": ChatFormat(tokenizer), "clips": clips}


def _messages(case: dict[str, Any]) -> list[Message]:
    return [Message(message["role"], message["content"]) for message in case["messages"]]


def _sample(golden: dict[str, Any], case: dict[str, Any]) -> Sample:
    clips = [golden["clips"][name] for name in case["audios"]]
    return golden["chat"].sample(_messages(case), clips, case["ratio"] or BOOST_RATIO, reference=True)


def _indices(features: tuple[FeatureSpan, ...]) -> list[list[list[list[int]]]]:
    """In the reference's form: per clip (2, 1, frames + 4), batch row and positions."""
    return [[[[0] * span.length], [list(range(span.start, span.start + span.length))]] for span in features]


def test_special_ids_and_sizes(golden: dict[str, Any]) -> None:
    tokenizer = golden["chat"].tokenizer
    for token, expected in golden["special_ids"].items():
        assert tokenizer.encode(token) == [expected] if expected is not None else len(tokenizer.encode(token)) > 1, (
            token
        )
    assert tokenizer.vocabulary.size == golden["len_after_update"]
    assert tokenizer.vocabulary.padded_size % 8 == 0
    first = tokenizer.encode(golden["added_in_order"][0])[0]
    order = [tokenizer.encode(token) for token in golden["added_in_order"]]
    assert order == [[first + n] for n in range(len(order))]


def test_samples(golden: dict[str, Any]) -> None:
    for case in golden["samples"]:
        sample = _sample(golden, case)
        assert list(sample.ids) == case["input_ids"], case["name"]
        assert list(sample.labels) == case["labels"], case["name"]
        assert _indices(sample.features) == case["audio_indices"], case["name"]
        assert golden["chat"].tokenizer.decode(sample.ids, skip_special=False) == case["decoded"]


def test_packs(golden: dict[str, Any]) -> None:
    by_name = {case["name"]: case for case in reversed(golden["samples"])}
    vocabulary = golden["chat"].tokenizer.vocabulary
    packer = ReferencePacker(golden["max_padding_length"], vocabulary.pad)
    for pack in golden["packs"]:
        row = packer.push(_sample(golden, by_name[pack["fed"]]))
        expected = pack["emitted"]
        assert (row is None) == (not expected), pack["index"]
        if row is None:
            continue
        assert row.input_ids.tolist() == expected["input_ids"][0] == expected.get("tokens", expected["input_ids"])[0]
        assert row.labels.tolist() == expected["labels"][0]
        assert row.position_ids.tolist() == expected["position_ids"][0]
        assert list(row.ends) == expected["actual_seq_len"]
        assert _indices(row.features) == expected.get("audio_indices", [])
    assert packer.pending_tokens == golden["left_over_tokens_never_emitted"]


def test_the_last_row_is_kept_back_and_long_samples_are_dropped() -> None:
    packer = ReferencePacker(6, pad_id=0)
    samples = [Sample((1,) * length, (1,) * length) for length in (4, 7, 3)]
    assert [packer.push(sample) for sample in samples[:2]] == [None, None]
    row = packer.push(samples[2])
    assert row is not None and row.ends == (6,) and row.position_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert packer.pending_tokens == 3


def test_a_dialogue_with_a_voice_is_prompted_as_it_was_trained(golden: dict[str, Any]) -> None:
    """The sample of two turns ends in an answer; before it stands the prompt that asks for it."""
    chat, clips = golden["chat"], golden["clips"]
    if chat.tokenizer.vocabulary.input_kind is VocabularyKind.CONTINUOUS:
        pytest.skip("heard as features, whose prompts have their own test")
    for case in (case for case in golden["samples"] if case["name"] == "sqa_system_two_turns"):
        codes = {name: clips[name].codes for name in case["audios"]}
        voice, question, _ = (chat.speech(codes[name]) for name in case["audios"])
        plain = ChatFormat(chat.tokenizer, PromptStyle(system=None, before_speech=""))
        asked = plain.turn(Task.SPEECH_TO_SPEECH, question)
        prompt = plain.ask(asked, Task.SPEECH_TO_SPEECH, voice=voice).ids
        assert list(prompt) == case["input_ids"][: len(prompt)]
        end = case["input_ids"].index(chat.tokenizer.vocabulary.im_end, len(prompt))
        answer = Turn(Role.ASSISTANT, tuple(case["input_ids"][len(prompt) : end]))
        again = plain.turn(Task.TEXT, _messages(case)[3].content)
        prompt = plain.ask(again, Task.TEXT, voice=voice, history=[asked, answer]).ids
        assert list(prompt) == case["input_ids"][: len(prompt)]
        assert (
            case["labels"][len(prompt)] == case["input_ids"][len(prompt)] and -100 not in case["labels"][len(prompt) :]
        )


def test_questions_are_asked_as_released(golden: dict[str, Any]) -> None:
    chat, by_system = golden["chat"], {case["messages"][0]["role"]: case for case in golden["inference_prompts"][:2]}
    asked = chat.turn(Task.SPEECH_TO_SPEECH, chat.speech([7, 12]))
    assert list(chat.ask(asked, Task.SPEECH_TO_SPEECH).ids) == by_system["system"]["input_ids"]
    assert list(chat.ask(chat.turn(Task.TTS, "How are you?"), Task.TTS).ids) == by_system["user"]["input_ids"]


def test_inference_prompts(golden: dict[str, Any]) -> None:
    chat = golden["chat"]
    for case in golden["inference_prompts"]:
        turns = [Turn(Role(m.role), tuple(chat.tokenizer.encode(m.content))) for m in _messages(case)]
        assert list(chat.prompt(turns, Task.TEXT).ids) == case["input_ids"]
