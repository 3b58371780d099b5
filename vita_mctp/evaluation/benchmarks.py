"""The benchmarks by name: what each is, where it comes from, how it is read and scored, how many samples all of it has.

A set is read from a folder in its published layout (`layouts`), streamed from the hub, or made on the spot. Rules and
judges are those that the field and paper 003 score it by; a run may ask for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vita_mctp.data.hub import HubPart, HubSet, stream_rows
from vita_mctp.data.manifest import Form
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.evaluation.cases import Case, answer_case, check_ids, say_case, transcribe_case
from vita_mctp.evaluation.judges import resolve
from vita_mctp.evaluation.layouts import LAYOUTS, answers_of
from vita_mctp.evaluation.pool import cannot_write
from vita_mctp.types import Task

ASR, TTS, SQA = "asr", "tts", "sqa"
TASKS = {ASR: Task.ASR, TTS: Task.TTS, SQA: Task.SPEECH_TO_SPEECH}
WHISPER, PARAFORMER = "whisper-large-v3", "paraformer-zh"
_FORMS = {ASR: Form.ASR, TTS: Form.TTS, SQA: Form.SPEECH_QA}


@dataclass(frozen=True)
class Benchmark:
    """part: the split, or the file, as the layout's reader takes it. samples: of the whole part; None where releases
    differ. layout: of the published folder. hub: where it can be streamed from. maker: "module:attribute" of what makes
    it in a folder, (folder, part, limit) -> cases, for a set that is not published but made. judges: what transcribes
    the answers' sound, the main one first; none for asr. tags: for whose values metrics are also given one by one.
    """

    name: str
    task: str
    language: str
    source: str
    part: str
    licence: str
    samples: int | None
    layout: str
    rules: tuple[str, ...]
    judges: tuple[str, ...] = ()
    hub: HubSet | None = None
    maker: str | None = None
    tags: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for a list of all."""
        size = "size varies" if self.samples is None else f"{self.samples} samples"
        way = "made on the spot" if self.maker else f"layout {self.layout}"
        return (
            f"{self.name}: {self.task}, {self.language}, {size}; {way}{', streamed' if self.hub else ''}; "
            f"{self.licence}; {self.source}"
        )


def _hub(
    task: str, repository: str, config: str | None, split: str, answer: str, question: tuple[str, ...] = ()
) -> HubSet:
    return HubSet(_FORMS[task], (HubPart(repository, config, split),), "audio", question=question, answer=answer)


def _librispeech(part: str, config: str, split: str, samples: int) -> Benchmark:
    hub = _hub(ASR, "openslr/librispeech_asr", config, split, "text")
    name, source, rules = f"librispeech-{part}", "https://www.openslr.org/12", ("whisper_en",)
    return Benchmark(name, ASR, "en", source, part, "CC BY 4.0", samples, "librispeech", rules, hub=hub)


def _fleurs(language: str, config: str, samples: int, rule: str) -> Benchmark:
    hub = _hub(ASR, "google/fleurs", config, "test", "transcription")
    name, source = f"fleurs-{language}", f"https://huggingface.co/datasets/google/fleurs (data/{config})"
    return Benchmark(name, ASR, language, source, "test", "CC BY 4.0", samples, "fleurs", (rule,), hub=hub)


def _mandarin(name: str, source: str, part: str, licence: str, samples: int, layout: str) -> Benchmark:
    return Benchmark(name, ASR, "zh", source, part, licence, samples, layout, ("zh_cer",))


def _common_voice(language: str, rule: str) -> Benchmark:
    source, name = "https://commonvoice.mozilla.org/datasets", f"common-voice-{language}"
    return Benchmark(name, ASR, language, source, "test", "CC0 1.0", None, "common_voice", (rule,))


def _seed_tts(name: str, part: str, samples: int, language: str) -> Benchmark:
    source = "https://github.com/BytedanceSpeech/seed-tts-eval"
    licence = "Common Voice CC0 1.0 (en), DiDiSpeech-2: research (zh)"
    judges, rules = (WHISPER if language == "en" else PARAFORMER,), (f"seed_tts_{language}",)
    return Benchmark(name, TTS, language, source, part, licence, samples, "seed_tts", rules, judges)


