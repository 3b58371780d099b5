"""Log-mel frames of the synthetic corpus as the nano codec sees them. B batch, F frames, M mels, P phones, W words.

`FeatureStore` keeps every utterance's frames on disk, half precision. An utterance of the answer voice is kept twice:
as spoken, and on the word grid, where every word starts on a code's border, so that a word's codes hardly depend on
where in a sentence it stands. `tokenize_corpus` turns them into codes with a trained encoder.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vita_mctp.audio import cut_to_speech
from vita_mctp.codecs.nano.config import LOG_MEAN, LOG_SCALE, SILENCE, LogMel, NanoCodecConfig, pad_to_codes
from vita_mctp.codecs.nano.networks import NanoEncoder
from vita_mctp.files import write_output
from vita_mctp.nano.corpus import Corpus
from vita_mctp.nano.recordings import as_recorded
from vita_mctp.nano.voices import ANSWER_VOICE
from vita_mctp.types import FloatArray, IntArray, Wave

IGNORED = -100
HalfArray = npt.NDArray[np.float16]

SPOKEN_PARTS = ("answers", "sentences", "eval_sentences")
"""Parts of the corpus whose codes the language model is to produce."""

CODES_FILE, INDEX_FILE = "codes.npy", "index.npy"


def grid_positions(word_starts: FloatArray, speech_end: float, step: int) -> tuple[FloatArray, FloatArray]:
    """Source frames and the target frames they move to, so that word i starts on a multiple of `step` frames.

    One step of silence is kept on either side of the speech; each word becomes a whole number of steps, at least one.
    """
    sources = np.append(word_starts, speech_end).astype(np.float32)
    lengths = np.maximum(1, np.round(np.diff(sources) / step)) * step
    targets = step + np.concatenate([[0.0], np.cumsum(lengths)])
    sources = np.concatenate([[max(0.0, sources[0] - step)], sources, [sources[-1] + step]])
    targets = np.concatenate([[0.0], targets, [targets[-1] + step]])
    return sources.astype(np.float32), targets.astype(np.float32)


def warp_frames(frames: FloatArray, sources: FloatArray, targets: FloatArray) -> FloatArray:
    """(F, M) -> (targets[-1], M): frame t of the result is the frame that moves to t, linearly interpolated."""
    moved = np.interp(np.arange(int(targets[-1])) + 0.5, targets, sources) - 0.5
    moved = np.clip(moved, 0, len(frames) - 1)
    low = np.floor(moved).astype(int)
    high = np.minimum(low + 1, len(frames) - 1)
    weight = (moved - low)[:, None].astype(np.float32)
    return frames[low] * (1 - weight) + frames[high] * weight


class Item(NamedTuple):
    """One utterance in one form: where its frames are, and the frames at which its phones end if that is known."""

    utterance: int
    start: int
    num_frames: int
    answer: bool
    grid: bool
    phone_ends: tuple[float, ...] | None


def build_features(corpus: Corpus, folder: Path, config: NanoCodecConfig, recordings: int = 0) -> None:
    """Compute every utterance's frames once; about 0.6 GB for 20 hours.

    recordings: of each natural voice's utterance, so many more forms, disturbed as sound.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features, items, start = LogMel(config), [], 0
    with (folder / "frames.f16.part").open("wb") as sink:
        for index in range(len(corpus)):
            for item, frames in _forms(corpus, index, features, config, recordings):
                sink.write(frames.astype(np.float16).tobytes())
                items.append(item._replace(start=start))
                start += len(frames)
    (folder / "items.json").write_text(json.dumps(items))
    (folder / "frames.f16.part").replace(folder / "frames.f16")


