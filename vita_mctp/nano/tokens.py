"""Codes of the whole synthetic corpus, each utterance several times over. N codes.

`codes.npy` holds all codes end to end (int16); a row of `index.npy` (int64) is utterance, variant, start, length.
Variant 0 of a sentence of the answer voice is on the word grid, which is what the language model learns to speak; every
other variant 0 is the clean recording. Further variants are shifted against the code borders and augmented.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vita_mctp.codecs.nano.networks import NanoEncoder
from vita_mctp.nano.codec_data import BatchMaker, Item
from vita_mctp.types import IntArray

SPOKEN_PARTS = ("answers", "sentences", "eval_sentences")
"""Parts of the corpus whose codes the language model is to produce."""

CODES_FILE, INDEX_FILE = "codes.npy", "index.npy"


def tokenize_corpus(maker: BatchMaker, encoder: NanoEncoder, folder: Path, augmented: int, seed: int) -> None:
    """Write codes of every item of `maker`: variant 0, and `augmented` more of what is trained on as heard."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, int, int]] = []
    pieces: list[IntArray] = []

    def keep(items: list[Item], variant: int, rng: np.random.Generator | None) -> None:
        for group in maker.groups(sorted(items, key=lambda item: item.num_frames)):
            batch = maker.batch(group, rng)
            codes = encode_batch(encoder, batch.inputs)
            for item, row, frames in zip(group, codes, batch.num_frames.tolist(), strict=True):
                piece = row[: frames // maker.config.frames_per_code]
                rows.append((item.utterance, variant, len(piece)))
                pieces.append(piece)

    parts = {index: part for part in maker.corpus.parts for index in maker.corpus.indices(part)}
    spoken = {item.utterance for item in maker.items if item.grid and parts[item.utterance] in SPOKEN_PARTS}
    keep([item for item in maker.items if item.grid == (item.utterance in spoken)], 0, None)
    heard = [item for item in maker.items if not item.grid and not parts[item.utterance].startswith("eval_")]
    for variant in range(1, augmented + 1):
        keep(heard, variant, np.random.default_rng((seed, variant)))
    lengths = np.array([length for _, _, length in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    index = np.array([(row[0], row[1], start, row[2]) for row, start in zip(rows, starts, strict=True)], np.int64)
    np.save(folder / CODES_FILE, np.concatenate(pieces).astype(np.int16))
    np.save(folder / INDEX_FILE, index[np.lexsort((index[:, 1], index[:, 0]))])


@torch.inference_mode()
def encode_batch(encoder: NanoEncoder, frames: torch.Tensor) -> IntArray:
    """(B, F, M) -> codes (B, N)."""
    codes: IntArray = encoder(frames)[1].numpy()
    return codes