def _libritts() -> Benchmark:
    hub = _hub(TTS, "mythicinfinity/libritts", "clean", "test.clean", "text_normalized")
    name, source, part, rules = "libritts-test-clean", "https://www.openslr.org/60", "test-clean", ("whisper_en",)
    return Benchmark(name, TTS, "en", source, part, "CC BY 4.0", 4837, "libritts", rules, (WHISPER,), hub)


def _spoken_qa(name: str, source: str, part: str, samples: int, layout: str, hub: HubSet | None = None) -> Benchmark:
    rules, licence = ("contains", "has_answer"), "as the questions: see the source"
    return Benchmark(name, SQA, "en", source, part, licence, samples, layout, rules, (WHISPER,), hub)


def _ultra_eval(name: str, repository: str, question: str, answer: str, samples: int) -> Benchmark:
    hub = _hub(SQA, repository, None, "test", answer, (question,))
    return _spoken_qa(name, f"https://huggingface.co/datasets/{repository}", "test", samples, "jsonl", hub)


def _open_audio_bench(part: str, samples: int) -> Benchmark:
    source = "https://huggingface.co/datasets/baichuan-inc/OpenAudioBench"
    return _spoken_qa(f"openaudiobench-{part.replace('_', '-')}", source, part, samples, "open_audio_bench")


def _voicebench() -> Benchmark:
    hub = _hub(SQA, "hlt-lab/voicebench", "sd-qa", "usa", "reference", ("prompt",))
    source = "https://huggingface.co/datasets/hlt-lab/voicebench"
    return _spoken_qa("voicebench-sd-qa-usa", source, "usa", 553, "jsonl", hub)


def _nano(name: str, task: str, part: str, samples: int, tag: str) -> Benchmark:
    """The closed domain of the embedded model."""
    source, maker = "vita_mctp/nano/benchmark.py", "vita_mctp.nano.benchmark:make_cases"
    judges = () if task == ASR else ("pocketsphinx-nano", "pocketsphinx-nano-loop")
    rules, tags = (("plain",) if task == ASR else ("exact", "plain")), (tag, "kind")
    return Benchmark(name, task, "en", source, part, "Apache 2.0", samples, "", rules, judges, maker=maker, tags=tags)


_WENETSPEECH = "https://github.com/wenet-e2e/WenetSpeech"
_AISHELL2, _ON_REQUEST = "https://www.aishelltech.com/aishell_2", "research, on request"

BENCHMARKS: Mapping[str, Benchmark] = {
    each.name: each
    for each in (
        _librispeech("test-clean", "clean", "test", 2620),
        _librispeech("test-other", "other", "test", 2939),
        _librispeech("dev-clean", "clean", "validation", 2703),
        _librispeech("dev-other", "other", "validation", 2864),
        _fleurs("en", "en_us", 647, "whisper_en"),
        _fleurs("zh", "cmn_hans_cn", 945, "zh_cer"),
        _mandarin("aishell-1", "https://www.openslr.org/33", "test", "Apache 2.0", 7176, "aishell1"),
        _mandarin("aishell-2-ios", _AISHELL2, "iOS/test", _ON_REQUEST, 5000, "kaldi"),
        _mandarin("wenetspeech-test-net", _WENETSPEECH, "test_net", "CC BY 4.0", 24774, "kaldi"),
        _mandarin("wenetspeech-test-meeting", _WENETSPEECH, "test_meeting", "CC BY 4.0", 8370, "kaldi"),
        _common_voice("en", "whisper_en"),
        _common_voice("zh", "zh_cer"),
        _seed_tts("seed-tts-en", "en/meta.lst", 1088, "en"),
        _seed_tts("seed-tts-zh", "zh/meta.lst", 2020, "zh"),
        _seed_tts("seed-tts-hard", "zh/hardcase.lst", 400, "zh"),
        _libritts(),
        _ultra_eval("llama-questions", "TwinkStart/llama-questions", "Questions", "Answer", 300),
        _ultra_eval("trivia-qa", "TwinkStart/speech-triavia-qa", "question", "answer", 1024),
        _ultra_eval("web-questions", "TwinkStart/speech-web-questions", "question", "answers", 2032),
        _open_audio_bench("llama_questions", 300),
        _open_audio_bench("trivia_qa", 1000),
        _open_audio_bench("web_questions", 1000),
        _voicebench(),
        _nano("nano-asr", ASR, "transcribed questions", 900, "voices"),
        _nano("nano-sqa", SQA, "questions", 900, "voices"),
        _nano("nano-tts", TTS, "sentences", 300, "said"),
        _nano("nano-voice", TTS, "answer voice", 600, "said"),
    )
}


