"""What is done to each sample of a run: it is answered, and then its answer is heard, measured and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vita_mctp.audio import read_wave, wav_bytes
from vita_mctp.errors import AudioError, ConfigError, EndpointError, OutputError, VitaError
from vita_mctp.evaluation.answer_scores import AnswerRule, Verdict, answer_rule
from vita_mctp.evaluation.benchmarks import Case
from vita_mctp.evaluation.judges import Transcriber
from vita_mctp.evaluation.metrics import SOUND, SPEECH, TEXT, AnswerEntry, ResultRow, Score
from vita_mctp.evaluation.sound_scores import sound_rule
from vita_mctp.evaluation.systems import LONGEST_SECONDS, Reply, System
from vita_mctp.evaluation.text_scores import TEXT_RULES, TextRule, text_rule
from vita_mctp.files import write_output
from vita_mctp.types import Task, Wave

NO_AUDIO, NO_TEXT, UNFINISHED = "no audio", "no text", "it never ended"
"""Failures of an answer that came."""

OWN = "speech against its own text"


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
        audio = None if sound is None else f"audio/{case.id}.wav"
        if sound is not None:  # every sample as it came: judges hear what the system said and no rounding of it
            write_output(folder / str(audio), wav_bytes(sound, "FLOAT"))
        return AnswerEntry(
            id=case.id,
            text=reply.text.strip(),
            audio=audio,
            audio_seconds=0.0 if sound is None else sound.seconds,
            mode=reply.mode,
            tokens=reply.tokens,
            total_seconds=reply.seconds,
            first_sound_seconds=reply.first_sound,
            failure=failure,
        )

    return answer


class Scorer:
    """A run's rules, and what each of them is asked about. folder: the run's."""

    def __init__(
        self, task: Task, rules: Sequence[str], judges: Sequence[str], sound: Sequence[str], folder: Path
    ) -> None:
        """Raises as `text_rule`, `answer_rule` and `sound_rule`, and ConfigError for a synthesis that nobody hears."""
        if task is Task.TTS and not judges:
            raise ConfigError("the task tts is scored by what a judge hears; name one")
        self._writes, self._judges, self._folder = task is not Task.TTS, tuple(judges), folder
        self._rules = [text_rule(name) if name in TEXT_RULES else answer_rule(name) for name in rules]
        self._sound = [sound_rule(name) for name in sound]

    @property
    def versions(self) -> dict[str, str]:
        return {rule.name: rule.version for rule in (*self._rules, *self._sound)}

    def check(self, cases: Sequence[Case]) -> None:
        """Raises ConfigError for rules that these cases' answers cannot be scored by."""
        if any(rule.wants_reference for rule in self._sound) and any(case.question.voice is None for case in cases):
            raise ConfigError("the rule speaker wants a set with voice prompts, such as seed-tts-en; leave it out here")

    def row(self, case: Case, answer: AnswerEntry, judges: Mapping[str, Transcriber]) -> ResultRow:
        """What the judges hear and every rule says of an answer; what could not be measured of its sound scores 0."""
        failures = [answer.failure, self._lacking(answer)]
        transcripts: dict[str, str] = {}
        measured: dict[str, float] = {}
        if answer.audio is not None:
            transcripts = dict.fromkeys(judges, "")
            try:
                wave = read_wave(self._folder / answer.audio, LONGEST_SECONDS)
                transcripts = {name: judge.transcribe(wave) for name, judge in judges.items()}
                failures += self._measure(wave, case.question.voice, measured)
            except AudioError as error:
                failures.append(str(error))
        scores: list[Score] = []
        for rules, on, references, hypothesis in self._compared(case, answer.text, transcripts):
            for rule in rules:
                score, undecided = _score(rule, case.prompt, references, hypothesis, on)
                scores.append(score)
                failures.append(undecided)
        scores += [
            Score(rule=name, on=SOUND, part=measured.get(name, 0.0), whole=1, reference="", hypothesis="")
            for name in (f"{rule.name} {value}" for rule in self._sound for value in rule.values)
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

    def _measure(self, wave: Wave, voice: Path | None, found: dict[str, float]) -> Iterator[str]:
        """Adds what each rule of sound finds; why one found nothing, such as a voice prompt that is not there."""
        for rule in self._sound:
            try:
                reference = read_wave(voice, LONGEST_SECONDS) if rule.wants_reference and voice else None
                found |= {f"{rule.name} {name}": value for name, value in rule.score(wave, reference).items()}
            except AudioError as error:
                yield str(error)

    def _compared(
        self, case: Case, text: str, transcripts: Mapping[str, str]
    ) -> Iterator[tuple[Sequence[TextRule | AnswerRule], str, Sequence[str], str]]:
        """Every rule on what was written and on what each judge heard; text rules also compare the two.

        The first judge is the run's own; what others heard is under their names.
        """
        heard = [("" if not n else f", {name}", transcripts.get(name, "")) for n, name in enumerate(self._judges)]
        if self._writes:
            yield self._rules, TEXT, case.references, text
        for judge, words in heard:
            yield self._rules, SPEECH + judge, case.references, words
        for judge, words in heard if self._writes else ():
            yield [rule for rule in self._rules if isinstance(rule, TextRule)], OWN + judge, (text,), words


def _score(
    rule: TextRule | AnswerRule, question: str, references: Sequence[str], hypothesis: str, on: str
) -> tuple[Score, str | None]:
    """The score, and why it could not be had.

    A text is held against the nearest reference; an answer without a word is wrong under every rule.
    """
    if isinstance(rule, TextRule):
        scored = (rule.score(reference, hypothesis) for reference in references or ("",))
        found = min(scored, key=lambda errors: errors.rate)
        part, whole = rule.fraction(found)
        texts = {"reference": found.reference, "hypothesis": found.hypothesis}
        return Score(rule=rule.name, on=on, part=part, whole=whole, **texts), None
    heard = bool(hypothesis.strip())
    verdict = rule.judge(question, references, hypothesis) if heard else Verdict(False, "there is no answer")
    right, texts = float(verdict.correct is True), {"reference": " | ".join(references), "hypothesis": hypothesis}
    score = Score(rule=rule.name, on=on, part=right, whole=1, reason=verdict.reason, **texts)
    return score, verdict.reason if verdict.correct is None else None


def scoring(
    open_scorer: Callable[[], Scorer],
    open_judge: Callable[[str, int], Transcriber],
    judges: Sequence[str],
    answers: Mapping[str, AnswerEntry],
    worker: int,
) -> Callable[[Case], ResultRow]:
    """A case that was answered in, its row out."""
    scorer, opened = open_scorer(), {name: open_judge(name, worker) for name in judges}
    return lambda case: scorer.row(case, answers[case.id], opened)
