"""A manifest of one's own as a benchmark: the lines of the task's form, in the form that training takes.

What is right is the answer's text: a transcript for asr, what was to be said for tts, an answer for sqa.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vita_mctp.data.manifest import Form, ManifestSample, Recording, read_bytes, read_manifest
from vita_mctp.errors import DataError
from vita_mctp.evaluation.benchmarks import ASR, SQA, TTS, Benchmark, Case, answer_case, say_case, transcribe_case
from vita_mctp.files import write_output
from vita_mctp.text.chat import TTS_INSTRUCTION
from vita_mctp.text.vocabulary import AUDIO_TAG

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
