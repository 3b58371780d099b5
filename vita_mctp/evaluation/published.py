"""The field's benchmarks: a reader for each published layout; `assets/benchmarks.yaml` has the sets that it reads. And
a manifest of one's own as a benchmark.

What the samples are is read from transcripts and tables alone, in their order, never from the recordings that happen to
be there: a recording that is missing is a sample that fails, not one that is gone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from vita_mctp.data.manifest import Form, ManifestSample, Recording, read_bytes, read_manifest
from vita_mctp.errors import DataError
from vita_mctp.evaluation.benchmarks import (
    ASR,
    SQA,
    TTS,
    Benchmark,
    Case,
    answer_case,
    distinct,
    say_case,
    transcribe_case,
)
from vita_mctp.files import write_output
from vita_mctp.text.chat import TTS_INSTRUCTION
from vita_mctp.text.vocabulary import AUDIO_TAG
from vita_mctp.yaml_file import read_yaml


def librispeech(folder: Path, part: str) -> Iterator[Case]:
    """PART/SPEAKER/CHAPTER/*.trans.txt, each line an id and its words, beside ID.flac."""
    for table in _found(folder, f"{part}/*/*/*.trans.txt"):
        for name, words in _named_lines(table):
            yield transcribe_case(name, table.parent / f"{name}.flac", words)


def fleurs(folder: Path, part: str) -> Iterator[Case]:
    """PART.tsv without a header (id, file, raw words, words, characters, samples, gender), and audio/PART/FILE."""
    table = folder / f"{part}.tsv"
    for number, line in enumerate(_lines(table), start=1):
        cells = line.split("\t")
        if len(cells) < 4:
            raise DataError(f"{table}:{number} has {len(cells)} columns, Fleurs has 7; get the file again")
        yield transcribe_case(Path(cells[1]).stem, folder / "audio" / part / cells[1], cells[3])


def aishell1(folder: Path, part: str) -> Iterator[Case]:
    """transcript/aishell_transcript_v0.8.txt (an id, then words apart by blanks) and wav/PART/SPEAKER/ID.wav.

    The transcripts of all parts are in one file; those whose speaker, in the id's digits 7 to 11, has a folder in the
    part are its samples.
    """
    speakers = {path.name for path in _found(folder, f"wav/{part}/*")}
    table = folder / "transcript" / "aishell_transcript_v0.8.txt"
    for name, words in _named_lines(table):
        if (speaker := name[6:11]) in speakers:
            yield transcribe_case(name, folder / "wav" / part / speaker / f"{name}.wav", words.replace(" ", ""))


def kaldi(folder: Path, part: str) -> Iterator[Case]:
    """PART/wav.scp (an id and a path below PART) and PART/trans.txt or PART/text: AISHELL-2, WenetSpeech as prepared.

    Every transcript is a sample; without an entry in wav.scp its recording counts as missing.
    """
    folder = folder / part
    paths = dict(_named_lines(folder / "wav.scp"))
    table = folder / "trans.txt"
    for name, words in _named_lines(table if table.exists() else folder / "text"):
        yield transcribe_case(name, folder / paths.get(name, f"{name}.wav"), words)


def common_voice(folder: Path, part: str) -> Iterator[Case]:
    """PART.tsv with a header (path, sentence, ...) and clips/PATH."""
    for row in _rows(folder / f"{part}.tsv", "\t", ("path", "sentence")):
        yield transcribe_case(Path(row["path"]).stem, folder / "clips" / row["path"], row["sentence"])


def seed_tts(folder: Path, part: str) -> Iterator[Case]:
    """PART, such as en/meta.lst: id|words of the voice prompt|its recording|words to say[|their recording]."""
    table = folder / part
    for number, line in enumerate(_lines(table), start=1):
        cells = line.split("|")
        if len(cells) not in (4, 5):
            raise DataError(f"{table}:{number} has {len(cells)} fields, a Seed-TTS list has 4 or 5; get the file again")
        yield say_case(cells[0].removesuffix(".wav"), cells[3], table.parent / cells[2])


def libritts(folder: Path, part: str) -> Iterator[Case]:
    """PART/SPEAKER/CHAPTER/ID.normalized.txt, one sentence each."""
    for table in _found(folder, f"{part}/*/*/*.normalized.txt"):
        yield say_case(table.name.removesuffix(".normalized.txt"), _text(table).strip())


def jsonl(folder: Path, part: str) -> Iterator[Case]:
    """PART.jsonl, an object a line: audio (a path below the folder), prompt, and reference: an answer or a list.

    VoiceBench's columns, with its recordings in files. id: the recording's name.
    """
    table = folder / f"{part}.jsonl"
    for number, line in enumerate(_lines(table), start=1):
        try:
            row = json.loads(line)
            audio, prompt, answers = row["audio"], row["prompt"], row["reference"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{table}:{number} lacks audio, prompt and reference: {error!r}") from None
        yield answer_case(Path(audio).stem, folder / audio, prompt, distinct(answers))


_OPEN_AUDIO_BENCH: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "llama_questions": ("Questions", ("Answer",), ""),
    "trivia_qa": ("question", ("answer_normalized_value", "answer_normalized_aliases"), ","),
    "web_questions": ("question", ("answers",), ";"),
}
"""By part: the column of the question, those of the answers, and what stands between several answers in one column."""


def open_audio_bench(folder: Path, part: str) -> Iterator[Case]:
    """eval_datas/PART/PART.csv and eval_datas/PART/audios/AUDIO_FILENAME."""
    question, columns, between = _OPEN_AUDIO_BENCH[part]
    folder = folder / "eval_datas" / part
    for row in _rows(folder / f"{part}.csv", ",", (question, *columns, "audio_filename")):
        cells = [row[column] for column in columns]
        answers = [each for cell in cells for each in (cell.split(between) if between else [cell])]
        audio = Path(row["audio_filename"])
        yield answer_case(audio.stem, folder / "audios" / audio, row[question], distinct(answers))


def _found(folder: Path, pattern: str) -> list[Path]:
    """Sorted; DataError when there is none."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise DataError(f"{folder} holds no {pattern}; give the folder that holds the set as it was published")
    return paths


def _named_lines(path: Path) -> Iterator[tuple[str, str]]:
    """A name and the rest of each line that is not empty."""
    for line in _lines(path):
        name, _, rest = line.replace("\t", " ").partition(" ")
        if name:
            yield name, rest.strip()


def _rows(path: Path, between: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    text = io.StringIO(_text(path), newline="")
    quoted = between != "\t"
    lines = csv.DictReader(text, delimiter=between, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    if missing := sorted(set(columns) - set(lines.fieldnames or ())):
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(lines.fieldnames or ())}")
    yield from lines


def _lines(path: Path) -> list[str]:
    """Split at line ends alone: `str.splitlines` also splits at signs that stand inside texts."""
    return _text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"cannot read {path}: {reason}; give the folder that holds the set as it was published"
        ) from None


_READERS = (librispeech, fleurs, aishell1, kaldi, common_voice, seed_tts, libritts, jsonl, open_audio_bench)
_BENCHMARK = TypeAdapter(Benchmark)


def _benchmarks() -> Iterator[Benchmark]:
    """Of `assets/benchmarks.yaml`, which says how it is written."""
    layouts = read_yaml(Path(__file__).parents[1] / "assets" / "benchmarks.yaml")
    for reader in _READERS:
        shared = layouts[reader.__name__]
        for name, own in shared.pop("sets").items():
            values = {"name": name, "reader": reader, **shared, **own}
            if streamed := values.pop("streamed", None):
                values["hub"] = {**values["hub"], "parts": [streamed]}
            yield _BENCHMARK.validate_python(values)


BENCHMARKS = tuple(_benchmarks())


_FORMS = {ASR: Form.ASR, TTS: Form.TTS, SQA: Form.SPEECH_QA}
_HAN = re.compile(r"[\u4e00-\u9fff]")
_RULES = {"en": "whisper_en", "zh": "zh_cer"}
_JUDGES = {"en": ("whisper-large-v3",), "zh": ("paraformer-zh",)}


def own_benchmark(manifest: Path, task: str) -> Benchmark:
    """The samples of one task. Chinese characters in an answer make it a Chinese set; else it is an English one.

    Raises DataError for a line that is no sample, and where no line has the task's form.
    """
    samples = [sample for sample in read_manifest(manifest) if sample.form is _FORMS[task]]
    if not samples:
        raise DataError(f"{manifest} has no sample of the task {task}; docs/data.md says how one is written")
    language = "zh" if any(_HAN.search(sample.messages[-1].content) for sample in samples) else "en"
    return Benchmark(
        name=manifest.stem,
        task=task,
        language=language,
        source=str(manifest),
        part=task,
        licence="one's own",
        samples=len(samples),
        rules=("contains", "has_answer") if task == SQA else (_RULES[language],),
        judges=() if task == ASR else _JUDGES[language],
        maker=partial(_cases, samples),
        fingerprint=hashlib.sha256(manifest.read_bytes()).hexdigest()[:16],
    )


def _cases(samples: list[ManifestSample], store: Path, task: str, limit: int | None) -> Iterator[Case]:
    """store: where recordings go that are no files of their own."""
    for number, sample in enumerate(samples[:limit]):
        name = sample.id or f"{number:06d}"
        if len(sample.messages) != 2:
            raise DataError(f"{sample.where}: {len(sample.messages)} messages; wanted a question and its answer alone")
        asked, right = (message.content.replace(AUDIO_TAG, "").strip() for message in sample.messages)
        if task == TTS:
            yield say_case(name, asked.removeprefix(TTS_INSTRUCTION).strip())
            continue
        if not right or not sample.heard[0]:
            raise DataError(f"{sample.where}: wanted a recording to hear and an answer in text to hold others against")
        audio = _file(sample, store / f"{name}.audio")
        yield transcribe_case(name, audio, right) if task == ASR else answer_case(name, audio, asked, (right,))


def _file(sample: ManifestSample, target: Path) -> Path:
    """Of the question's recording, of which a part of a tar file is written to `target`."""
    recording = sample.audios[0]
    if not isinstance(recording, Recording):
        raise DataError(f"{sample.where}: audio codes; wanted a recording, as other systems know no such codes")
    if recording.member is None and recording.span is None:
        return recording.path
    write_output(target, read_bytes(recording, sample.where))
    return target
