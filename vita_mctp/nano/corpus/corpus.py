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
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vita_mctp.errors import ConfigError
from vita_mctp.nano.corpus.domain import build_domain, rank
from vita_mctp.nano.corpus.flite import SAMPLE_RATE, Spoken
from vita_mctp.nano.corpus.plan import Item, Sizes, make_plan
from vita_mctp.nano.corpus.voices import PHONE_ID, PHONES, Voice, speak

INDEX = "corpus.json"
FORMAT = 1
SHARD_UTTERANCES = 1_000

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
    def words(self) -> list[str]:
        return self.text.split()

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """The wave as float32 in [-1, 1]."""
        return self.wave.astype(np.float32) / 32768.0

    @property
    def held_out(self) -> bool:
        return self.part.startswith("eval_")


class Corpus:
    """A built corpus. Raises ConfigError when `folder` holds none, or one of another format."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        header = _read_header(self.folder)
        self.vocabulary: tuple[str, ...] = tuple(header["vocabulary"])
        self.word_id = {word: index for index, word in enumerate(self.vocabulary)}
        self._records: list[tuple[str, str, dict[str, Any]]] = []
        self._parts: dict[str, list[int]] = {}
        for part, stem in header["shards"]:
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

    def lengths(self) -> npt.NDArray[np.int64]:
        """Every utterance's number of samples, shape (len(self),)."""
        return np.array([record["length"] for _, _, record in self._records], dtype=np.int64)

    def utterance(self, index: int) -> Utterance:
        part, stem, record = self._records[index]
        start = record["start"]
        return Utterance(
            text=record["text"],
            kind=record["kind"],
            part=part,
            voice=record["voice"],
            wave=self._waves(stem)[start : start + record["length"]],
            phones=tuple(record["phones"]),
            phone_ends=_times(record["phone_ends"]),
            word_starts=_times(record["word_starts"]),
            word_ends=_times(record["word_ends"]),
        )

    def word_ids(self, index: int) -> tuple[int, ...]:
        """The words of an utterance as indices into `vocabulary`."""
        return tuple(self.word_id[word] for word in self._records[index][2]["text"].split())


def _times(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no corpus ({INDEX} is missing): build it, or let an interrupted build finish"
        )
    header: dict[str, Any] = json.loads(path.read_text())
    if header.get("format") != FORMAT or tuple(header["phones"]) != PHONES:
        raise ConfigError(
            f"{path} is of format {header.get('format')}, wanted {FORMAT} with this package's phones: build it again"
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
    header = {
        "format": FORMAT,
        "sample_rate": SAMPLE_RATE,
        "seed": seed,
        "phones": PHONES,
        "vocabulary": build_domain().vocabulary,
        "shards": [[part, stem] for part, stem, _ in shards],
    }
    _replace(folder / INDEX, json.dumps(header, indent=1).encode())
    return Corpus(folder)


def _shards(plan: Mapping[str, Sequence[Item]]) -> Iterator[tuple[str, str, Sequence[Item]]]:
    """(part, stem, items) of every shard."""
    for part, items in plan.items():
        for start in range(0, len(items), SHARD_UTTERANCES):
            chunk = items[start : start + SHARD_UTTERANCES]
            content = "\n".join(f"{item.voice.name} {item.text}" for item in chunk)
            digest = hashlib.sha256(content.encode()).hexdigest()[:10]
            yield part, f"{part}-{start // SHARD_UTTERANCES:03d}-{digest}", chunk


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
    temporary = stem.with_name(f"{stem.name}.partial.npy")
    np.save(temporary, np.concatenate(waves))
    temporary.replace(f"{stem}.npy")
    _replace(Path(f"{stem}.jsonl"), ("\n".join(lines) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    temporary.replace(path)


def _speak(item: Item) -> tuple[PcmArray, dict[str, Any]]:
    """An item's wave and its index entry, all but its place in the shard."""
    spoken = speak(item.text, item.voice)
    samples = spoken.samples if item.voice.timed else _pad(spoken, item.text, item.voice)
    wave = (np.clip(samples, -1.0, 32767 / 32768) * 32768.0).astype(np.int16)
    record: dict[str, Any] = {
        "text": item.text,
        "kind": item.kind,
        "voice": item.voice.name,
        "phones": [PHONE_ID[phone.name] for phone in spoken.phones],
        "phone_ends": None,
        "word_starts": None,
        "word_ends": None,
    }
    if item.voice.timed:
        if [word.name for word in spoken.words] != item.text.split():
            raise ValueError(f"flite reads {item.text!r} as {[word.name for word in spoken.words]}")
        record["phone_ends"] = _sample_times([phone.end for phone in spoken.phones], len(wave))
        record["word_starts"] = _sample_times([word.start for word in spoken.words], len(wave))
        record["word_ends"] = _sample_times([word.end for word in spoken.words], len(wave))
    return wave, record


def _pad(spoken: Spoken, text: str, voice: Voice) -> npt.NDArray[np.float32]:
    """Silence of a length chosen by text and voice on both sides."""
    digest = bytes.fromhex(rank("padding", f"{voice.name}:{text}"))
    shortest, longest = _UNTIMED_PADDING
    before, after = (int((shortest + (longest - shortest) * digest[side] / 255) * SAMPLE_RATE) for side in (0, 1))
    return np.pad(spoken.samples, (before, after))


def _sample_times(seconds: list[float], length: int) -> list[int]:
    return [min(length, round(time * SAMPLE_RATE)) for time in seconds]