def _forms(
    corpus: Corpus, index: int, features: LogMel, config: NanoCodecConfig, recordings: int
) -> Iterator[tuple[Item, FloatArray]]:
    utterance, hop = corpus.utterance(index), config.hop_length
    samples = utterance.samples
    if utterance.voice.startswith("kokoro"):  # as a question is heard: cut to the speech in it
        samples = (cut_to_speech(Wave(samples, config.sample_rate)) or Wave(samples, config.sample_rate)).samples
    frames = features(pad_to_codes(samples, config))
    ends = None if utterance.phone_ends is None else tuple(end / hop for end in utterance.phone_ends)
    answer = utterance.voice == ANSWER_VOICE.name
    yield Item(index, 0, len(frames), answer, False, ends), frames
    for number in range(recordings if utterance.voice.startswith("kokoro") else 0):
        wave = Wave(np.asarray(utterance.samples), config.sample_rate)
        frames = features(pad_to_codes(as_recorded(wave, np.random.default_rng((index, number))).samples, config))
        yield Item(index, 0, len(frames), False, False, None), frames
    if answer and ends and utterance.word_starts and utterance.word_ends:
        starts = np.asarray(utterance.word_starts) / hop
        speech_end = utterance.word_ends[-1] / hop
        sources, targets = grid_positions(starts.astype(np.float32), speech_end, config.frames_per_code)
        warped_ends = tuple(np.interp(ends, sources, targets).tolist())
        warped = warp_frames(frames, sources, targets)
        yield Item(index, 0, len(warped), True, True, warped_ends), warped


def open_features(corpus: Corpus, folder: Path, config: NanoCodecConfig, recordings: int = 0) -> FeatureStore:
    """The corpus's frames below `folder`, computed once."""
    if not (folder / "frames.f16").is_file():
        build_features(corpus, folder, config, recordings)
    return FeatureStore(folder, config.num_mels)


class FeatureStore:
    """Items and their frames, read from disk as they are needed."""

    def __init__(self, folder: Path, num_mels: int) -> None:
        self.items = [Item(*row) for row in json.loads((folder / "items.json").read_text())]
        self._frames: HalfArray = np.memmap(folder / "frames.f16", np.float16, "r").reshape(-1, num_mels)

    def frames(self, item: Item) -> FloatArray:
        """(F, M) normalised log-mel frames."""
        return self._frames[item.start : item.start + item.num_frames].astype(np.float32)