def find_benchmark(name: str, task: str | None = None) -> Benchmark:
    """Raises ConfigError for a name that is not known, or is another task's."""
    if name not in BENCHMARKS or task not in (None, BENCHMARKS[name].task):
        known = ", ".join(each.name for each in BENCHMARKS.values() if task in (None, each.task))
        raise ConfigError(f"{name!r} is no benchmark{f' of the task {task}' if task else ''}; known are {known}")
    return BENCHMARKS[name]


def read_cases(
    benchmark: Benchmark, folder: Path | None, store: Path, limit: int | None = None, *, partial: bool = False
) -> list[Case]:
    """The first `limit` samples from the published layout in `folder`, or, without one, from the hub.

    store: where recordings from the hub, or made ones, are kept. partial: fewer samples than the whole set has will do.
    Raises DataError for a set that is not as published or, unless limited or partial, not whole; ConfigError where the
    hub does not have it.
    """
    where = benchmark.name if folder is None else str(folder)
    cases = check_ids(islice(_all_cases(benchmark, folder, store, limit), limit), where)
    if not cases:
        raise DataError(f"{where} has no samples of {benchmark.name}; give the folder that holds the set as published")
    if benchmark.samples not in (None, len(cases)) and limit is None and not partial:
        raise DataError(
            f"{where} has {len(cases)} samples, {benchmark.name} has {benchmark.samples}: get all of it, or say that a "
            "part of it is wanted (--partial)"
        )
    return cases


def _all_cases(benchmark: Benchmark, folder: Path | None, store: Path, limit: int | None) -> Iterator[Case]:
    if benchmark.maker is not None:
        yield from resolve(benchmark.maker)(folder or store, benchmark.part, limit)
    elif folder is not None:
        yield from LAYOUTS[benchmark.layout](folder, benchmark.part)
    elif benchmark.hub is not None:
        yield from _streamed(benchmark, benchmark.hub, store)
    else:
        raise ConfigError(f"{benchmark.name} cannot be streamed; get it from {benchmark.source} and give its folder")


def _streamed(benchmark: Benchmark, hub: HubSet, store: Path) -> Iterator[Case]:
    """Rows of the hub, numbered. A recording that a row lacks is not written, which fails its sample later."""
    assert hub.audio is not None and hub.answer is not None
    for number, row in enumerate(stream_rows(hub)):
        name = f"{number:06d}"
        answer = row[hub.answer]
        if benchmark.task == TTS:
            yield say_case(name, answer)
            continue
        audio = _kept(row[hub.audio] or {}, store / name)
        if benchmark.task == ASR:
            yield transcribe_case(name, audio, answer)
        else:
            yield answer_case(name, audio, row[hub.question[0]], answers_of(answer))


def _kept(recording: Mapping[str, Any], path: Path) -> Path:
    """Where the recording lies now."""
    path = path.with_suffix(Path(recording.get("path") or "").suffix or ".wav")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if recording.get("bytes"):
            path.write_bytes(recording["bytes"])
    except OSError as error:
        raise cannot_write(path, error) from None
    return path
