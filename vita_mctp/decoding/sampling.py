"""Choosing a token from logits: greedy, or temperature, top-k and top-p, after a repetition penalty.

Same rules in the same order as transformers' `generate`. Each request draws from its own generator, one uniform number
per token, so that its draws do not depend on the batch or the device it runs on. V: vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vita_mctp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request chooses. Temperature 0 is greedy; top_k 0 and top_p 1 are off; penalty 1 is off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _want(self.temperature >= 0 and math.isfinite(self.temperature), "temperature", ">= 0", self.temperature)
        _want(self.top_k >= 0, "top_k", ">= 0 (0 is off)", self.top_k)
        _want(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        penalty = self.repetition_penalty
        _want(penalty > 0 and math.isfinite(penalty), "repetition_penalty", "> 0", penalty)
        _want(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)


def _want(ok: bool, name: str, wanted: str, came: float) -> None:
    if not ok:
        raise ConfigError(f"{name} {came} given; wanted {name} {wanted}")


class Sampler:
    """One request's choices: its random stream and the tokens that its repetition penalty remembers."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int, device: torch.device
    ) -> None:
        self.params = params
        self.is_argmax = params.temperature == 0 and params.repetition_penalty == 1
        self._generator = torch.Generator().manual_seed(params.seed) if params.temperature > 0 else None
        self._seen: Tensor | None = None  # (V,) bool: prompt and generated tokens
        if params.repetition_penalty != 1:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[list(prompt_ids)] = True

    def choose(self, logits: Tensor) -> int:
        """The next token from logits (V,); it is remembered for the penalty."""
        scores = logits.float() if logits.element_size() < 4 else logits
        if self._seen is not None:
            scores = penalize(scores, self._seen, self.params.repetition_penalty)
        if self._generator is None:
            token = int(scores.argmax())
        else:
            uniform = torch.rand((), generator=self._generator, dtype=torch.float64).item()
            token = draw(*candidates(scores, self.params), uniform)
        if self._seen is not None:
            self._seen[token] = True
        return token


def choose_each(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Next tokens from logits (B, V), row by row; a batch of plain greedy requests costs one argmax."""
    if all(sampler.is_argmax for sampler in samplers):
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [sampler.choose(row) for sampler, row in zip(samplers, logits, strict=True)]


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores (V,) with those of seen (V,) tokens divided by the penalty if positive, multiplied if negative (CTRL)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def candidates(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The ids (C,) that temperature, top-k and top-p leave of scores (V,), and their scores (C,); at least one."""
    scores = scores / params.temperature
    ids = torch.arange(len(scores), device=scores.device)
    if 0 < params.top_k < len(scores):
        threshold = scores.topk(params.top_k).values[-1]
        ids = ids[scores >= threshold]
        scores = scores[ids]
    if params.top_p < 1:
        ascending, order = scores.sort()
        keep = ascending.softmax(-1).cumsum(-1) > 1 - params.top_p
        keep[-1] = True
        ids, scores = ids[order[keep]], ascending[keep]
    return ids, scores


def draw(ids: Tensor, scores: Tensor, uniform: float) -> int:
    """The candidate at `uniform` in [0, 1) of the cumulative distribution softmax(scores); ids and scores (C,)."""
    cumulative = scores.double().softmax(-1).cumsum(-1)
    place = torch.searchsorted(cumulative, cumulative[-1] * uniform, right=True)
    return int(ids[place.clamp(max=len(ids) - 1)])