@dataclass(frozen=True)
class CodecBatch:
    """What one step of codec training needs. inputs: (B, F, M), augmented; targets: (B, F, M), clean; num_frames: (B,).

    is_answer: (B,) bool: these are reconstructed. phone_frames: (B, F / patch_frames) phone of each fine step, IGNORED
    where unknown.
    """

    inputs: Tensor
    targets: Tensor
    num_frames: Tensor
    is_answer: Tensor
    phone_frames: Tensor
    phones: list[IntArray]
    words: list[IntArray]
    texts: list[str]


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Deterministic batches of similar lengths from a seed; the order of epoch n depends on seed and n alone.

    Of an utterance without times up to `most_cut` frames are left out at either end, and the rest becomes longer or
    shorter by up to `most_stretched`.
    """

    store: FeatureStore
    corpus: Corpus
    config: NanoCodecConfig
    items: list[Item]
    max_frames: int
    seed: int
    most_cut: int = 0
    most_stretched: float = 0.0

    def epoch(self, number: int) -> Iterator[CodecBatch]:
        """Every item once, in pools sorted by length so that little is padding."""
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(len(self.items))
        for low in range(0, len(order), 2048):
            pool = sorted(order[low : low + 2048], key=lambda index: self.items[index].num_frames)
            groups = list(self.groups([self.items[index] for index in pool]))
            for group in rng.permutation(len(groups)):
                yield self.batch(groups[group], rng)

    def groups(self, items: list[Item]) -> Iterator[list[Item]]:
        """Neighbours of `items` together, at most `max_frames` frames a group with its padding."""
        group: list[Item] = []
        for item in items:
            if group and (len(group) + 1) * item.num_frames > self.max_frames:
                yield group
                group = []
            group.append(item)
        if group:
            yield group

    def batch(self, items: list[Item], rng: np.random.Generator | None) -> CodecBatch:
        """Stack items; with `rng`, shifted by up to a code and, if not of the answer voice, augmented."""
        step = self.config.frames_per_code
        if rng is not None and self.most_cut:
            items = [self._cut(item, rng) for item in items]
        shifts = [0 if rng is None or item.grid else int(rng.integers(step)) for item in items]
        frames = [self._stretched(item, rng) for item in items]
        counts = [-(-(len(each) + shift) // step) * step for each, shift in zip(frames, shifts, strict=True)]
        clean = np.full((len(items), max(counts), self.config.num_mels), SILENCE, np.float32)
        fine = np.full((len(items), max(counts) // self.config.patch_frames), IGNORED, np.int64)
        for row, (item, shift) in enumerate(zip(items, shifts, strict=True)):
            clean[row, shift : shift + len(frames[row])] = frames[row]
            if item.phone_ends is not None:
                self._label(fine[row], item, shift)
        targets = torch.from_numpy(clean)
        answer = torch.tensor([item.answer for item in items])
        inputs = targets if rng is None else augment(targets, answer, rng)
        return CodecBatch(
            inputs,
            targets,
            torch.tensor(counts),
            answer,
            torch.from_numpy(fine),
            [np.asarray(self.corpus.utterance(item.utterance).phones, np.int64) for item in items],
            [np.asarray(self.corpus.word_ids(item.utterance), np.int64) for item in items],
            [self.corpus.utterance(item.utterance).text for item in items],
        )

    def _cut(self, item: Item, rng: np.random.Generator) -> Item:
        before, after = (int(cut) for cut in rng.integers(self.most_cut + 1, size=2))
        if item.phone_ends is not None or item.num_frames <= 4 * self.most_cut:
            return item
        return item._replace(start=item.start + before, num_frames=item.num_frames - before - after)

    def _stretched(self, item: Item, rng: np.random.Generator | None) -> FloatArray:
        frames = self.store.frames(item)
        if rng is None or not self.most_stretched or item.phone_ends is not None:
            return frames
        length = round(len(frames) * (1 + rng.uniform(-self.most_stretched, self.most_stretched)))
        return warp_frames(frames, *(np.array([0.0, end], np.float32) for end in (len(frames), length)))

    def _label(self, fine: IntArray, item: Item, shift: int) -> None:
        """Phone at the middle of each fine step that the utterance covers."""
        assert item.phone_ends is not None
        phones = np.asarray(self.corpus.utterance(item.utterance).phones)
        middles = (np.arange(len(fine)) + 0.5) * self.config.patch_frames - shift
        inside = (middles >= 0) & (middles < item.phone_ends[-1])
        fine[inside] = phones[np.searchsorted(item.phone_ends, middles[inside], side="right").clip(0, len(phones) - 1)]


def augment(frames: Tensor, spare: Tensor, rng: np.random.Generator) -> Tensor:
    """Other speakers, rooms and levels from log-mel frames (B, F, M); rows where `spare` get only a gain.

    Vocal tract (frequency warp of up to 18 %), pitch (blurred harmonics), room and microphone (smooth equaliser), level
    (12 dB) and coloured noise, each drawn once per row.
    """
    batch, _, mels = frames.shape
    axis = torch.arange(mels, dtype=torch.float32)[None] / mels

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, *(shape or (1,)))).astype(np.float32))

    changed = (~spare)[:, None].float()
    warped = _warp_mels(frames, 1.0 + changed * draw(-0.18, 0.18))
    blur = changed * draw(-1.0, 1.0).clamp_min(0.0)
    warped = torch.lerp(warped, _smooth_mels(warped, 5), blur[:, None])
    waves = torch.cos(torch.pi * axis[:, None] * torch.arange(1, 6)[:, None] + draw(0.0, 6.3, 5, 1))
    equaliser = changed * (draw(-0.6, 0.6, 5, 1) * waves).sum(1)
    log_energy = warped * LOG_SCALE + LOG_MEAN + (equaliser + draw(-1.4, 1.4))[:, None]
    level = torch.where(spare[:, None], torch.full((batch, 1), -12.0), draw(-12.0, -5.0))
    noise = (level + draw(-1.5, 1.5) * (axis - 0.5))[:, None]
    noise = noise + 0.5 * torch.from_numpy(rng.standard_normal(frames.shape, dtype=np.float32))
    return ((torch.logaddexp(log_energy, noise) - LOG_MEAN) / LOG_SCALE).clamp_min(SILENCE)


def _warp_mels(frames: Tensor, factor: Tensor) -> Tensor:
    """Row b's mel m takes the value at mel m * factor[b], linearly interpolated."""
    mels = frames.shape[2]
    position = (torch.arange(mels, dtype=torch.float32)[None] * factor).clamp(0, mels - 1)
    low = position.floor().long().clamp(max=mels - 2)
    weight = (position - low)[:, None]
    rows, by_mel = torch.arange(len(frames))[:, None], frames.transpose(1, 2)
    return by_mel[rows, low].transpose(1, 2) * (1 - weight) + by_mel[rows, low + 1].transpose(1, 2) * weight


