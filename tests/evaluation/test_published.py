"""Each published layout is read to its end and in order, and a recording that is missing takes no sample away."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vita_mctp.errors import DataError
from vita_mctp.evaluation import published
from vita_mctp.evaluation.benchmarks import Case, check_ids, transcribe_case
from vita_mctp.evaluation.pool import as_lines, parse_lines

NAMES = ("1089-134686-0000", "1089-134686-0001", "1089-134686-0002")
WORDS = ("what is seven plus three", "which day comes after wednesday", "which country is london in")
HAN = ("BAC009S0764W0121", "BAC009S0764W0122", "BAC009S0765W0130")
SPOKEN = {
    "librispeech": ("test-clean", NAMES, tuple((words.upper(),) for words in WORDS)),
    "fleurs": ("test", NAMES, tuple((words,) for words in WORDS)),
    "aishell1": ("test", HAN, (("今天天气好",), ("二十三点",), ("你好",))),
    "kaldi": ("iOS/test", HAN, (("今天 天气 好",), ("二十 三 点",), ("你好",))),
    "common_voice": ("test", NAMES, tuple((f'"{words}',) for words in WORDS)),
    "open_audio_bench": (
        "trivia_qa",
        NAMES,
        (
            ("seven plus three is ten", "ten"),
            ("thursday comes after wednesday", "wednesday"),
            ("london is in england", "england"),
        ),
    ),
    "jsonl": ("test", NAMES, (("ten",), ("wednesday",), ("england",))),
}
SAID = {
    "libritts": ("test-clean", "Seven plus three is ten."),
    "seed_tts": ("en/meta.lst", "seven plus three is ten"),
}
Publish = Callable[[str], Path]


def test_every_layout_is_tested() -> None:
    readers = {benchmark.reader for benchmark in published.BENCHMARKS}
    assert readers == {getattr(published, name) for name in (*SPOKEN, *SAID)}


@pytest.mark.parametrize("layout", SPOKEN)
def test_a_spoken_sample_has_its_recording_and_what_is_right(publish: Publish, layout: str) -> None:
    part, names, references = SPOKEN[layout]
    cases = list(getattr(published, layout)(publish(layout), part))
    assert tuple(case.id for case in cases) == names
    assert tuple(case.references for case in cases) == references
    assert all(case.question.audio is not None and case.question.audio.exists() for case in cases)
    assert not any(case.question.text for case in cases), "what is right is no part of the question"
    assert parse_lines(as_lines(cases), Path("cases.jsonl"), Case) == cases


@pytest.mark.parametrize("layout", SAID)
def test_a_sentence_to_say_is_its_own_reference(publish: Publish, layout: str) -> None:
    part, first = SAID[layout]
    cases = list(getattr(published, layout)(publish(layout), part))
    assert tuple(case.id for case in cases) == NAMES
    assert cases[0].question.text == first and all(case.references == (case.question.text,) for case in cases)
    assert all((case.question.voice is not None and case.question.voice.exists()) for case in cases) == (
        layout == "seed_tts"
    )


@pytest.mark.parametrize("layout", SPOKEN)
def test_without_a_recording_the_sample_stays(publish: Publish, layout: str) -> None:
    part, names, _ = SPOKEN[layout]
    folder = publish(layout)
    recording = next(path for path in folder.rglob(f"{names[1]}.*") if path.suffix in (".flac", ".wav", ".mp3"))
    recording.unlink()
    assert tuple(case.id for case in getattr(published, layout)(folder, part)) == names


def test_questions_with_their_words_are_kept(publish: Publish) -> None:
    cases = published.open_audio_bench(publish("open_audio_bench"), "trivia_qa")
    assert tuple(case.prompt for case in cases) == WORDS


@pytest.mark.parametrize(("layout", "part"), [(name, case[0]) for name, case in {**SPOKEN, **SAID}.items()])
def test_another_folder_is_named_in_one_line(tmp_path: Path, layout: str, part: str) -> None:
    with pytest.raises(DataError, match=r"as (it was )?published"):
        list(getattr(published, layout)(tmp_path, part))


@pytest.mark.parametrize(
    ("layout", "part", "table", "text", "complaint"),
    [
        ("fleurs", "test", "test.tsv", "1\tonly two", r"test\.tsv:1 has 2 columns"),
        ("seed_tts", "en/meta.lst", "en/meta.lst", "a|b|c|d\nonly|two\n", r"meta\.lst:2 has 2 fields"),
        ("common_voice", "test", "test.tsv", "path\ttext\n", "lacks the columns sentence"),
        ("jsonl", "test", "test.jsonl", '{"audio": "a.wav", "prompt": "?"}\n', r"test\.jsonl:1 lacks .*'reference'"),
    ],
)
def test_a_damaged_table_is_named(
    tmp_path: Path, layout: str, part: str, table: str, text: str, complaint: str
) -> None:
    (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / table).write_text(text)
    with pytest.raises(DataError, match=complaint):
        list(getattr(published, layout)(tmp_path, part))


@pytest.mark.parametrize(("names", "complaint"), [(("a", "a"), "two samples"), (("../a",), r"'\.\./a'")])
def test_ids_that_cannot_name_files_are_refused(tmp_path: Path, names: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        check_ids([transcribe_case(name, tmp_path / "x.wav", "x") for name in names], "the set")
