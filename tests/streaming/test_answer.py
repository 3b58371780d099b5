"""One answer from tokens to text and sound: nothing lost, nothing mixed, nothing left running."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ramp import RampDecoder, RampSettings

from vita_mctp.answer import AnswerEvent, Clock, SoundStream, stream_answer
from vita_mctp.text.tokenizer import TextTokenizer, train_tokenizer
from vita_mctp.types import BACKBONE, Done, Role, StopReason, TextDelta, TokenEvent, TokenKind, Turn, WaveChunk

HOP = 1280


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return train_tokenizer(["two plus three"], 400, tmp_path_factory.mktemp("tokenizer"), 64)


def events_of(tokenizer: TextTokenizer, ids: Iterable[int]) -> Iterator[TokenEvent]:
    for index, token in enumerate(ids):
        kind = tokenizer.vocabulary.kind(token)
        yield TokenEvent(index, token, kind, BACKBONE, StopReason.EOS if kind is TokenKind.STOP else None)


def answer_of(
    tokenizer: TextTokenizer, ids: Iterable[int], block_sizes: Sequence[int] = (), look_ahead: int = 2
) -> Iterator[AnswerEvent]:
    sound = SoundStream(RampDecoder(RampSettings(look_ahead=look_ahead)), block_sizes)
    return stream_answer(events_of(tokenizer, ids), tokenizer, sound, "boost", Clock())


def sound_of(events: list[AnswerEvent]) -> np.ndarray:
    return np.concatenate([event.samples for event in events if isinstance(event, WaveChunk)])


def ramp(codes: list[int]) -> np.ndarray:
    return np.array([(code + offset / HOP) / 64 for code in codes for offset in range(HOP)], np.float32)


def spoken(tokenizer: TextTokenizer, text: str, codes: list[int], every: int) -> list[int]:
    """An answer whose text ids each stand before a segment of `every` codes, the rest in the last segment."""
    v, ids, rest = tokenizer.vocabulary, list[int](), [tokenizer.vocabulary.audio_id(code) for code in codes]
    for word in tokenizer.encode(text):
        ids += [word, v.begin_of_audio, *rest[:every], v.end_of_audio]
        rest = rest[every:]
    return [*ids, v.begin_of_audio, *rest, v.end_of_audio, v.im_end]


@given(
    codes=st.lists(st.integers(0, 63), max_size=50),
    text=st.text(st.sampled_from("two plus é日本👍🏽\n"), max_size=8),
    every=st.integers(0, 9),
    block_sizes=st.lists(st.integers(1, 9), max_size=4),
    look_ahead=st.integers(0, 5),
)
def test_sound_and_text_come_out_whole(
    tokenizer: TextTokenizer, codes: list[int], text: str, every: int, block_sizes: list[int], look_ahead: int
) -> None:
    events = list(answer_of(tokenizer, spoken(tokenizer, text, codes, every), block_sizes, look_ahead))
    np.testing.assert_array_equal(sound_of(events), ramp(codes))
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert "".join(deltas) == text and all(deltas) and "\ufffd" not in "".join(deltas)
    chunks = [event for event in events if isinstance(event, WaveChunk)]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    done = events[-1]
    assert isinstance(done, Done) and done.reason is StopReason.EOS
    assert done.text == text and list(done.codes) == codes
    assert done.timings.audio_seconds == pytest.approx(len(codes) * 0.08)


@given(
    answers=st.lists(st.lists(st.integers(0, 63), max_size=20), min_size=2, max_size=4),
    order=st.lists(st.integers(0, 3), max_size=60),
)
def test_answers_side_by_side_do_not_mix(tokenizer: TextTokenizer, answers: list[list[int]], order: list[int]) -> None:
    running = [answer_of(tokenizer, spoken(tokenizer, "two plus", codes, 3)) for codes in answers]
    heard: list[list[AnswerEvent]] = [[] for _ in answers]
    for turn in [*(number % len(answers) for number in order), *(list(range(len(answers))) * 80)]:
        heard[turn] += [event for event in [next(running[turn], None)] if event is not None]
    for codes, events in zip(answers, heard, strict=True):
        np.testing.assert_array_equal(sound_of(events), ramp(codes))


@pytest.mark.parametrize(("ends", "reason"), [(StopReason.LENGTH,) * 2, (None, StopReason.CANCELLED)])
def test_an_answer_that_was_cut_short_says_why_and_gives_its_held_back_sound(
    tokenizer: TextTokenizer, ends: StopReason | None, reason: StopReason
) -> None:
    *made, last = events_of(tokenizer, [tokenizer.vocabulary.audio_id(code) for code in range(8)])
    sound = SoundStream(RampDecoder(RampSettings(look_ahead=3)))
    events = list(stream_answer([*made, replace(last, ends=ends)], tokenizer, sound, "boost", Clock()))
    np.testing.assert_array_equal(sound_of(events), ramp(list(range(8))))
    assert isinstance(events[-1], Done) and events[-1].reason is reason


def test_the_turns_of_an_answer_are_what_it_was_without_its_end(tokenizer: TextTokenizer) -> None:
    asked = Turn(Role.USER, (1, 2))
    ids = spoken(tokenizer, "two plus", [1, 2, 3, 4], 2)
    v, cut = tokenizer.vocabulary, ids.index(tokenizer.vocabulary.end_of_audio)
    for made, kept in ((ids, ids[:-1]), (ids[:cut], [*ids[:cut], v.end_of_audio]), (ids[: cut + 1], ids[: cut + 1])):
        events = events_of(tokenizer, made)
        *_, done = stream_answer(events, tokenizer, None, "boost", Clock(), asked)
        assert isinstance(done, Done) and done.turns == (asked, Turn(Role.ASSISTANT, tuple(kept)))


def test_half_a_character_at_the_end_is_marked(tokenizer: TextTokenizer) -> None:
    events = list(answer_of(tokenizer, tokenizer.encode("é")[:1]))
    assert isinstance(events[-1], Done) and events[-1].text == "\ufffd"


def test_an_answer_without_sound_still_sends_a_last_chunk(tokenizer: TextTokenizer) -> None:
    chunks = [event for event in answer_of(tokenizer, tokenizer.encode("two")) if isinstance(event, WaveChunk)]
    assert [(len(chunk.samples), chunk.is_last) for chunk in chunks] == [(0, True)]


def test_an_answer_without_a_decoder_is_text_alone(tokenizer: TextTokenizer) -> None:
    ids = spoken(tokenizer, "two", [1, 2, 3], 3)
    events = list(stream_answer(events_of(tokenizer, ids), tokenizer, None, "vanilla", Clock()))
    assert [type(event) for event in events] == [TextDelta, Done]


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_an_answer_stops_generation(tokenizer: TextTokenizer, taken: int) -> None:
    made: list[int] = []
    stopped: list[bool] = []

    def endless() -> Iterator[TokenEvent]:
        try:
            while True:
                made.append(tokenizer.vocabulary.audio_id(len(made) % 64))
                yield TokenEvent(len(made) - 1, made[-1], TokenKind.AUDIO, BACKBONE)
        finally:
            stopped.append(True)

    tokens = endless()
    running = stream_answer(tokens, tokenizer, SoundStream(RampDecoder()), "boost", Clock())
    for _ in range(taken):
        next(running)
    running.close()
    assert len(made) == 8 * taken and stopped == [True]


def test_times_are_noted_in_the_order_of_events(tokenizer: TextTokenizer) -> None:
    done = list(answer_of(tokenizer, spoken(tokenizer, "two plus", list(range(30)), 10)))[-1]
    assert isinstance(done, Done)
    times = done.timings
    assert times.first_text is not None and times.first_audio_tokens is not None and times.first_sound is not None
    assert 0 < times.first_text < times.first_audio_tokens < times.first_sound <= times.total
    assert times.tokens == len(spoken(tokenizer, "two plus", list(range(30)), 10))
    assert times.real_time_factor == pytest.approx(times.total / (30 * 0.08))