def _smooth_mels(frames: Tensor, width: int) -> Tensor:
    """Mean over `width` neighbouring mels."""
    padded = torch.nn.functional.pad(frames, (width // 2, width // 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, width, stride=1)


def tokenize_corpus(
    maker: BatchMaker,
    encoder: NanoEncoder,
    folder: Path,
    augmented: int,
    seed: int,
    hear: Callable[[CodecBatch, np.random.Generator], Tensor] = lambda batch, _: batch.inputs,
) -> None:
    """Codes of every item of `maker`: variant 0, and `augmented` more of each form of what is trained on as heard.

    `codes.npy` holds all codes end to end (int16); a row of `index.npy` (int64) is utterance, variant, start, length.
    Variant 0 of a sentence of the answer voice is on the word grid, which is what the language model learns to speak;
    every other variant 0 is the clean recording. Further variants are shifted against the code borders, augmented, and
    encoded as `hear` gives them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, int, int]] = []
    pieces: list[IntArray] = []

    taken: Counter[int] = Counter()

    def keep(items: list[Item], rng: np.random.Generator | None) -> None:
        for group in maker.groups(sorted(items, key=lambda item: item.num_frames)):
            batch = maker.batch(group, rng)
            with torch.inference_mode():
                codes = encoder(batch.inputs if rng is None else hear(batch, rng))[1].numpy()
            for item, row, frames in zip(group, codes, batch.num_frames.tolist(), strict=True):
                piece = row[: frames // maker.config.frames_per_code]
                rows.append((item.utterance, taken[item.utterance], len(piece)))
                taken[item.utterance] += 1
                pieces.append(piece)

    parts = {index: part for part in maker.corpus.parts for index in maker.corpus.indices(part)}
    spoken = {item.utterance for item in maker.items if item.grid and parts[item.utterance] in SPOKEN_PARTS}
    first = {item.utterance: item for item in reversed(maker.items) if item.grid == (item.utterance in spoken)}
    keep([*first.values()], None)
    heard = [item for item in maker.items if not item.grid and not parts[item.utterance].startswith("eval_")]
    for variant in range(1, augmented + 1):
        keep(heard, np.random.default_rng((seed, variant)))
    lengths = np.array([length for _, _, length in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    index = np.array([(row[0], row[1], start, row[2]) for row, start in zip(rows, starts, strict=True)], np.int64)
    arrays = {INDEX_FILE: index[np.lexsort((index[:, 1], index[:, 0]))], CODES_FILE: np.concatenate(pieces)}
    for name, array in arrays.items():  # the codes come last: where they are, all is there
        written = io.BytesIO()
        np.save(written, array.astype(np.int16) if name == CODES_FILE else array)
        write_output(folder / name, written.getvalue())
