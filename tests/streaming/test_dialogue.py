"""Questions that follow others, and answers in a given voice: what the model reads, and that nothing is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vita_mctp import Answer, SpeechLM
from vita_mctp.audio import write_wave
from vita_mctp.decoding.engine import Engine
from vita_mctp.errors import AudioError, ConfigError
from vita_mctp.speech_lm import recent_turns
from vita_mctp.types import Done, Role, Task, TokenEvent, TokenKind, Turn, Wave

HEAD = "<|im_start|>assistant\n"
SYSTEM = (
    "<|im_start|>system\nYour Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner.<|im_end|>\n"
)


def recording(period: float, seconds: float = 1.0) -> Wave:
    return Wave((0.4 * np.sin(np.arange(int(16000 * seconds)) / period)).astype(np.float32), 16000)


FIRST, SECOND, THIRD, VOICE = (recording(period) for period in (9, 14, 5, 31))


@pytest.fixture(scope="module")
def speech_lm(tiny_speech_folder: Path) -> SpeechLM:
    return SpeechLM.from_pretrained(tiny_speech_folder)


@contextmanager
def prompts(speech_lm: SpeechLM) -> Iterator[list[str]]:
    """The prompts, as text, of what is asked meanwhile."""
    seen: list[str] = []
    add = Engine.add
    with pytest.MonkeyPatch.context() as patch:
        decode = speech_lm.tokenizer.decode
        patch.setattr(
            Engine, "add", lambda self, r: seen.append(decode(r.prompt_ids, skip_special=False)) or add(self, r)
        )
        yield seen


def heard(speech_lm: SpeechLM, wave: Wave) -> str:
    codes = speech_lm.audio_frontend.encode(wave).ids
    return "<|begin_of_audio|>" + "".join(f"<|audio_{code}|>" for code in codes) + "<|end_of_audio|>"


def asked(speech_lm: SpeechLM, wave: Wave) -> str:
    return f"<|im_start|>user\n\n{heard(speech_lm, wave)}<|im_end|>\n"


def answered(speech_lm: SpeechLM, answer: Answer) -> str:
    return f"{HEAD}{speech_lm.tokenizer.decode(answer.turns[1].content, skip_special=False)}<|im_end|>\n"


def test_a_later_question_is_read_behind_the_earlier_ones(speech_lm: SpeechLM) -> None:
    with prompts(speech_lm) as seen:
        first = speech_lm.ask(FIRST, seed=1)
        second = speech_lm.ask(SECOND, "turbo", seed=2, history=first.turns)
        speech_lm.say("two plus three", history=[*first.turns, *second.turns])
    one = asked(speech_lm, FIRST) + answered(speech_lm, first)
    two = asked(speech_lm, SECOND) + answered(speech_lm, second)
    request = "<|im_start|>user\nConvert the text to speech.\ntwo plus three<|im_end|>\n"
    assert seen == [
        SYSTEM + asked(speech_lm, FIRST) + HEAD,
        SYSTEM + one + asked(speech_lm, SECOND) + HEAD,
        one + two + request + HEAD,
    ]


def test_an_answer_is_kept_with_its_sound_as_it_was_made(speech_lm: SpeechLM, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TokenEvent] = []
    advance = Engine.advance

    def watched(self: Engine, states: object) -> list[list[TokenEvent]]:
        events = advance(self, states)  # type: ignore[arg-type]
        made.extend(event for new in events for event in new)
        return events

    monkeypatch.setattr(Engine, "advance", watched)
    answer = speech_lm.ask(FIRST, seed=1)
    kept, v = answer.turns[1].content, speech_lm.tokenizer.vocabulary
    ids = [event.id for event in made if event.kind is not TokenKind.STOP]
    assert list(kept[: len(ids)]) == ids and kept[len(ids) :] in ((), (v.end_of_audio,))
    assert tuple(v.code_of(token) for token in kept if v.is_audio(token)) == answer.done.codes != ()


def test_the_oldest_questions_are_left_out(speech_lm: SpeechLM) -> None:
    history = [turn for wave in (FIRST, SECOND, THIRD) for turn in speech_lm.ask(wave, seed=1).turns]
    with prompts(speech_lm) as seen:
        speech_lm.ask(FIRST, seed=4, history=history)
        speech_lm.ask(FIRST, seed=4, history=history[2:])
    assert seen[0] == seen[1] and seen[0].count(HEAD) == 3


def test_recent_turns_begin_with_a_question() -> None:
    question, answer = Turn(Role.USER, (1,)), Turn(Role.ASSISTANT, (2,))
    dialogue = (question, answer, question, question, answer)
    assert recent_turns(dialogue, 1) == dialogue[3:] and recent_turns(dialogue, 2) == dialogue[2:]
    assert recent_turns(dialogue, 3) == recent_turns(dialogue, 9) == dialogue
    assert recent_turns((answer, *dialogue), 3) == (answer, *dialogue)
    assert recent_turns((), 0) == ()


def test_two_dialogues_side_by_side_equal_each_alone(speech_lm: SpeechLM) -> None:
    plans = {"one": ((FIRST, "boost"), (SECOND, "vanilla"), (THIRD, "2,3")), "other": ((THIRD, "turbo"),) * 3}

    def dialogue(name: str) -> Iterator[tuple[Turn, ...] | None]:
        history: tuple[Turn, ...] = ()
        for seed, (question, mode) in enumerate(plans[name]):
            for event in speech_lm.stream(question, mode=mode, seed=seed, history=history):
                history += event.turns if isinstance(event, Done) else ()
                yield None
        yield history

    alone = {name: list(dialogue(name))[-1] for name in plans}
    running, ends = {name: dialogue(name) for name in plans}, {}
    while len(ends) < 2:
        for name, events in running.items():
            ends[name] = end if (end := next(events, None)) is not None else ends.get(name)
        ends = {name: end for name, end in ends.items() if end is not None}
    assert ends == alone and len(ends["one"]) == 6 and ends["one"] != ends["other"]


def test_a_later_question_is_read_behind_what_the_engine_still_holds(speech_lm: SpeechLM) -> None:
    speech_lm.worker.close()  # a request that has ended has left its memory by now
    first = speech_lm.ask(FIRST, "boost", seed=8)
    read: list[int] = []
    levels = speech_lm.language_model.runner.levels  # type: ignore[attr-defined]
    backbone = levels.backbone
    with pytest.MonkeyPatch.context() as patch, prompts(speech_lm) as seen:
        patch.setattr(levels, "backbone", lambda reads: read.extend(len(r.ids) for r in reads) or backbone(reads))
        list(speech_lm.stream(SECOND, mode="boost", seed=8, history=first.turns, max_new_tokens=1))
    new = len(speech_lm.tokenizer.encode(seen[0].rpartition("<|im_start|>user")[2]))
    assert len(read) == 1 and read[0] <= new + 16 < len(first.turns[0].content) + len(first.turns[1].content)


def test_what_came_before_changes_the_answer_and_nothing_is_kept(speech_lm: SpeechLM) -> None:
    before = speech_lm.ask(SECOND, seed=3)
    with_history = speech_lm.ask(SECOND, seed=3, history=speech_lm.ask(FIRST, seed=3).turns)
    again = speech_lm.ask(SECOND, seed=3)
    assert before.turns == again.turns != with_history.turns


@pytest.mark.parametrize("task", [Task.TTS, Task.SPEECH_TO_SPEECH])
def test_a_voice_stands_first_in_the_system_turn(speech_lm: SpeechLM, task: Task, tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    write_wave(path, VOICE)
    with prompts(speech_lm) as seen:
        for voice in (VOICE, path, path.read_bytes()):
            next(speech_lm.stream("two" if task is Task.TTS else FIRST, task, voice_prompt=voice))
    own = SYSTEM.removeprefix("<|im_start|>system\n") if task is Task.SPEECH_TO_SPEECH else "<|im_end|>\n"
    written = "<|im_start|>user\nConvert the text to speech.\ntwo<|im_end|>\n"
    question = written if task is Task.TTS else asked(speech_lm, FIRST)
    assert seen[0] == f"<|im_start|>system\nYour Voice: {heard(speech_lm, VOICE)}\n{own}{question}{HEAD}"
    assert seen[1].count("<|audio_") == seen[0].count("<|audio_") and seen[2] == seen[1]


def test_the_voice_is_read_and_not_spoken(speech_lm: SpeechLM) -> None:
    answer = speech_lm.say("two plus three", seed=1, voice_prompt=VOICE)
    other = speech_lm.say("two plus three", seed=1)
    assert answer.done.codes != other.done.codes
    assert len(answer.wave.samples) == 1280 * len(answer.done.codes)
    assert all(turn.role is not Role.SYSTEM for turn in answer.turns)


def test_what_a_model_was_not_trained_for_is_refused(speech_lm: SpeechLM) -> None:
    turns = speech_lm.ask(FIRST, seed=1).turns
    with pytest.raises(ConfigError, match="asr makes no speech"):
        speech_lm.stream(FIRST, Task.ASR, voice_prompt=VOICE)
    with pytest.raises(AudioError, match="empty"):
        speech_lm.stream("two", Task.TTS, voice_prompt=b"")
    nano = SpeechLM.from_pretrained("nano")
    with pytest.raises(ConfigError, match="single questions"):
        nano.stream(FIRST, history=turns)
    with pytest.raises(ConfigError, match="one voice"):
        nano.say("two plus three", voice_prompt=VOICE)
