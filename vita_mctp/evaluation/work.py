"""What is done to each sample of a run: it is answered, its sound transcribed and measured, and all of it scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vita_mctp.audio import read_wave, wav_bytes
from vita_mctp.errors import AudioError, ConfigError, EndpointError, OutputError, VitaError
from vita_mctp.evaluation.answer_scores import LLM_PREFIX, AnswerRule, Verdict, answer_rule
from vita_mctp.evaluation.benchmarks import Case
from vita_mctp.evaluation.judges import Transcriber
from vita_mctp.evaluation.metrics import SOUND, SPEECH, TEXT, AnswerEntry, ResultRow, Score
from vita_mctp.evaluation.pool import Entry, Journal
from vita_mctp.evaluation.sound_scores import sound_rule
from vita_mctp.evaluation.systems import LONGEST_SECONDS, Reply, System
from vita_mctp.evaluation.text_scores import TEXT_RULES, TextRule, text_rule
from vita_mctp.files import write_output
from vita_mctp.types import Task

NO_AUDIO, NO_TEXT, UNFINISHED = "no audio", "no text", "it never ended"
"""Failures of an answer that came."""

OWN = "speech against its own text"
_AUDIO = "audio"


class TranscriptEntry(Entry):
    transcript: str
    failure: str | None


class SoundEntry(Entry):
    """values: by rule and what it measures."""

    values: dict[str, float]
    failure: str | None


class VerdictEntry(Entry):
    answer: str
    correct: bool
    reason: str


def answering(
    open_system: Callable[[int], System], task: Task, folder: Path, worker: int
) -> Callable[[Case], AnswerEntry]:
    """A case in, the entry of its answer out; the answer's sound is written below the run's folder."""
    system = open_system(worker)

    def answer(case: Case) -> AnswerEntry:
        try:
            reply = system.answer(case.question, task)
            failure = None if reply.finished else UNFINISHED
        except (EndpointError, OutputError):
            raise
        except VitaError as error:
            reply, failure = Reply(), str(error)
        sound = reply.wave if reply.wave is not None and len(reply.wave.samples) else None
        if sound is not None:  # every sample as it came: judges hear what the system said and no rounding of it
            write_output(_sound_of(folder, case), wav_bytes(sound, "FLOAT"))
        return AnswerEntry(
            id=case.id,
            text=reply.text.strip(),
            audio=None if sound is None else f"{_AUDIO}/{case.id}.wav",
            audio_seconds=0.0 if sound is None else sound.seconds,
            mode=reply.mode,
            tokens=reply.tokens,
            total_seconds=reply.seconds,
            first_sound_seconds=reply.first_sound,
            failure=failure,
        )

    return answer


def transcribing(
    open_judge: Callable[[int], Transcriber], folder: Path, worker: int
) -> Callable[[Case], TranscriptEntry]:
    """A case whose answer has sound in, the entry of its transcript out."""
    judge = open_judge(worker)

    def transcribe(case: Case) -> TranscriptEntry:
        try:
            wave = read_wave(_sound_of(folder, case), LONGEST_SECONDS)
        except AudioError as error:
            return TranscriptEntry(id=case.id, transcript="", failure=str(error))
        return TranscriptEntry(id=case.id, transcript=judge.transcribe(wave), failure=None)

    return transcribe


def measuring(names: Sequence[str], folder: Path, worker: int) -> Callable[[Case], SoundEntry]:
    """A case whose answer has sound in, what its sound measures out; `speaker` compares it with the voice prompt."""
    rules = [sound_rule(name) for name in names]

    def measure(case: Case) -> SoundEntry:
        found: dict[str, float] = {}
        voice = case.question.voice
        try:
            wave = read_wave(_sound_of(folder, case), LONGEST_SECONDS)
            for rule in rules:
                reference = read_wave(voice, LONGEST_SECONDS) if rule.wants_reference and voice else None
                found |= {f"{rule.name} {name}": value for name, value in rule.score(wave, reference).items()}
        except AudioError as error:
            return SoundEntry(id=case.id, values={}, failure=str(error))
        return SoundEntry(id=case.id, values=found, failure=None)

    return measure


def check_sound(rules: Sequence[str], cases: Sequence[Case]) -> dict[str, str]:
    """The rules' versions by name. Raises ConfigError for rules that these cases' answers cannot be scored by."""
    opened = [sound_rule(name) for name in rules]
    if any(rule.wants_reference for rule in opened) and any(case.question.voice is None for case in cases):
        raise ConfigError("the rule speaker wants a set with voice prompts, such as seed-tts-en; leave it out here")
    return {rule.name: rule.version for rule in opened}


class Answers:
    """An answer rule that asks nobody twice: the verdicts of a language model are kept, failed ones are not."""

    def __init__(self, rule: AnswerRule, kept: Journal[VerdictEntry] | None) -> None:
        self.rule, self._kept = rule, kept
        self._known = {} if kept is None else kept.entries()

    def score(self, case: Case, answer: str, on: str) -> tuple[Score, str | None]:
        """The score, and why it could not be had; an answer without a word is wrong under every rule."""
        verdict = self._verdict(case, answer, on) if answer.strip() else Verdict(False, "there is no answer")
        right, texts = float(verdict.correct is True), {"reference": " | ".join(case.references), "hypothesis": answer}
        score = Score(rule=self.rule.name, on=on, part=right, whole=1, reason=verdict.reason, **texts)
        return score, verdict.reason if verdict.correct is None else None

    def _verdict(self, case: Case, answer: str, on: str) -> Verdict:
        key = f"{self.rule.version}|{on}|{case.id}"
        known = self._known.get(key)
        if known is not None and known.answer == answer:
            return Verdict(known.correct, known.reason)
        verdict = self.rule.judge(case.prompt, case.references, answer)
        if self._kept is not None and verdict.correct is not None:
            self._kept.append(VerdictEntry(id=key, answer=answer, correct=verdict.correct, reason=verdict.reason))
        return verdict


class Scorers:
    """A run's rules for texts and answers, and what each of them is asked about."""

    def __init__(self, task: Task, rules: Sequence[str], judges: Sequence[str], folder: Path) -> None:
        """Raises as `text_rule` and `answer_rule`, and ConfigError for a synthesis that nobody hears."""
        if task is Task.TTS and not judges:
            raise ConfigError("the task tts is scored by what a judge hears; name one")
        self._writes, self._judges = task is not Task.TTS, tuple(judges)
        verdicts = Journal(folder / "verdicts.jsonl", VerdictEntry)
        self._rules: list[TextRule | Answers] = [
            text_rule(name)
            if name in TEXT_RULES
            else Answers(answer_rule(name), verdicts if name.startswith(LLM_PREFIX) else None)
            for name in rules
        ]

    @property
    def versions(self) -> dict[str, str]:
        rules = [each.rule if isinstance(each, Answers) else each for each in self._rules]
        return {rule.name: rule.version for rule in rules}

    def row(
        self,
        case: Case,
        answer: AnswerEntry,
        heard: Mapping[str, TranscriptEntry],
        sound: SoundEntry | None,
        measures: Sequence[str],
    ) -> ResultRow:
        """heard: by judge. measures: of sound; a sample without them scores 0 in each."""
        transcripts = {name: entry.transcript for name, entry in heard.items()}
        failures = [answer.failure, self._lacking(answer), *(entry.failure for entry in heard.values())]
        scores: list[Score] = []
        for score, undecided in self._scores(case, answer.text, transcripts):
            scores.append(score)
            failures.append(undecided)
        if sound is not None:
            failures.append(sound.failure)
        values = {} if sound is None else sound.values
        scores += [
            Score(rule=name, on=SOUND, part=values.get(name, 0.0), whole=1, reference="", hypothesis="")
            for name in measures
        ]
        return ResultRow(
            **answer.model_dump(exclude={"failure"}),
            prompt=case.prompt,
            references=case.references,
            tags=case.tags,
            transcripts=transcripts,
            scores=tuple(scores),
            failure=next(filter(None, failures), None),
        )

    def _lacking(self, answer: AnswerEntry) -> str | None:
        if self._judges:
            return NO_AUDIO if answer.audio is None else None
        return None if answer.text else NO_TEXT

    def _scores(self, case: Case, text: str, transcripts: Mapping[str, str]) -> Iterator[tuple[Score, str | None]]:
        """Every rule on what was written and on what each judge heard; text rules also compare the two."""
        sides = {TEXT: text} if self._writes else {}
        sides |= {self._side(SPEECH, judge): transcripts.get(judge, "") for judge in self._judges}
        for on, hypothesis in sides.items():
            for rule in self._rules:
                if isinstance(rule, Answers):
                    yield rule.score(case, hypothesis, on)
                else:
                    yield _score_text(rule, case.references, hypothesis, on), None
        for judge in self._judges if self._writes else ():
            for rule in self._rules:
                if isinstance(rule, TextRule):
                    yield _score_text(rule, (text,), transcripts.get(judge, ""), self._side(OWN, judge)), None

    def _side(self, on: str, judge: str) -> str:
        """The first judge is the run's own; what others heard is under their names."""
        return on if judge == self._judges[0] else f"{on}, {judge}"


def _score_text(rule: TextRule, references: Sequence[str], hypothesis: str, on: str) -> Score:
    """The error rate against the nearest reference."""
    found = min((rule.score(reference, hypothesis) for reference in references), key=lambda errors: errors.rate)
    part, whole = rule.fraction(found)
    return Score(rule=rule.name, on=on, part=part, whole=whole, reference=found.reference, hypothesis=found.hypothesis)


def _sound_of(folder: Path, case: Case) -> Path:
    return folder / _AUDIO / f"{case.id}.wav"
