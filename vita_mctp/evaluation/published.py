"""The field's benchmarks: for each kind of set the reader of its published layout, and the sets that are read by it.

What the samples are is read from transcripts and tables alone, in their order, never from the recordings that happen to
be there: a recording that is missing is a sample that fails, not one that is gone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from vita_mctp.data.hub import HubPart, HubSet
from vita_mctp.data.manifest import Form
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

WHISPER, PARAFORMER = ("whisper-large-v3",), ("paraformer-zh",)
_FORMS = {ASR: Form.ASR, TTS: Form.TTS, SQA: Form.SPEECH_QA}


def _hub(
    task: str, repository: str, config: str | None, split: str, answer: str, question: tuple[str, ...] = ()
) -> HubSet:
    return HubSet(_FORMS[task], (HubPart(repository, config, split),), "audio", question=question, answer=answer)


def librispeech(folder: Path, part: str) -> Iterator[Case]:
    """PART/SPEAKER/CHAPTER/*.trans.txt, each line an id and its words, beside ID.flac."""
    for table in _found(folder, f"{part}/*/*/*.trans.txt"):
        for name, words in _named_lines(table):
            yield transcribe_case(name, table.parent / f"{name}.flac", words)


def _librispeech(part: str, config: str, split: str, samples: int) -> Benchmark:
    name, source, licence = f"librispeech-{part}", "https://www.openslr.org/12", "CC BY 4.0"
    hub = _hub(ASR, "openslr/librispeech_asr", config, split, "text")
    return Benchmark(name, ASR, "en", source, part, licence, samples, ("whisper_en",), reader=librispeech, hub=hub)


def fleurs(folder: Path, part: str) -> Iterator[Case]:
    """PART.tsv without a header (id, file, raw words, words, characters, samples, gender), and audio/PART/FILE."""
    table = folder / f"{part}.tsv"
    for number, line in enumerate(_lines(table), start=1):
        cells = line.split("\t")
        if len(cells) < 4:
            raise DataError(f"{table}:{number} has {len(cells)} columns, Fleurs has 7; get the file again")
        yield transcribe_case(Path(cells[1]).stem, folder / "audio" / part / cells[1], cells[3])


def _fleurs(language: str, config: str, samples: int, rule: str) -> Benchmark:
    name, source = f"fleurs-{language}", f"https://huggingface.co/datasets/google/fleurs (data/{config})"
    hub = _hub(ASR, "google/fleurs", config, "test", "transcription")
    return Benchmark(name, ASR, language, source, "test", "CC BY 4.0", samples, (rule,), reader=fleurs, hub=hub)


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


def _kaldi(name: str, source: str, part: str, licence: str, samples: int) -> Benchmark:
    return Benchmark(name, ASR, "zh", source, part, licence, samples, ("zh_cer",), reader=kaldi)


def common_voice(folder: Path, part: str) -> Iterator[Case]:
    """PART.tsv with a header (path, sentence, ...) and clips/PATH."""
    for row in _rows(folder / f"{part}.tsv", "\t", ("path", "sentence")):
        yield transcribe_case(Path(row["path"]).stem, folder / "clips" / row["path"], row["sentence"])


def _common_voice(language: str, rule: str) -> Benchmark:
    name, source = f"common-voice-{language}", "https://commonvoice.mozilla.org/datasets"
    return Benchmark(name, ASR, language, source, "test", "CC0 1.0", None, (rule,), reader=common_voice)


def seed_tts(folder: Path, part: str) -> Iterator[Case]:
    """PART, such as en/meta.lst: id|words of the voice prompt|its recording|words to say[|their recording]."""
    table = folder / part
    for number, line in enumerate(_lines(table), start=1):
        cells = line.split("|")
        if len(cells) not in (4, 5):
            raise DataError(f"{table}:{number} has {len(cells)} fields, a Seed-TTS list has 4 or 5; get the file again")
        yield say_case(cells[0].removesuffix(".wav"), cells[3], table.parent / cells[2])


def _seed_tts(name: str, part: str, samples: int, language: str, judges: tuple[str, ...]) -> Benchmark:
    source = "https://github.com/BytedanceSpeech/seed-tts-eval"
    licence, rules = "Common Voice CC0 1.0 (en), DiDiSpeech-2: research (zh)", (f"seed_tts_{language}",)
    return Benchmark(name, TTS, language, source, part, licence, samples, rules, judges, seed_tts)


def libritts(folder: Path, part: str) -> Iterator[Case]:
    """PART/SPEAKER/CHAPTER/ID.normalized.txt, one sentence each."""
    for table in _found(folder, f"{part}/*/*/*.normalized.txt"):
        yield say_case(table.name.removesuffix(".normalized.txt"), _text(table).strip())


def _libritts(name: str, part: str, samples: int) -> Benchmark:
    source, licence, rules = "https://www.openslr.org/60", "CC BY 4.0", ("whisper_en",)
    hub = _hub(TTS, "mythicinfinity/libritts", "clean", "test.clean", "text_normalized")
    return Benchmark(name, TTS, "en", source, part, licence, samples, rules, WHISPER, libritts, hub)


_QA_LICENCE, _QA_RULES = "as the questions: see the source", ("contains", "has_answer")


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


def _questions(
    name: str, repository: str, part: str, samples: int, question: str, answer: str, config: str | None = None
) -> Benchmark:
    source, hub = (
        f"https://huggingface.co/datasets/{repository}",
        _hub(SQA, repository, config, part, answer, (question,)),
    )
    return Benchmark(name, SQA, "en", source, part, _QA_LICENCE, samples, _QA_RULES, WHISPER, jsonl, hub)


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


def _open_audio_bench(part: str, samples: int) -> Benchmark:
    name = f"openaudiobench-{part.replace('_', '-')}"
    source = "https://huggingface.co/datasets/baichuan-inc/OpenAudioBench"
    return Benchmark(name, SQA, "en", source, part, _QA_LICENCE, samples, _QA_RULES, WHISPER, open_audio_bench)


_WENETSPEECH, _AISHELL = "https://github.com/wenet-e2e/WenetSpeech", "https://www.openslr.org/33"

BENCHMARKS = (
    _librispeech("test-clean", "clean", "test", 2620),
    _librispeech("test-other", "other", "test", 2939),
    _librispeech("dev-clean", "clean", "validation", 2703),
    _librispeech("dev-other", "other", "validation", 2864),
    _fleurs("en", "en_us", 647, "whisper_en"),
    _fleurs("zh", "cmn_hans_cn", 945, "zh_cer"),
    Benchmark("aishell-1", ASR, "zh", _AISHELL, "test", "Apache 2.0", 7176, ("zh_cer",), reader=aishell1),
    _kaldi("aishell-2-ios", "https://www.aishelltech.com/aishell_2", "iOS/test", "research, on request", 5000),
    _kaldi("wenetspeech-test-net", _WENETSPEECH, "test_net", "CC BY 4.0", 24774),
    _kaldi("wenetspeech-test-meeting", _WENETSPEECH, "test_meeting", "CC BY 4.0", 8370),
    _common_voice("en", "whisper_en"),
    _common_voice("zh", "zh_cer"),
    _seed_tts("seed-tts-en", "en/meta.lst", 1088, "en", WHISPER),
    _seed_tts("seed-tts-zh", "zh/meta.lst", 2020, "zh", PARAFORMER),
    _seed_tts("seed-tts-hard", "zh/hardcase.lst", 400, "zh", PARAFORMER),
    _libritts("libritts-test-clean", "test-clean", 4837),
    _questions("llama-questions", "TwinkStart/llama-questions", "test", 300, "Questions", "Answer"),
    _questions("trivia-qa", "TwinkStart/speech-triavia-qa", "test", 1024, "question", "answer"),
    _questions("web-questions", "TwinkStart/speech-web-questions", "test", 2032, "question", "answers"),
    _open_audio_bench("llama_questions", 300),
    _open_audio_bench("trivia_qa", 1000),
    _open_audio_bench("web_questions", 1000),
    _questions("voicebench-sd-qa-usa", "hlt-lab/voicebench", "usa", 553, "prompt", "reference", "sd-qa"),
)


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
