"""Samples in, rows out: the model is asked, the judge listens. No sample is ever dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vita_mctp.answer import Answer, collect
from vita_mctp.errors import ConfigError, VitaError
from vita_mctp.evaluation.judge import Judge
from vita_mctp.nano.rows import ANSWER, ASR, COPY, NO_AUDIO, NO_TEXT, ORIGINAL, TTS, UNFINISHED, Row
from vita_mctp.nano.samples import Sample, Samples
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import AudioCodes, StopReason, Task, Wave

NO_MODE = "-"

_TASKS = {ASR: Task.ASR, ANSWER: Task.SPEECH_TO_SPEECH, TTS: Task.TTS}


@dataclass(frozen=True)
class Trial:
    """One sample for one task in one mode."""

    task: str
    mode: str
    sample: Sample

    @property
    def row(self) -> Row:
        """What is known beforehand."""
        sample = self.sample
        reference = sample.prompt if self.task in (ASR, TTS) else sample.answer
        identity = f"{self.mode}/{self.task}/{sample.group}/{sample.number:04d}"
        known = (sample.group, sample.kind, sample.voice, sample.prompt, reference)
        return Row(identity, self.task, self.mode, *known)


def plan_trials(samples: Samples, modes: Sequence[str]) -> list[Trial]:
    """The floors first, then every task in every mode."""
    originals = (*samples.sentences, *samples.answers)
    trials = [Trial(task, NO_MODE, sample) for task in (ORIGINAL, COPY) for sample in originals]
    for mode in modes:
        trials += [Trial(task, mode, sample) for task in (ASR, ANSWER) for sample in samples.questions]
        trials += [Trial(TTS, mode, sample) for sample in samples.sentences]
    return trials


def run_trials(speech_lm: SpeechLM, judge: Judge, trials: Sequence[Trial], seed: int = 0) -> Iterator[Row]:
    """A row for each trial, in order. Each mode's first answer is made twice: the first time warms up, unmeasured."""
    warm: set[tuple[str, str]] = set()
    for trial in trials:
        if trial.task in _TASKS and (trial.mode, trial.task) not in warm:
            warm.add((trial.mode, trial.task))
            _try(speech_lm, trial, seed)
        yield run_trial(speech_lm, judge, trial, seed)


def run_trial(speech_lm: SpeechLM, judge: Judge, trial: Trial, seed: int = 0) -> Row:
    """What came of one trial; an error of ours (VitaError) is the row's failure."""
    if trial.task in (ORIGINAL, COPY):
        wave = trial.sample.wave
        return _judged(trial.row, judge, wave if trial.task == ORIGINAL else _copied(speech_lm, wave))
    answer = _try(speech_lm, trial, seed)
    if isinstance(answer, VitaError):
        return replace(trial.row, failure=str(answer))
    row = _timed(trial.row, answer)
    if trial.task == ASR:
        return row if row.text else replace(row, failure=NO_TEXT)
    return _judged(row, judge, answer.wave)


def _try(speech_lm: SpeechLM, trial: Trial, seed: int) -> Answer | VitaError:
    question = trial.sample.prompt if trial.task == TTS else trial.sample.wave
    try:
        return collect(speech_lm.stream(question, _TASKS[trial.task], mode=trial.mode, seed=seed))
    except VitaError as error:
        return error


def _timed(row: Row, answer: Answer) -> Row:
    times = answer.done.timings
    return replace(
        row,
        text=answer.text,
        tokens=times.tokens,
        total_seconds=times.total,
        first_sound_seconds=times.first_sound,
        audio_seconds=times.audio_seconds,
        stop=answer.done.reason.value,
        failure=UNFINISHED if answer.done.reason is StopReason.LENGTH else None,
    )


def _judged(row: Row, judge: Judge, wave: Wave) -> Row:
    if not len(wave.samples):
        return replace(row, failure=NO_AUDIO)
    heard = judge.hear(wave)
    return replace(row, bigram=heard.bigram, loop=heard.loop, audio_seconds=wave.seconds)


def _copied(speech_lm: SpeechLM, wave: Wave) -> Wave:
    """Through the codec and back, cut to the original's length; ConfigError for a model that hears no codes."""
    codes = speech_lm.audio_frontend.encode(wave)
    if not isinstance(codes, AudioCodes):
        raise ConfigError(f"{speech_lm.audio_frontend.name} gives features, no codes to decode; leave copies out")
    copy = speech_lm.audio_decoder.decode(codes)
    length = round(wave.seconds * copy.sample_rate)
    return Wave(np.ascontiguousarray(copy.samples[:length]), copy.sample_rate)
