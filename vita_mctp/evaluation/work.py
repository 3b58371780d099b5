"""The three kinds of work that a benchmark run shares out: answering, hearing, and scoring the sound of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vita_mctp.audio import read_wave, write_wave
from vita_mctp.errors import AudioError, ConfigError, EndpointError, OutputError, VitaError
from vita_mctp.evaluation.cases import Case
from vita_mctp.evaluation.judge import Listener
from vita_mctp.evaluation.pool import Entry, Job
from vita_mctp.evaluation.sound_scores import SoundRule, sound_rule
from vita_mctp.evaluation.systems import Reply, System
from vita_mctp.nano.rows import UNFINISHED
from vita_mctp.types import Task, Wave

_AUDIO = "audio"
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class Answering:
    """A case in, the entry of its answer out; the answer's sound is written below the run's folder."""

    open_system: Callable[[int], System]
    task: Task
    folder: Path

    @property
    def name(self) -> str:
        return "answering"

    def open(self, worker: int) -> Job:
        system = self.open_system(worker)
        (self.folder / _AUDIO).mkdir(parents=True, exist_ok=True)
        return lambda case: self._entry(system, case)

    def _entry(self, system: System, case: Case) -> Entry:
        try:
            reply = system.answer(case.question, self.task)
        except (EndpointError, OutputError):
            raise
        except VitaError as error:
            return self._told(case, Reply(), str(error))
        return self._told(case, reply, None if reply.finished else UNFINISHED)

    def _told(self, case: Case, reply: Reply, failure: str | None) -> Entry:
        sound = reply.wave if reply.wave is not None and len(reply.wave.samples) else None
        if sound is not None:
            write_wave(_sound_of(self.folder, case), sound)
        return {
            "id": case.id,
            "text": reply.text.strip(),
            "audio": None if sound is None else f"{_AUDIO}/{case.id}.wav",
            "audio_seconds": 0.0 if sound is None else sound.seconds,
            "mode": reply.mode,
            "tokens": reply.tokens,
            "total_seconds": reply.seconds,
            "first_sound_seconds": reply.first_sound,
            "failure": failure,
        }


@dataclass(frozen=True)
class Hearing:
    """A case whose answer has sound in, the entry of its transcript out."""

    open_judge: Callable[[int], Listener]
    folder: Path

    @property
    def name(self) -> str:
        return "hearing"

    def open(self, worker: int) -> Job:
        judge = self.open_judge(worker)
        return lambda case: self._entry(judge, case)

    def _entry(self, judge: Listener, case: Case) -> Entry:
        try:
            wave = read_sound(_sound_of(self.folder, case))
        except AudioError as error:
            return {"id": case.id, "transcript": "", "failure": str(error)}
        return {"id": case.id, "transcript": judge.transcribe(wave), "failure": None}


@dataclass(frozen=True)
class Sounding:
    """A case whose answer has sound in, the figures of that sound out; `speaker` holds it against the voice prompt."""

    rules: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return "scoring sound"

    def open(self, worker: int) -> Job:
        rules = [sound_rule(name) for name in self.rules]
        return lambda case: self._entry(rules, case)

    def _entry(self, rules: Sequence[SoundRule], case: Case) -> Entry:
        found: dict[str, float] = {}
        try:
            wave = read_sound(_sound_of(self.folder, case))
            for rule in rules:
                voice = read_sound(case.question.voice) if rule.wants_reference and case.question.voice else None
                found |= {f"{rule.name} {name}": value for name, value in rule.score(wave, voice).items()}
        except AudioError as error:
            return {"id": case.id, "figures": {}, "failure": str(error)}
        return {"id": case.id, "figures": found, "failure": None}


def check_sound(rules: Sequence[str], cases: Sequence[Case]) -> dict[str, str]:
    """The rules' versions by name. Raises ConfigError for rules that these cases' answers cannot be scored by."""
    if copies := [name for name in rules if name in ("pesq", "stoi")]:
        raise ConfigError(f"{copies[0]} compares a copy with its recording, and answers are no copies; leave it out")
    opened = [sound_rule(name) for name in rules]
    if any(rule.wants_reference for rule in opened) and any(case.question.voice is None for case in cases):
        raise ConfigError("the rule speaker wants a set with voice prompts, such as seed-tts-en; leave it out here")
    return {rule.name: rule.version for rule in opened}


def read_sound(path: Path) -> Wave:
    """Raises AudioError for what is missing, silent or over an hour."""
    return read_wave(path, _LONGEST_SECONDS)


def _sound_of(folder: Path, case: Case) -> Path:
    return folder / _AUDIO / f"{case.id}.wav"
