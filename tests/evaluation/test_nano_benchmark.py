"""The nano benchmark on a model of random weights: every sample has its row, and the page says what the rows say."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vita_mctp import SpeechLM
from vita_mctp.audio import read_wave
from vita_mctp.cli import main
from vita_mctp.environment import measure_command
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.evaluation.benchmarks import Case, find_benchmark, read_cases
from vita_mctp.evaluation.metrics import ResultRow
from vita_mctp.evaluation.pool import read_lines
from vita_mctp.evaluation.work import NO_AUDIO, NO_TEXT, UNFINISHED
from vita_mctp.nano import benchmark
from vita_mctp.nano.benchmark import NanoOptions, evaluate_nano
from vita_mctp.nano.cases import QUESTION_GROUPS, RIGHT_ANSWERS, SENTENCES, speak_samples
from vita_mctp.nano.domain import build_domain
from vita_mctp.types import Wave

N = 2
MODES = ("vanilla", "1,2")


class Always:
    """A transcriber that hears the same words in every wave, and counts the waves."""

    def __init__(self, text: str) -> None:
        self.text, self.heard = text, 0

    def transcribe(self, wave: Wave) -> str:
        self.heard += 1
        return self.text


JUDGES = {"pocketsphinx-nano": Always("one two"), "pocketsphinx-nano-loop": Always("three")}


@pytest.fixture(scope="module")
def work(tiny_speech_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    options = NanoOptions(str(tiny_speech_folder), N, MODES, folder, folder / "page" / "nano.md", 3, False)
    speech_lm = SpeechLM.from_pretrained(tiny_speech_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "find_spec", lambda package: None)  # Whisper, where it is installed
        evaluate_nano(speech_lm, options, open_transcriber=lambda name, worker: JUDGES[name])
    return folder


def rows_of(work: Path) -> dict[str, list[ResultRow]]:
    """By run."""
    return {path.parent.name: read_lines(path, ResultRow) for path in (work / "runs").glob("*/rows.jsonl")}


def test_every_sample_has_its_row(work: Path) -> None:
    found = Counter(
        (name, row.tags.get("voices") or row.tags["said"]) for name, rows in rows_of(work).items() for row in rows
    )
    spoken = {(f"{task}-{mode}", group) for task in ("asr", "sqa") for mode in MODES for group in QUESTION_GROUPS}
    spoken |= {(f"tts-{mode}", SENTENCES) for mode in MODES}
    spoken |= {(floor, said) for floor in ("original", "copy") for said in (SENTENCES, RIGHT_ANSWERS)}
    assert found == dict.fromkeys(spoken, N)


def test_random_output_is_wrong_and_the_floors_are_no_failures(work: Path) -> None:
    for name, rows in rows_of(work).items():
        for row in rows:
            exact = [score.part for score in row.scores if score.rule == "exact"]
            assert not any(exact)
            if name in ("original", "copy"):
                assert row.failure is None and row.audio_seconds > 0.3
                assert row.transcripts == {"pocketsphinx-nano": "one two", "pocketsphinx-nano-loop": "three"}
            else:
                assert row.failure in (None, NO_AUDIO, NO_TEXT, UNFINISHED)
                assert row.tokens > 0 and row.total_seconds > 0


def test_each_judge_hears_every_wave_once(work: Path) -> None:
    with_sound = [row for name, rows in rows_of(work).items() if "asr" not in name for row in rows if row.audio]
    assert [judge.heard for judge in JUDGES.values()] == [len(with_sound)] * 2


def test_the_floor_is_the_recording_itself(work: Path) -> None:
    row = rows_of(work)["original"][0]
    assert row.audio is not None
    kept, made = read_wave(work / "runs" / "original" / row.audio), read_wave(work / "speech/waves" / f"{row.id}.wav")
    assert np.array_equal(kept.samples, made.samples) and kept.sample_rate == made.sample_rate


def test_the_page_says_what_the_rows_say(work: Path) -> None:
    page, rows = (work / "page" / "nano.md").read_text(), rows_of(work)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    asked = [row for row in cells if row[0] in MODES and row[1] in QUESTION_GROUPS]
    assert len(asked) == len(MODES) * len(QUESTION_GROUPS)
    for mode, group, count, *metrics in asked:
        mine = [row for row in rows[f"sqa-{mode}"] if row.tags["voices"] == group]
        assert int(count.split()[0]) == len(mine) == N
        scores = [s for row in mine for s in row.scores if (s.rule, s.on) == ("plain", "speech")]
        rate = 100 * sum(score.part for score in scores) / sum(score.whole for score in scores)
        assert metrics[1].startswith("0.0 (") and float(metrics[3].split()[0]) == pytest.approx(rate, abs=0.05)
    spoken = [row for row in cells if row[1] in (SENTENCES, RIGHT_ANSWERS)]
    assert [row[0].split(",")[0] for row in spoken].count("model") == len(MODES) and len(spoken) == len(MODES) + 4


def test_the_page_has_whispers_word_where_it_was_asked(work: Path) -> None:
    about = json.loads((work / "summary.json").read_text())
    runs = {path.parent.name: json.loads(path.read_text()) for path in (work / "runs").glob("*/summary.json")}
    section = "## Heard by Whisper"
    assert section not in benchmark.markdown(about, runs)
    added = {("exact", "speech, whisper-nano"): 0.5, ("exact", "speech, whisper-nano-prompted"): 0.75}
    added |= {("plain", "speech, whisper-nano"): 0.2, ("plain", "speech, whisper-nano-prompted"): 0.1}
    added |= {("distillmos mos", "sound"): 2.5}
    metrics = [
        {"rule": rule, "on": on, "value": value, "low": 0, "high": 5, "n": N} for (rule, on), value in added.items()
    ]
    for run in runs.values():
        for part in (run, *(each for tag in run["by"].values() for each in tag.values())):
            part["metrics"] += metrics
    page = benchmark.markdown(about, runs).partition(section)[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and " | 2 | " in line]
    assert len(rows) == len(MODES) * (len(QUESTION_GROUPS) + 1) + 4  # questions, sentences, and the two floors' two
    values = ["50.0 (0.0 to 500.0)", "75.0 (0.0 to 500.0)", "20.0 (0.0 to 500.0)", "10.0 (0.0 to 500.0)"]
    assert all(row[3:] == [*values, "2.50 (0.00 to 5.00) |"] for row in rows)


def test_metrics_are_also_given_by_kind_of_question(work: Path) -> None:
    summary = json.loads((work / "runs" / "sqa-vanilla" / "summary.json").read_text())
    by_kind = summary["by"]["kind"]
    assert set(by_kind) <= {qa.kind for qa in build_domain().questions}
    assert sum(part["n_total"] for part in by_kind.values()) == summary["n_total"] == N * len(QUESTION_GROUPS)


def test_the_page_states_how_it_was_made(work: Path) -> None:
    page = (work / "page" / "nano.md").read_text()
    assert re.search(
        r"    vita-mctp evaluate nano --model \S+ --n 2 --modes vanilla 1,2 --seed 3 --out \S+nano.md\n", page
    )
    assert re.search(r"weights [0-9a-f]{12} \(SHA-256\), float32 on cpu", page)
    for name in ("date", "commit", "seed", "processor", "versions"):
        assert f"\n- {name}: " in page


def test_samples_are_held_out_questions_and_each_group_asks_the_same(work: Path) -> None:
    def cases(name: str, limit: int) -> list[Case]:
        return read_cases(find_benchmark(name), work / "speech", work, limit)

    asked, said = cases("nano-sqa", 3 * N), cases("nano-voice", 2 * N)
    domain = build_domain()
    right = {qa.question: qa.answer for qa in domain.held_out}
    assert not {case.prompt for case in asked} & {qa.question for qa in domain.train + domain.text_only}
    assert all(case.references == (right[case.prompt],) for case in asked)
    groups = {group: [c.prompt for c in asked if c.tags["voices"] == group] for group in QUESTION_GROUPS}
    assert len({tuple(prompts) for prompts in groups.values()}) == 1
    answers = [case.question.text for case in said if case.tags["said"] == RIGHT_ANSWERS]
    assert answers == [case.references[0] for case in asked[:N]]
    assert [case.references for case in cases("nano-asr", 3 * N)] == [(case.prompt,) for case in asked]


@pytest.mark.parametrize("n", [0, 10_000])
def test_more_samples_than_the_domain_holds_out_are_refused(tmp_path: Path, n: int) -> None:
    with pytest.raises(ConfigError, match=f"^{n} .* 1 to 300"):
        speak_samples(tmp_path, n)


def test_the_cost_of_a_command_is_its_time_memory_and_end() -> None:
    held = measure_command([sys.executable, "-c", "import time; x = b'1' * 60_000_000; time.sleep(0.2); exit(3)"])
    assert held.exit_code == 3 and 0.2 <= held.seconds < 60
    assert 60_000_000 < held.peak_bytes < 150_000_000, "this process holds torch; that one does not"


def test_a_model_that_cannot_be_asked_ends_the_evaluation_at_once(tiny_speech_folder: Path, tmp_path: Path) -> None:
    speech_lm = SpeechLM.from_pretrained(tiny_speech_folder)
    (tmp_path / "model").symlink_to(tiny_speech_folder)
    options = NanoOptions(str(tmp_path / "model"), 1, ("boost",), tmp_path / "work", tmp_path / "nano.md")
    (tmp_path / "work" / "answer.wav").mkdir(parents=True)  # nothing can be written there
    with pytest.raises(CheckpointError, match="exit code 2"):
        evaluate_nano(speech_lm, options)
    assert not (tmp_path / "nano.md").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--modes", "boost", "warp"], "unknown mode 'warp'"), (["--n", "301"], "301 samples of each group")],
)
def test_the_command_refuses_in_one_line(
    tiny_speech_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    paths = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "nano.md")]
    assert main(["evaluate", "nano", "--model", str(tiny_speech_folder), *paths, *arguments]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "nano.md").exists()
