"""The spoken corpus: its plan, its synthesisers and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.nano import synthesis
from vita_mctp.nano.corpus import INDEX, Corpus, build_corpus
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.voices import (
    ANSWER_VOICE,
    HELD_OUT_ESPEAK,
    HELD_OUT_FLITE,
    PHONES,
    USER_VOICES,
    Sizes,
    Voice,
    make_plan,
    speak,
)

TINY = Sizes(questions=4, answers=4, sentences=4, babble=6)
SENTENCE = "what is the opposite of seventeen"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("corpus"), sizes=TINY)


def test_the_plan_depends_on_its_seed_alone() -> None:
    assert make_plan(TINY, seed=3) == make_plan(TINY, seed=3)
    assert make_plan(TINY, seed=3) != make_plan(TINY, seed=4)


def test_no_training_part_holds_an_evaluation_sentence_or_voice() -> None:
    plan = make_plan(Sizes(sentences=500, babble=300), seed=0)
    trained = [item for part, items in plan.items() if not part.startswith("eval_") for item in items]
    judged = [item for part, items in plan.items() if part.startswith("eval_") for item in items]
    assert {item.text for item in trained}.isdisjoint({item.text for item in judged})
    assert {item.voice for item in trained} <= {*USER_VOICES, ANSWER_VOICE}
    assert not any("rms" in item.voice.base or "f4" in item.voice.base for item in trained)
    assert {item.voice for item in judged} >= {*HELD_OUT_FLITE, *HELD_OUT_ESPEAK}


def test_the_full_plan_is_as_large_as_the_model_needs() -> None:
    plan = make_plan(Sizes(), seed=0)
    assert len(plan["questions"]) >= 30_000
    assert {item.text for item in plan["questions"]} == {qa.question for qa in build_domain().train}
    assert len(set(plan["questions"])) == len(plan["questions"])
    for part in ("eval_questions", "eval_questions_unseen_flite", "eval_questions_unseen_espeak", "eval_text_only"):
        assert len(plan[part]) >= 150


def test_a_missing_library_names_the_package_to_install() -> None:
    with pytest.raises(MissingExtraError, match="apt-get install libnothing1"):
        synthesis.load_library("libnothing.so.1", "libnothing1")


@pytest.mark.parametrize("base", synthesis.FLITE_VOICES)
def test_flite_times_cover_the_wave_in_order(base: str) -> None:
    spoken = synthesis.speak_flite(SENTENCE, base)
    seconds = len(spoken.samples) / synthesis.SAMPLE_RATE
    ends = [phone.end for phone in spoken.phones]
    assert spoken.samples.dtype == np.float32 and 1.0 < seconds < 4.0
    assert ends == sorted(ends) and abs(ends[-1] - seconds) < 0.25
    assert [word.name for word in spoken.words] == SENTENCE.split()
    assert {word.start for word in spoken.words} <= {phone.start for phone in spoken.phones}
    assert {phone.name for phone in spoken.phones} <= set(PHONES)


def test_flite_words_are_louder_than_its_pauses() -> None:
    spoken = synthesis.speak_flite(SENTENCE, "slt")
    first, last = (int(time * synthesis.SAMPLE_RATE) for time in (spoken.words[0].start, spoken.words[-1].end))
    said, before, after = spoken.samples[first:last], spoken.samples[:first], spoken.samples[last:]
    assert said.std() > 10 * before.std() and said.std() > 3 * after.std()


def test_the_answer_voice_repeats_itself_exactly() -> None:
    once = speak(SENTENCE, ANSWER_VOICE).samples
    speak("something else entirely", Voice("flite", "slt", 1.2, 1.1))
    assert np.array_equal(once, speak(SENTENCE, ANSWER_VOICE).samples)


@pytest.mark.parametrize("engine, base", [("flite", "awb"), ("flite", "kal16"), ("espeak", "en-us+m3")])
def test_speed_shortens_speech(engine: str, base: str) -> None:
    slow, fast = (len(speak(SENTENCE, Voice(engine, base, speed)).samples) for speed in (0.8, 1.25))  # type: ignore[arg-type]
    assert fast < 0.8 * slow


def _fundamental(samples: np.ndarray) -> float:
    """The median over voiced frames of the autocorrelation's best pitch in Hz."""
    rate, frame = synthesis.SAMPLE_RATE, 1024
    lags = np.arange(rate // 400, rate // 60)
    found = []
    for start in range(0, len(samples) - frame, frame // 2):
        piece = samples[start : start + frame] - samples[start : start + frame].mean()
        correlation = np.correlate(piece, piece, "full")[frame - 1 :]
        if correlation[0] > frame * samples.var() and correlation[lags].max() > 0.3 * correlation[0]:
            found.append(rate / lags[correlation[lags].argmax()])
    return float(np.median(found))


@pytest.mark.parametrize("engine, base", [("flite", "slt"), ("flite", "kal16"), ("espeak", "en-us")])
def test_pitch_raises_the_fundamental(engine: str, base: str) -> None:
    low, high = (_fundamental(speak(SENTENCE, Voice(engine, base, 1.0, pitch)).samples) for pitch in (0.85, 1.3))  # type: ignore[arg-type]
    assert high > 1.1 * low


def test_an_unknown_voice_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody"):
        synthesis.speak_flite(SENTENCE, "nobody")
    with pytest.raises(MissingExtraError, match="xx-nobody"):
        synthesis.speak_espeak(SENTENCE, "xx-nobody")


def test_every_voice_of_the_corpus_speaks() -> None:
    for voice in (*USER_VOICES, *HELD_OUT_FLITE, *HELD_OUT_ESPEAK):
        spoken = speak("hello nano", voice)
        assert spoken.samples.std() > 0.005, voice.name
        assert next(phone.name for phone in spoken.phones if phone.name != synthesis.PAUSE) == "hh"


def test_the_corpus_reads_back_what_was_planned(tiny: Corpus) -> None:
    planned = [(part, item) for part, items in make_plan(TINY, seed=0).items() for item in items]
    assert len(tiny) == len(planned)
    for index, (part, item) in enumerate(planned):
        utterance = tiny.utterance(index)
        assert (utterance.part, utterance.text, utterance.kind) == (part, item.text, item.kind)
        assert utterance.voice == item.voice.name
        assert len(utterance.wave) > 4_000
        assert [tiny.vocabulary[word] for word in tiny.word_ids(index)] == utterance.text.split()


def test_times_are_samples_of_the_wave(tiny: Corpus) -> None:
    for index in range(len(tiny)):
        utterance = tiny.utterance(index)
        if utterance.voice.startswith("espeak"):
            assert utterance.phone_ends is None and utterance.word_starts is None and utterance.word_ends is None
            continue
        assert (
            utterance.phone_ends is not None and utterance.word_starts is not None and utterance.word_ends is not None
        )
        assert len(utterance.phone_ends) == len(utterance.phones)
        assert list(utterance.phone_ends) == sorted(utterance.phone_ends)
        assert utterance.phone_ends[-1] <= len(utterance.wave)
        assert len(utterance.word_starts) == len(utterance.word_ends) == len(utterance.text.split())
        assert set(utterance.word_starts) <= {0, *utterance.phone_ends}


def test_stored_waves_are_the_synthesised_ones(tiny: Corpus) -> None:
    utterance = tiny.utterance(tiny.indices("answers")[-1])
    assert np.abs(utterance.samples - speak(utterance.text, ANSWER_VOICE).samples).max() <= 1 / 32768


def test_an_interrupted_build_resumes_where_it_stopped(tiny: Corpus, tmp_path: Path) -> None:
    sizes = Sizes(questions=1, answers=2, sentences=2, babble=2)
    built = build_corpus(tmp_path, sizes=sizes)
    lost, kept = sorted(tmp_path.glob("*.jsonl"))[:2]
    before, stamp = lost.read_text(), kept.stat().st_mtime_ns
    lost.unlink()
    (tmp_path / INDEX).unlink()
    calls: list[tuple[int, int]] = []
    again = build_corpus(tmp_path, sizes=sizes, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 1 and calls[0][0] == calls[0][1]
    assert lost.read_text() == before and kept.stat().st_mtime_ns == stamp
    assert len(again) == len(built)
    assert not list(tmp_path.glob("*.partial*"))


def test_two_processes_make_the_same_index(tiny: Corpus, tmp_path: Path) -> None:
    build_corpus(tmp_path, sizes=TINY, processes=2)
    for path in tiny.folder.glob("*.json*"):
        mine, theirs = (
            [line for line in (folder / path.name).read_text().splitlines() if "espeak" not in line]
            for folder in (tiny.folder, tmp_path)
        )
        assert [_without_start(line) for line in mine] == [_without_start(line) for line in theirs]


def _without_start(line: str) -> object:
    """An index line less its place in the shard, which espeak-ng's lengths before it may move."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return line
    return {key: value for key, value in record.items() if key != "start"} if isinstance(record, dict) else record


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=INDEX):
        Corpus(tmp_path)


def test_a_corpus_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"format": 0, "phones": list(PHONES), "vocabulary": [], "shards": []}))
    with pytest.raises(ConfigError, match="format 0"):
        Corpus(tmp_path)
