"""The spoken corpus on disk: how it is written, resumed and read.

Parts (`Utterance.part`); those whose name starts with `eval_` are never trained on:

    questions                      training questions, each by 11 to 22 voices
    answers                        the answers of all questions asked aloud, by the answer voice
    sentences                      answer-like sentences, right or wrong, by the answer voice
    babble                         random word sequences by all users' voices, for the tokeniser
    eval_questions                 held-out questions in voices seen in training
    eval_questions_unseen_flite    the same by flite's rms, eval_questions_unseen_espeak by espeak-ng's f4
    eval_text_only                 questions that training only has as text
    eval_sentences                 held-out answer-like sentences by the answer voice

Format. `corpus.json` is written last and lists what counts: sample_rate, seed, phones (id = index), vocabulary (id =
index) and shards, as [part, stem] pairs in order. A shard of at most 1,000 utterances is `STEM.npy`, int16 of shape
(samples,), its waves end to end, and `STEM.jsonl`, one object per utterance:

    text, kind, voice     the sentence, its kind, the voice's name (engine:base:speed:pitch)
    start, length         where its samples are in the .npy
    phones                phone ids; flite's with its pauses, espeak-ng's without, from flite's lexicon
    phone_ends            flite only, else null: the sample after each phone's last, non-decreasing, at most `length`
    word_starts, word_ends  flite only, else null: the first sample of each word of `text` and the one after its last

A stem holds a digest of what the shard contains, so an interrupted build resumes at the first missing shard and a
larger one keeps what it can. Files appear whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vita_mctp.errors import ConfigError
from vita_mctp.files import write_whole
from vita_mctp.nano.domain import build_domain, rank
from vita_mctp.nano.synthesis import SAMPLE_RATE, Spoken
from vita_mctp.nano.voices import PHONE_ID, PHONES, Item, Sizes, Voice, make_plan, speak
from vita_mctp.schema import Schema

INDEX = "corpus.json"
FORMAT = 1
SHARD_UTTERANCES, SLOW_SHARD_UTTERANCES = 1_000, 100

PcmArray = npt.NDArray[np.int16]

_UNTIMED_PADDING = (0.04, 0.24)
"""Seconds of silence before and after an untimed voice, which has none of its own; flite's are about this long."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """One spoken sentence. `wave` is int16 of shape (T,) at 16 kHz, a view of the file; times are in samples.

    phones holds ids of `PHONES`; phone_ends, word_starts and word_ends are None where the voice gives no times.
    """

    text: str
    kind: str
    part: str
    voice: str
    wave: PcmArray
    phones: tuple[int, ...]
    phone_ends: tuple[int, ...] | None
    word_starts: tuple[int, ...] | None
    word_ends: tuple[int, ...] | None

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """The wave as float32 in [-1, 1]."""
        return self.wave.astype(np.float32) / 32768.0


class Corpus:
    """A built corpus. Raises ConfigError when `folder` holds none, or one of another format."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        header = _Header.of(self.folder)
        self.vocabulary = header.vocabulary
        self.word_id = {word: index for index, word in enumerate(self.vocabulary)}
        self._records: list[tuple[str, str, dict[str, Any]]] = []
        self._parts: dict[str, list[int]] = {}
        for part, stem in header.shards:
            for line in (self.folder / f"{stem}.jsonl").read_text().splitlines():
                self._parts.setdefault(part, []).append(len(self._records))
                self._records.append((part, stem, json.loads(line)))
        self._waves = functools.cache(lambda stem: np.load(self.folder / f"{stem}.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def indices(self, *parts: str) -> list[int]:
        """The utterances of the named parts, in order. Raises KeyError for a part the corpus has not."""
        return [index for part in parts for index in self._parts[part]]

    def utterance(self, index: int) -> Utterance:
        part, stem, record = self._records[index]
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        start = values.pop("start")
        return Utterance(part=part, wave=self._waves(stem)[start : start + values.pop("length")], **values)

    def word_ids(self, index: int) -> tuple[int, ...]:
        """The words of an utterance as indices into `vocabulary`."""
        return tuple(self.word_id[word] for word in self._records[index][2]["text"].split())


class _Header(Schema):
    """`corpus.json`."""

    format: int
    sample_rate: int = Field(default=SAMPLE_RATE, gt=0)
    seed: int = 0
    phones: tuple[str, ...]
    vocabulary: tuple[str, ...]
    shards: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, folder: Path) -> _Header:
        path = folder / INDEX
        if not path.is_file():
            raise ConfigError(f"no {INDEX} in {folder}; wanted: a corpus; build it, or let an interrupted build finish")
        header = cls.read_json(path, ConfigError)
        if header.format != FORMAT or header.phones != PHONES:
            raise ConfigError(
                f"{path} is of format {header.format}; wanted: {FORMAT} with this package's phones; build it again"
            )
        return header


def build_corpus(
    folder: Path | str,
    seed: int = 0,
    processes: int = 1,
    sizes: Sizes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Make the corpus in `folder`, or finish it there; `progress(shards done, shards in all)` hears of each shard.

    Raises MissingExtraError where flite or espeak-ng is not installed.
    """
    return build_planned(folder, make_plan(sizes or Sizes(), seed), seed, processes, progress)


def build_planned(
    folder: Path | str,
    plan: Mapping[str, Sequence[Item]],
    seed: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """`build_corpus` for a plan of one's own, part by part; `seed` is only noted."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(plan))
    missing = [(folder / stem, items) for _, stem, items in shards if not (folder / f"{stem}.jsonl").exists()]
    for done, _ in enumerate(_run(missing, processes), start=len(shards) - len(missing) + 1):
        if progress is not None:
            progress(done, len(shards))
    stems, words = tuple((part, stem) for part, stem, _ in shards), build_domain().vocabulary
    header = _Header(format=FORMAT, seed=seed, phones=PHONES, vocabulary=words, shards=stems)
    write_whole(folder / INDEX, json.dumps(header.to_json_values(), indent=1).encode())
    return Corpus(folder)


def _shards(plan: Mapping[str, Sequence[Item]]) -> Iterator[tuple[str, str, Sequence[Item]]]:
    """(part, stem, items) of every shard."""
    for part, items in plan.items():
        size = SHARD_UTTERANCES if any("kokoro" not in item.voice.engine for item in items) else SLOW_SHARD_UTTERANCES
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            content = "\n".join(f"{item.voice.name} {item.text}" for item in chunk)
            digest = hashlib.sha256(content.encode()).hexdigest()[:10]
            yield part, f"{part}-{start // size:03d}-{digest}", chunk


def _run(jobs: Sequence[tuple[Path, Sequence[Item]]], processes: int) -> Iterator[None]:
    if processes <= 1:
        yield from map(_write_shard, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_write_shard, jobs)


def _write_shard(job: tuple[Path, Sequence[Item]]) -> None:
    stem, items = job
    waves, lines, start = [], [], 0
    for item in items:
        wave, record = _speak(item)
        lines.append(json.dumps({**record, "start": start, "length": len(wave)}, separators=(",", ":")))
        waves.append(wave)
        start += len(wave)
    samples = io.BytesIO()
    np.save(samples, np.concatenate(waves))
    write_whole(stem.with_name(f"{stem.name}.npy"), samples.getvalue())
    write_whole(stem.with_name(f"{stem.name}.jsonl"), ("\n".join(lines) + "\n").encode())


def _speak(item: Item) -> tuple[PcmArray, dict[str, Any]]:
    """An item's wave and its index entry, all but where it is in the shard."""
    spoken = speak(item.text, item.voice)
    samples = _pad(spoken, item.text, item.voice) if item.voice.engine == "espeak" else spoken.samples
    wave = (np.clip(samples, -1.0, 32767 / 32768) * 32768.0).astype(np.int16)
    phones, words = spoken.phones, spoken.words
    ends, first, last = [phone.end for phone in phones], [word.start for word in words], [word.end for word in words]
    times = {"phone_ends": ends, "word_starts": first, "word_ends": last}
    if item.voice.timed and [word.name for word in words] != item.text.split():
        raise ValueError(f"flite reads {item.text!r} as {[word.name for word in words]}")
    return wave, {
        "text": item.text,
        "kind": item.kind,
        "voice": item.voice.name,
        "phones": [PHONE_ID[phone.name] for phone in phones],
        **{name: _in_samples(each, len(wave)) if item.voice.timed else None for name, each in times.items()},
    }


def _pad(spoken: Spoken, text: str, voice: Voice) -> npt.NDArray[np.float32]:
    """Silence of a length chosen by text and voice on both sides."""
    digest = bytes.fromhex(rank("padding", f"{voice.name}:{text}"))
    shortest, longest = _UNTIMED_PADDING
    before, after = (int((shortest + (longest - shortest) * digest[side] / 255) * SAMPLE_RATE) for side in (0, 1))
    return np.pad(spoken.samples, (before, after))


def _in_samples(seconds: list[float], length: int) -> list[int]:
    return [min(length, round(time * SAMPLE_RATE)) for time in seconds]
