"""What a checkpoint does when the user does not say: its generation_config.json, and above it its speech.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vita_mctp.decoding.modes import MODES, Mode, parse_mode
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.types import Task

SAMPLED = {"temperature": 1.0, "top_k": 50}
"""What transformers' `generate` takes for a file that asks for sampling and says no more."""


@dataclass(frozen=True)
class GenerationDefaults:
    """spoken_mode: of the tasks that speak. eos_ids: any of them ends an answer."""

    spoken_mode: Mode
    eos_ids: frozenset[int]
    sampling: Mapping[Task, SamplingParams]

    @classmethod
    def of(
        cls,
        stated: Mapping[str, Any],
        sampling: Mapping[Task, Mapping[str, Any]],
        eos_ids: Iterable[int],
        num_blocks: int,
    ) -> GenerationDefaults:
        """stated: generation_config.json; sampling: what speech.json says by task; eos_ids: the vocabulary's own.

        Raises CheckpointError for a value of either file that makes no sense.
        """
        return cls(
            _mode(stated.get("mtp_inference_mode"), num_blocks),
            frozenset({*eos_ids, *_ids(stated.get("eos_token_id"))}),
            {task: _sampling(stated, sampling.get(task, {}), task) for task in Task},
        )

    def mode(self, task: Task) -> Mode:
        """The checkpoint's own mode; for text alone the backbone by itself, since the blocks are there for speech."""
        return self.spoken_mode if task.speaks else MODES["vanilla"]


def _mode(counts: Any, num_blocks: int) -> Mode:
    try:
        return parse_mode(counts, num_blocks)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"generation_config.json, mtp_inference_mode {counts!r}: {error}; mend it") from None


def _ids(stated: Any) -> list[int]:
    ids = [stated] if isinstance(stated, int) else list(stated or ())
    if not all(isinstance(token, int) for token in ids):
        raise CheckpointError(f"generation_config.json, eos_token_id {stated!r}: an id or a list of ids is wanted")
    return ids


def _sampling(stated: Mapping[str, Any], own: Mapping[str, Any], task: Task) -> SamplingParams:
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    values = {name: stated[name] for name in names if stated.get(name) is not None}
    values = SAMPLED | values if stated.get("do_sample") else values | {"temperature": 0.0}
    try:
        return SamplingParams(**(values | dict(own)))
    except (TypeError, ConfigError) as error:
        raise CheckpointError(
            f"generation_config.json and speech.json, sampling of {task.value}: {error}; mend it"
        ) from None
