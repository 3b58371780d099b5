"""Replies of a model: each kind of question, cancelled from outside, with a history cut to what was heard."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vita_mctp.answer import AnswerEvent
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.items import History, Item, Playback, cut_turn
from vita_mctp.conversation.reply import ModelReplies, ReplyOptions
from vita_mctp.errors import ConfigError
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import Done, Prompt, Role, StopReason, Task, TextDelta, TokenKind, Turn, Wave, WaveChunk

WAVE = Wave((0.4 * np.sin(np.arange(16_000) / 9)).astype(np.float32), 16_000)


@pytest.fixture(scope="module")
def replies(tiny_speech_folder: Path) -> ModelReplies:
    return ModelReplies(SpeechLM.from_pretrained(tiny_speech_folder))


def all_of(replies: ModelReplies, items: list[Item], **options: object) -> list[AnswerEvent]:
    return list(replies.reply(items, ReplyOptions(**options), Cancel()))  # type: ignore[arg-type]


def test_speech_is_answered_aloud_or_in_writing(replies: ModelReplies) -> None:
    spoken = all_of(replies, [Item(Role.USER, wave=WAVE)])
    written = all_of(replies, [Item(Role.USER, wave=WAVE)], speaks=False)
    assert any(isinstance(event, WaveChunk) for event in spoken)
    assert not any(isinstance(event, WaveChunk) for event in written)
    assert isinstance(spoken[-1], Done) and isinstance(written[-1], Done)
    assert spoken[-1].text == written[-1].text


def test_a_typed_question_is_answered_in_text_and_then_read_aloud(replies: ModelReplies) -> None:
    written = all_of(replies, [Item(Role.USER, "what is two plus three")], speaks=False)
    spoken = all_of(replies, [Item(Role.USER, "what is two plus three")], seed=0)
    assert isinstance(written[-1], Done) and isinstance(spoken[-1], Done)
    assert spoken[-1].text == written[-1].text and spoken[-1].turns == written[-1].turns
    assert any(isinstance(event, WaveChunk) for event in spoken)
    text = "".join(event.text for event in spoken if isinstance(event, TextDelta))
    assert text == spoken[-1].text


def test_what_held_no_speech_is_no_part_of_the_next_prompt(replies: ModelReplies) -> None:
    noise = Item(Role.USER, wave=WAVE, turn=Turn(Role.USER, ()))
    excuse = Item(Role.ASSISTANT, "please say it again", turn=Turn(Role.ASSISTANT, ()))
    asked = Item(Role.USER, wave=WAVE)
    assert all_of(replies, [noise, excuse, asked])[-1].codes == all_of(replies, [asked])[-1].codes
    earlier = [Item(Role.USER, wave=WAVE), Item(Role.ASSISTANT, "please say it again")]
    assert all_of(replies, [*earlier, asked])[-1].codes != all_of(replies, [asked])[-1].codes


def test_instructions_stand_behind_the_model_s_own_system_text(
    replies: ModelReplies, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Prompt] = []
    generate = replies.speech_lm.generate

    def listen(prompt: Prompt, *options: object) -> object:
        asked.append(prompt)
        return generate(prompt, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(replies.speech_lm, "generate", listen)
    told = [Item(Role.SYSTEM, "be five"), Item(Role.USER, wave=WAVE)]
    all_of(replies, told, instructions="thank you")
    all_of(replies, [Item(Role.SYSTEM, "be five"), Item(Role.USER, "what is two")], instructions="thank you")
    heard, typed, spoken = (replies.speech_lm.tokenizer.decode(prompt.ids) for prompt in asked)
    assert heard.startswith("system\nYour Name: Luke") and "manner.\n\nthank you\n\nbe five\nuser" in heard
    assert typed.startswith("system\nthank you\n\nbe five\nuser\nwhat is two")
    assert "thank you" not in spoken and spoken.startswith("user\nConvert the text to speech")
    with pytest.raises(ConfigError, match="instructions"):
        replies.speech_lm.prompt("two", Task.TTS, instructions="thank you")


def test_who_cannot_read_instructions_answers_as_if_there_were_none() -> None:
    nano, question = ModelReplies(SpeechLM.from_pretrained("nano")), Item(Role.USER, "what is two plus three")
    told = all_of(nano, [Item(Role.SYSTEM, "You are a pirate."), question], instructions="Sing.", speaks=False)
    assert told[-1].text == all_of(nano, [question], speaks=False)[-1].text
    with pytest.raises(ConfigError, match="leave the instructions out"):
        nano.speech_lm.stream(WAVE, instructions="Sing.")


def test_a_cancel_from_another_thread_ends_the_stream_and_frees_the_engine(replies: ModelReplies) -> None:
    cancel = Cancel()
    events: list[AnswerEvent] = []

    def read() -> None:
        for event in replies.reply([Item(Role.USER, wave=WAVE)], ReplyOptions(max_new_tokens=1800), cancel):
            events.append(event)
            time.sleep(0.001)

    thread = threading.Thread(target=read)
    thread.start()
    while not events:
        time.sleep(0.001)
    cancel.set()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(events[-1], Done) and events[-1].reason is StopReason.CANCELLED
    assert len(events[-1].turns) == 2
    worker = replies.speech_lm.worker
    worker.close()
    assert not worker._outboxes and not len(worker._engine)


def test_the_next_prompt_holds_what_was_heard(replies: ModelReplies) -> None:
    first, history = Item(Role.USER, wave=WAVE), History()
    answer = Item(Role.ASSISTANT, playback=Playback(16_000))
    history.add(first)
    done = all_of(replies, [first])[-1]
    assert isinstance(done, Done)
    first.turn, answer.turn = done.turns
    assert answer.playback is not None
    answer.playback.sent = len(done.codes) * 1280
    history.add(answer)
    vocabulary, rate = replies.speech_lm.tokenizer.vocabulary, replies.speech_lm.audio_decoder.frame_rate
    assert answer.heard_turn(vocabulary, rate) == answer.turn
    answer.heard = 3 * 1280
    cut = answer.heard_turn(vocabulary, rate)
    assert cut is not None
    kinds = [vocabulary.kind(token) for token in cut.content]
    assert kinds.count(TokenKind.AUDIO) == 3 and kinds.count(TokenKind.BEGIN) == kinds.count(TokenKind.END)
    assert replies._history(list(history)) == (first.turn, cut)
    answer.heard = 0
    assert replies._history(list(history)) == (first.turn,)


def test_cutting_keeps_order_and_closes_segments(replies: ModelReplies) -> None:
    v = replies.speech_lm.tokenizer.vocabulary
    audio, begin, end = v.audio_0, v.begin_of_audio, v.end_of_audio
    turn = Turn(Role.ASSISTANT, (5, 6, begin, audio, audio + 1, end, 7, 8, begin, audio + 2, audio + 3, end))
    cut = cut_turn(turn, 2, 0, v)
    assert cut is not None and cut.content == (5, 6, begin, audio, audio + 1, end)
    cut = cut_turn(turn, 3, 0, v, most_text=1)
    assert cut is not None and cut.content == (5, begin, audio, audio + 1, end, begin, audio + 2, end)
    assert cut_turn(Turn(Role.ASSISTANT, (5, 6, 7, 8)), 5, 10, v) == Turn(Role.ASSISTANT, (5, 6))
