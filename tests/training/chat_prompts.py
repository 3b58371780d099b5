"""Whole prompts of each task in one call, as several tests want them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vita_mctp.text.chat import ChatFormat
from vita_mctp.types import AudioFeatures, Prompt, Task, Turn

Speech = Iterable[int] | AudioFeatures
"""A recording as audio codes, or as features for a model of the continuous kind."""


def asr_prompt(chat: ChatFormat, speech: Speech) -> Prompt:
    return chat.ask(chat.turn(Task.ASR, _segment(chat, speech)), Task.ASR)


def tts_prompt(chat: ChatFormat, text: str, speaker: Speech | None = None) -> Prompt:
    voice = None if speaker is None else _segment(chat, speaker)
    return chat.ask(chat.turn(Task.TTS, text), Task.TTS, voice=voice)


def text_prompt(chat: ChatFormat, text: str, system: str | None = None) -> Prompt:
    return chat.ask(chat.turn(Task.TEXT, text), Task.TEXT, system=system)


def spoken_prompt(
    chat: ChatFormat,
    speech: Speech,
    *,
    system: str | None = "",
    speaker: Speech | None = None,
    history: Sequence[Turn] = (),
) -> Prompt:
    task = Task.SPEECH_TO_SPEECH
    voice = None if speaker is None else _segment(chat, speaker)
    return chat.ask(chat.turn(task, _segment(chat, speech)), task, system=system, voice=voice, history=history)


def _segment(chat: ChatFormat, speech: Speech) -> Sequence[int] | AudioFeatures:
    return speech if isinstance(speech, AudioFeatures) else chat.speech(speech)
