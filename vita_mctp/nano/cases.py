"""What nano is measured on: the domain's held-out questions and sentences, spoken here; and what befalls a recording on
its way: silence and noise around it, noise in it, a telephone, a faint voice.

`BENCHMARKS` are found by name from `vita_mctp.evaluation.benchmarks`. Who asks (`voices`), what is said (`said`) and
the kind of question are tags of the samples. `draft_sets` are the prompts of `bench verified`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from vita_mctp.audio import cut_to_speech, read_wave
from vita_mctp.bench.verified import Asked, Spelling
from vita_mctp.errors import ConfigError
from vita_mctp.evaluation.benchmarks import (
    ASR,
    SQA,
    TTS,
    Benchmark,
    Case,
    Maker,
    answer_case,
    say_case,
    transcribe_case,
)
from vita_mctp.files import write_output
from vita_mctp.nano import kokoro
from vita_mctp.nano.corpus import Corpus, build_planned
from vita_mctp.nano.domain import build_domain, rank
from vita_mctp.nano.recordings import telephone
from vita_mctp.nano.sentences import HELD_OUT_SENTENCES
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.voices import ANSWER_VOICE, Item, Sizes, make_plan, natural_questions
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import FloatArray, Task, Wave

Condition = Callable[[Wave, np.random.Generator], FloatArray]
"""A recording of int16's precision -> its samples, changed."""

_HISS = 1e-3
"""-60 dB of full scale."""


def _hiss(wave: Wave, seconds: float, rng: np.random.Generator, level: float = _HISS) -> FloatArray:
    return (level * rng.standard_normal(round(seconds * wave.sample_rate))).astype(np.float32)


def _surrounded(before: float, after: float, level: float) -> Condition:
    def change(wave: Wave, rng: np.random.Generator) -> FloatArray:
        return np.concatenate([_hiss(wave, before, rng, level), wave.samples, _hiss(wave, after, rng, level)])

    return change


def _noisy(decibels: float) -> Condition:
    """White noise, so many decibels below the mean power of the part with speech."""

    def change(wave: Wave, rng: np.random.Generator) -> FloatArray:
        power = np.square((cut_to_speech(wave) or wave).samples).mean()
        return wave.samples + _hiss(wave, wave.seconds, rng, float(np.sqrt(power)) * 10 ** (-decibels / 20))

    return change


def _silences() -> dict[str, Condition]:
    found: dict[str, Condition] = {"as spoken": lambda wave, _: wave.samples}
    for what, level in (("digital silence", 0.0), ("low noise", _HISS)):
        found |= {f"{seconds:g} s of {what}": _surrounded(seconds, seconds, level) for seconds in (0.5, 1.0, 2.0)}
    return found


SILENCES = _silences()
"""Before and behind the question, so much each."""

CONDITIONS: dict[str, Condition] = {
    "as spoken": lambda wave, _: wave.samples,
    "a second of silence behind": _surrounded(0.5, 1.0, 0.0),
    "low noise, half a second before and two behind": _surrounded(0.5, 2.0, _HISS),
    "white noise, 20 dB": _noisy(20),
    "white noise, 10 dB": _noisy(10),
    "telephone, 300 Hz to 4 kHz": lambda wave, _: telephone(wave, 300.0, 4_000.0),
    "20 dB fainter": lambda wave, _: wave.samples * np.float32(0.1),
}

QUESTION_GROUPS = {
    "seen voices": "eval_questions",
    "unseen voice, flite rms": "eval_questions_unseen_flite",
    "unseen voice, espeak-ng f4": "eval_questions_unseen_espeak",
}
"""Who asks the held-out questions, and the corpus part that holds them."""

NATURAL_PART = "eval_questions_natural"
NATURAL_GROUP = {"unseen natural voices": NATURAL_PART}
"""The same; they ask where Kokoro's packages are installed."""

SENTENCES, RIGHT_ANSWERS = "held-out sentences", "right answers"
"""What is said in the answer voice."""

SAID = {SENTENCES: "eval_sentences", RIGHT_ANSWERS: "eval_answers"}
JUDGE, BY_LOOP = "pocketsphinx-nano", "pocketsphinx-nano-loop"
WHISPER, PROMPTED = "whisper-nano", "whisper-nano-prompted"
_CORPUS_SEED = 0
"""The shipped training corpus's. Sentences held out under one seed may be trained on under another."""


