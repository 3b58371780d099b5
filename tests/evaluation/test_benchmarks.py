"""The table of benchmarks agrees with itself, and a set from the hub is kept before it is used."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from vita_mctp.data.hub import HubSet
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.evaluation import benchmarks
from vita_mctp.evaluation.answer_scores import ANSWER_RULES
from vita_mctp.evaluation.benchmarks import all_benchmarks, find_benchmark, read_cases
from vita_mctp.evaluation.judges import JUDGES
from vita_mctp.evaluation.text_scores import TEXT_RULES

BENCHMARKS = all_benchmarks()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_can_be_read_scored_and_heard(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.licence and benchmark.name in benchmark.describe()
    assert benchmark.maker or (benchmark.reader is not None and benchmark.source.startswith("https://"))
    assert benchmark.rules and set(benchmark.rules) <= {*ANSWER_RULES, *TEXT_RULES}
    assert (benchmark.judges == ()) == (benchmark.task == "asr") and set(benchmark.judges) <= set(JUDGES)
    assert benchmark.hub is None or len(benchmark.hub.question) == (benchmark.task == "sqa")


def streamed(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(hub_set: HubSet) -> Iterator[Mapping[str, Any]]:
        yield from rows

    monkeypatch.setattr(benchmarks, "stream_rows", stream)


def test_recordings_from_the_hub_are_kept_and_a_missing_one_is_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"audio": {"bytes": b"one", "path": "a.mp3"}, "question": "who?", "answers": ["Ann", "Anne", "Ann"]},
        {"audio": None, "question": "where?", "answers": "Rome"},
    ]
    streamed(rows, monkeypatch)
    cases = read_cases(find_benchmark("web-questions", "sqa"), None, tmp_path, partial=True)
    assert [case.references for case in cases] == [("Ann", "Anne"), ("Rome",)]
    assert [case.prompt for case in cases] == ["who?", "where?"]
    paths = [case.question.audio for case in cases]
    assert paths == [tmp_path / "000000.mp3", tmp_path / "000001.wav"]
    assert (tmp_path / "000000.mp3").read_bytes() == b"one" and not (tmp_path / "000001.wav").exists()


def test_a_set_that_shrank_on_the_hub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed([{"audio": {"bytes": b"x"}, "text": "words"}] * 3, monkeypatch)
    benchmark = find_benchmark("librispeech-test-other", "asr")
    with pytest.raises(DataError, match="librispeech-test-other has 3 samples, librispeech-test-other has 2939"):
        read_cases(benchmark, None, tmp_path)
    assert len(read_cases(benchmark, None, tmp_path, limit=2)) == 2
    streamed([], monkeypatch)
    with pytest.raises(DataError, match="has no samples"):
        read_cases(benchmark, None, tmp_path, partial=True)


def test_a_sentence_to_say_needs_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed([{"audio": {"bytes": b"x"}, "text_normalized": "Good day."}], monkeypatch)
    (case,) = read_cases(find_benchmark("libritts-test-clean", "tts"), None, tmp_path, limit=1)
    assert case.question.text == "Good day." and not list(tmp_path.iterdir())


def test_an_unknown_name_is_answered_with_the_task_s_own() -> None:
    with pytest.raises(ConfigError, match="known are seed-tts-en, seed-tts-zh"):
        find_benchmark("librispeech-test-clean", "tts")
