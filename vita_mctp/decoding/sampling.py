"""Choosing a token from logits: greedy, or temperature, top-k and top-p, after a repetition penalty.

Same rules in the same order as transformers' `generate`. A request's n-th token takes the n-th number of the request's
own random stream, so that a draw depends neither on the batch nor on what was drafted and dropped before it. V:
vocabulary size. Logits are numpy arrays: whatever computed them, choosing is the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vita_mctp.errors import ConfigError
from vita_mctp.types import IntArray

Scores = npt.NDArray[np.floating]
"""float32 or float64."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request chooses. Temperature 0 is greedy; top_k 0 and top_p 1 are off; penalty 1 is off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    top_p_excludes: bool = False
    """Leaves out the token that crosses top_p, unless it is the first: VocalNet's rule, not transformers'."""

    def __post_init__(self) -> None:
        _want(self.temperature >= 0 and math.isfinite(self.temperature), "temperature", ">= 0", self.temperature)
        _want(isinstance(self.top_k, int) and self.top_k >= 0, "top_k", "an integer >= 0 (0 is off)", self.top_k)
        _want(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        penalty = self.repetition_penalty
        _want(penalty > 0 and math.isfinite(penalty), "repetition_penalty", "> 0", penalty)
        _want(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)

    @property
    def is_argmax(self) -> bool:
        """Whether the choice is the largest logit and nothing else."""
        return self.temperature == 0 and self.repetition_penalty == 1


def _want(ok: bool, name: str, bound: str, came: float) -> None:
    if not ok:
        raise ConfigError(f"{name} {came} given; wanted {name} {bound}")


class UniformStream:
    """Numbers in [0, 1) by index: those of `torch.rand(dtype=float64)` on a CPU generator of this seed, one by one."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.RandomState(seed & 0xFFFFFFFF)
        self._numbers: list[float] = []

    def __getitem__(self, index: int) -> float:
        while index >= len(self._numbers):
            high, low = self._words.randint(0, 1 << 32, size=2, dtype=np.uint32).tolist()
            self._numbers.append(((high << 32 | low) & (1 << 53) - 1) * 2.0**-53)
        return self._numbers[index]


class Sampler:
    """One request's choices. Nothing in it depends on what was chosen before but through the ids it is given."""

    def __init__(self, params: SamplingParams, prompt_length: int) -> None:
        self.params = params
        self._prompt_length = prompt_length
        self._uniforms = UniformStream(params.seed) if params.temperature > 0 else None

    def choose(self, logits: Scores, ids: Sequence[int]) -> int:
        """The token behind `ids` (prompt and answer so far), from logits (V,)."""
        scores, params = logits, self.params
        if params.repetition_penalty != 1:
            scores = penalize(scores, ids, params.repetition_penalty)
        if self._uniforms is None:
            return int(scores.argmax())
        return draw(*candidates(scores, params), self._uniforms[len(ids) - self._prompt_length])


def penalize(scores: Scores, ids: Sequence[int], penalty: float) -> Scores:
    """Scores (V,) with those of `ids` divided by the penalty if positive, multiplied if negative (CTRL)."""
    seen = np.unique(np.asarray(ids, np.int64))
    penalized = scores.copy()
    penalized[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return penalized


def candidates(scores: Scores, params: SamplingParams) -> tuple[IntArray, Scores]:
    """The ids (C,) that temperature, top-k and top-p leave of scores (V,), and their scores (C,); at least one."""
    scores = scores / params.temperature
    ids = np.arange(len(scores))
    if 0 < params.top_k < len(scores):
        threshold = np.partition(scores, -params.top_k)[-params.top_k]
        ids = ids[scores >= threshold]
        scores = scores[ids]
    if params.top_p < 1:
        order = scores.argsort(kind="stable")
        if params.top_p_excludes:
            keep = softmax(scores[order])[::-1].cumsum()[::-1] <= params.top_p
        else:
            keep = softmax(scores[order]).cumsum() > 1 - params.top_p
        keep[-1] = True
        ids, scores = ids[order[keep]], scores[order[keep]]
    return ids, scores


def draw(ids: IntArray, scores: Scores, uniform: float) -> int:
    """The candidate at `uniform` in [0, 1) of the cumulative distribution softmax(scores); ids and scores (C,)."""
    cumulative = softmax(scores.astype(np.float64)).cumsum()
    index = np.searchsorted(cumulative, cumulative[-1] * uniform, side="right")
    return int(ids[min(index, len(ids) - 1)])


def is_typical(scores: Scores, token: int, threshold: float) -> bool:
    """Whether a draft may stand for what scores (V,) would choose: typical acceptance (Cai et al. 2024, Medusa).

    Its probability is at least the threshold, or, where scores are undecided, the threshold's root times exp(-entropy).
    """
    probabilities = softmax(scores.astype(np.float64))
    entropy = -(probabilities * np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))).sum()
    return bool(probabilities[token] >= min(threshold, threshold**0.5 * np.exp(-entropy)))


def softmax(scores: Scores) -> Scores:
    """Probabilities (C,) of scores (C,), in their type."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
