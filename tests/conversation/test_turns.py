"""Who speaks when: detected and manual turns, barge-in, one reply at a time, and history that holds what was heard."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from vita_mctp.answer import AnswerEvent
from vita_mctp.cancel import Cancel
from vita_mctp.conversation.endpoint import TurnDetection
from vita_mctp.conversation.events import Committed, ReplyEnded, ReplySound, ReplyText, Transcribed, UserStarted
from vita_mctp.conversation.items import ConversationError, Item
from vita_mctp.conversation.reply import ReplyOptions
from vita_mctp.conversation.turns import ConversationOptions
from vita_mctp.errors import AudioError, NoSpeechError
from vita_mctp.types import Role

MANUAL = ConversationOptions(detection=None)


def ended(stage) -> list[str]:
    return [event.status for event in stage.events if isinstance(event, ReplyEnded)]


def test_a_spoken_turn_is_answered(stage: Callable) -> None:
    stage = stage(ConversationOptions(transcribes=True))
    stage.speak(1.0)
    stage.speak(1.0, level=0.0)
    stage.work()
    texts = ["ReplyText", "ReplySound"] * 2
    assert stage.names()[:3] == ["UserStarted", "UserStopped", "Committed"]
    assert [name for name in stage.names() if name.startswith("Reply")] == ["ReplyStarted", *texts, "ReplyEnded"]
    assert ended(stage) == ["completed"]
    question, answer = stage.conversation.history
    assert question.wave is not None and 1.0 <= question.wave.seconds <= 1.9
    assert (question.text, answer.text) == ("hello", "one two")
    assert sum(isinstance(event, Transcribed) for event in stage.events) == 2


def test_barge_in_stops_sending_and_history_keeps_what_was_played(stage: Callable) -> None:
    stage = stage()
    conversation = stage.conversation
    stage.speak(1.0)
    stage.speak(1.0, level=0.0)
    reply, spoken = stage.replies.reply, list[float]()

    def interrupted(items: Sequence[Item], options: ReplyOptions, cancel: Cancel) -> Iterator[AnswerEvent]:
        for number, event in enumerate(reply(items, options, cancel)):
            yield event
            if number == 1:  # the first chunk is out; a quarter of a second later the user speaks
                stage.time = 0.25
                while not cancel.is_set:
                    stage.speak(0.01)
                    spoken.append(0.01)

    stage.replies.reply = interrupted
    stage.work()
    sounds = [event for event in stage.events if isinstance(event, ReplySound)]
    assert len(sounds) == 1 and ended(stage) == ["cancelled"] and sum(spoken) <= 0.2
    last = conversation.history.last_spoken
    assert last is not None and last.heard == 4_000 and last.heard_text == ""
    starts = [event for event in stage.events if isinstance(event, UserStarted)]
    assert [event.interrupts for event in starts] == [True, True]
    stage.replies.reply = reply
    stage.speak(1.0, level=0.0)
    stage.work()
    assert ended(stage) == ["cancelled", "completed"]


def test_an_answer_that_still_plays_is_cut_though_it_was_made_long_ago(stage: Callable) -> None:
    stage = stage()
    stage.speak(1.0)
    stage.speak(1.0, level=0.0)
    stage.work()
    stage.time = 0.5
    stage.speak(0.2)
    last = stage.conversation.history.last_spoken
    assert last is not None and last.heard == 8_000 and last.heard_text == ""
    stage.conversation.truncate(last.id, 1_500)
    assert last.heard == 24_000 and last.heard_text == "one two"
    with pytest.raises(ConversationError, match="2000 ms"):
        stage.conversation.truncate(last.id, 9_000)


def test_an_answer_that_was_heard_to_its_end_is_left_whole(stage: Callable) -> None:
    stage = stage()
    stage.speak(1.0)
    stage.speak(1.0, level=0.0)
    stage.work()
    stage.time = 5.0
    stage.speak(0.2)
    assert stage.conversation.history.last_spoken.heard is None


def test_turns_by_hand(stage: Callable) -> None:
    stage = stage(MANUAL)
    with pytest.raises(ConversationError, match="0 ms"):
        stage.conversation.commit()
    stage.speak(0.5)
    stage.conversation.clear()
    with pytest.raises(ConversationError):
        stage.conversation.commit()
    stage.speak(0.5)
    stage.conversation.commit()
    assert stage.names() == ["Committed"] and stage.jobs == []
    stage.conversation.respond()
    with pytest.raises(ConversationError, match="being made"):
        stage.conversation.respond()
    stage.work()
    assert ended(stage) == ["completed"]
    with pytest.raises(ConversationError, match="5 s"):
        stage.speak(6.0)


def test_without_interrupting_turns_wait_for_the_reply_before(stage: Callable) -> None:
    stage = stage(ConversationOptions(interrupts=False))
    for _ in range(3):
        stage.speak(1.0)
        stage.speak(1.0, level=0.0)
    assert len(stage.jobs) == 1 and stage.names().count("ReplyStarted") == 1
    stage.work()
    assert ended(stage) == ["completed"] * 3
    questions = [event.item for event in stage.events if isinstance(event, Committed)]
    assert [[item for item in asked if item.role is Role.USER][-1] for asked in stage.replies.asked] == questions


def test_a_cancelled_reply_is_waited_for(stage: Callable) -> None:
    stage = stage(MANUAL)
    stage.conversation.add(Item(Role.USER, "hello"))
    stage.conversation.respond()
    stage.conversation.cancel()
    with pytest.raises(ConversationError):
        stage.conversation.cancel()
    stage.conversation.respond()
    assert stage.names() == ["ReplyStarted"]
    stage.work()
    assert ended(stage) == ["cancelled", "completed"]


def test_a_reply_that_fails_ends(stage: Callable) -> None:
    stage = stage(MANUAL)
    stage.conversation.add(Item(Role.USER, "hello"))

    def refused(*_: object) -> Iterator[AnswerEvent]:
        raise AudioError("the recording is silent")
        yield

    def broken(*_: object) -> Iterator[AnswerEvent]:
        raise ZeroDivisionError
        yield

    for failing in (refused, broken):
        stage.replies.reply = failing
        stage.conversation.respond()
        stage.work()
    assert ended(stage) == ["failed", "failed"]
    assert [str(event.error)[:13] for event in stage.events if isinstance(event, ReplyEnded)] == [
        "the recording",
        "the reply fai",
    ]


def test_a_turn_in_which_nobody_speaks_is_answered_politely_and_forgotten(stage: Callable) -> None:
    stage = stage(ConversationOptions(detection=None, transcribes=True))

    def silent(*_: object) -> Iterator[AnswerEvent]:
        raise NoSpeechError("no speech heard in 1.0 s of sound")
        yield

    stage.replies.reply = stage.replies.transcribe = silent
    stage.speak()
    stage.conversation.commit()
    stage.conversation.respond()
    stage.work()
    assert ended(stage) == ["completed"]
    said = "".join(event.text for event in stage.events if isinstance(event, ReplyText))
    assert "say it again" in said
    transcripts = [event for event in stage.events if isinstance(event, Transcribed)]
    assert [(event.error, event.item.text) for event in transcripts] == [(None, "")]
    assert all(item.turn is not None and not item.turn.content for item in stage.conversation.history)


def test_nothing_is_said_after_close(stage: Callable) -> None:
    stage = stage(MANUAL)
    stage.conversation.add(Item(Role.USER, "hello"))
    stage.conversation.respond()
    stage.conversation.close()
    before = len(stage.events)
    stage.work()
    assert len(stage.events) == before


def test_nothing_asked_is_nothing_answered(stage: Callable) -> None:
    with pytest.raises(ConversationError, match="asked"):
        stage(MANUAL).conversation.respond()


def test_input_that_is_no_turn_is_forgotten(stage: Callable) -> None:
    stage = stage(ConversationOptions(detection=TurnDetection(prefix_ms=100)))
    for _ in range(50):
        stage.speak(0.2, level=0.0)
    buffer = stage.conversation._buffer
    assert buffer.end == 10 * 16_000 and buffer.end - buffer.start < 16_000


def test_a_cancel_calls_each_listener_once_from_any_thread() -> None:
    cancel, calls = Cancel(), []
    forget = cancel.on_set(lambda: calls.append("forgotten"))
    cancel.on_set(lambda: calls.append("before"))
    forget()
    thread = threading.Thread(target=cancel.set)
    thread.start()
    thread.join()
    cancel.set()
    cancel.on_set(lambda: calls.append("after"))
    assert cancel.is_set and calls == ["before", "after"]