def make_cases(folder: Path, part: str, limit: int | None) -> Iterator[Case]:
    """A part's cases: "questions", "transcribed questions", "sentences" to say, or what the "answer voice" says.

    limit: of all samples, the same number from each group of voices, or of sentences and right answers. Speech is made
    in `folder` once, beside it a WAV file for each recording. Raises ConfigError for a limit that the domain cannot
    serve, MissingExtraError where flite or espeak-ng is not installed.
    """
    groups = question_groups() if part.endswith("questions") else SAID
    if part == "sentences":
        groups = {SENTENCES: SAID[SENTENCES]}
    n = HELD_OUT_SENTENCES if limit is None else -(-limit // len(groups))
    corpus = speak_samples(folder, n)
    answer_of = {qa.question: qa.answer for qa in build_domain().held_out}
    for group, name in groups.items():
        for number in range(n):
            audio, text, kind = recording(corpus, name, number)
            if part == "questions":
                yield answer_case(audio.stem, audio, text, (answer_of[text],), voices=group, kind=kind)
            elif part == "transcribed questions":
                yield transcribe_case(audio.stem, audio, text, voices=group, kind=kind)
            else:
                yield say_case(audio.stem, text, said=group, kind=kind)


def make_disturbed_cases(
    voices: str, conditions: Mapping[str, Condition], folder: Path, part: str, limit: int | None
) -> Iterator[Case]:
    """Held-out questions by these voices in every condition: "questions" or "transcribed questions".

    Else as `make_cases`; raises MissingExtraError for natural voices where Kokoro is not installed.
    """
    n = HELD_OUT_SENTENCES if limit is None else -(-limit // len(conditions))
    corpus = speak_natural(folder, n) if voices == NATURAL_PART else speak_samples(folder, n, [voices])
    answer_of = {qa.question: qa.answer for qa in build_domain().held_out}
    for index, (condition, change) in enumerate(conditions.items()):
        for number in range(n):
            audio, text, kind = recording(corpus, voices, number)
            samples = change(read_wave(audio), np.random.default_rng((index, number)))
            path = _write_pcm(audio.with_name(f"{audio.stem}-{index}.wav"), samples)
            if part == "questions":
                yield answer_case(path.stem, path, text, (answer_of[text],), condition=condition, kind=kind)
            else:
                yield transcribe_case(path.stem, path, text, condition=condition, kind=kind)


def _benchmark(name: str, task: str, part: str, samples: int | None, tag: str, maker: Maker = make_cases) -> Benchmark:
    judges = () if task == ASR else (JUDGE, BY_LOOP)
    rules, source = (("plain",) if task == ASR else ("exact", "plain")), "vita_mctp/nano/cases.py"
    return Benchmark(
        name, task, "en", source, part, "Apache 2.0", samples, rules, judges, maker=maker, tags=(tag, "kind")
    )


_DISTURBED = partial(make_disturbed_cases, NATURAL_PART, CONDITIONS)
_SURROUNDED = partial(make_disturbed_cases, QUESTION_GROUPS["seen voices"], SILENCES)
BENCHMARKS = (
    _benchmark("nano-asr", ASR, "transcribed questions", None, "voices"),
    _benchmark("nano-sqa", SQA, "questions", None, "voices"),
    _benchmark("nano-tts", TTS, "sentences", 300, "said"),
    _benchmark("nano-voice", TTS, "answer voice", 600, "said"),
    _benchmark("nano-disturbed-asr", ASR, "transcribed questions", 2100, "condition", _DISTURBED),
    _benchmark("nano-disturbed-sqa", SQA, "questions", 2100, "condition", _DISTURBED),
    _benchmark("nano-silence-sqa", SQA, "questions", 2100, "condition", _SURROUNDED),
)


def question_groups() -> dict[str, str]:
    """Who can ask here."""
    return QUESTION_GROUPS | (NATURAL_GROUP if kokoro.is_installed() else {})


def speak_samples(folder: Path, n: int, parts: Sequence[str] = ()) -> Corpus:
    """n held-out questions for each group of voices, n held-out sentences, and the questions' right answers.

    parts: of the corpus, these alone.
    """
    asked = {qa.question: qa for qa in build_domain().held_out}
    most = min(len(asked), HELD_OUT_SENTENCES)
    if not 1 <= n <= most:
        raise ConfigError(f"{n} samples of each group; wanted: 1 to {most}, all that are held out; give one of these")
    plan = make_plan(Sizes(questions=n, answers=0, sentences=0, babble=0), _CORPUS_SEED)
    plan = {part: plan[part] for part in (*QUESTION_GROUPS.values(), SAID[SENTENCES])}
    questions = [asked[item.text] for item in plan["eval_questions"]]
    if kokoro.is_installed():
        plan[NATURAL_PART] = natural_questions(questions, _CORPUS_SEED)
    plan[SAID[RIGHT_ANSWERS]] = [Item(qa.answer, qa.kind, ANSWER_VOICE) for qa in questions]
    return build_planned(folder, {part: plan[part] for part in parts or plan}, _CORPUS_SEED)


def speak_natural(folder: Path, n: int) -> Corpus:
    """n held-out questions by the natural voices that are for judging alone."""
    held_out = sorted(build_domain().held_out, key=lambda qa: rank("ask", qa.question))
    return build_planned(folder, {NATURAL_PART: natural_questions(held_out[:n], _CORPUS_SEED)}, _CORPUS_SEED)


def recording(corpus: Corpus, part: str, number: int) -> tuple[Path, str, str]:
    """The number-th recording of a part as a WAV file, its text, and its kind."""
    utterance = corpus.utterance(corpus.indices(part)[number])
    path = corpus.folder / "waves" / f"{part.removeprefix('eval_').replace('_', '-')}-{number:04d}.wav"
    return _write_pcm(path, np.asarray(utterance.wave)), utterance.text, utterance.kind


def _write_pcm(path: Path, samples: npt.NDArray[Any]) -> Path:
    sound = io.BytesIO()
    soundfile.write(sound, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    write_output(path, sound.getvalue())
    return path


_PARTS = {
    "questions": "eval_questions",
    "answers never spoken in training": "eval_text_only",
    "sentences never trained on": "eval_sentences",
}


def draft_sets(
    speech_lm: SpeechLM, folder: Path, *, questions: int, sentences: int, temperature: float, seed: int
) -> tuple[dict[str, list[Asked]], Spelling]:
    """Requests by set, speech made in `folder` where it is not there; the questions once more, sampled.

    questions: of each kind, as far as there are so many. Raises MissingExtraError without a synthesiser.
    """
    plan = make_plan(Sizes(questions=max(questions, sentences), answers=0, sentences=0, babble=0), _CORPUS_SEED)
    chosen = {name: plan[part][: sentences if part == "eval_sentences" else questions] for name, part in _PARTS.items()}
    corpus = build_planned(folder, {_PARTS[name]: items for name, items in chosen.items()}, _CORPUS_SEED)
    answers = {qa.question: qa.answer for qa in build_domain().questions}
    sets: dict[str, list[Asked]] = {}
    for name, part in _PARTS.items():
        asked = []
        for index in corpus.indices(part):
            spoken = corpus.utterance(index)
            task = Task.TTS if part == "eval_sentences" else Task.SPEECH_TO_SPEECH
            heard = spoken.text if task is Task.TTS else speech_lm.hear(Wave(spoken.samples, SAMPLE_RATE))
            decoding = speech_lm.decoding(task, "vanilla", seed=seed, temperature=0.0)
            request = speech_lm.request(speech_lm.prompt(heard, task), decoding)
            asked.append(Asked(replace(request, id=str(index)), answers.get(spoken.text)))
        sets[name] = asked
    sets[f"questions, temperature {temperature:g}"] = [
        replace(each, request=replace(each.request, sampling=replace(each.request.sampling, temperature=temperature)))
        for each in sets["questions"]
    ]
    decoder, tokenizer = speech_lm.audio_decoder, speech_lm.tokenizer
    first_block = (*speech_lm.settings.block_sizes, decoder.block_size)[0]
    return sets, Spelling(tokenizer.vocabulary.kind, tokenizer.decode, first_block)
