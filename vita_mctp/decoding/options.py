"""What a checkpoint does when the user does not say: its generation_config.json, and above it its speech.json; and what
a caller may say of one answer, in the words of transformers' `generate`, where what means nothing here is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

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


class GenerationOptions(TypedDict, total=False):
    """None, or left out: the checkpoint's own for the task. temperature 0 is greedy, as is do_sample False.

    seed: of all that is drawn; 0 where it is left out. do_sample True: at temperature 1 where nothing else is said.
    """

    seed: int
    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None


_KNOWN = tuple(GenerationOptions.__annotations__)
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
_ONE = "an answer is one sequence, sampled or greedy"
_FILES = "generation_config.json and speech.json say it, for every answer"
_ELSEWHERE = {
    "num_beams": _ONE,
    "num_beam_groups": _ONE,
    "penalty_alpha": _ONE,
    "num_return_sequences": f"{_ONE}; ask again with another seed",
    "max_length": "give max_new_tokens, which does not count the prompt",
    "max_time": "set a Cancel from a timer, and give it to stream",
    "streamer": "take stream, which gives text and sound as they form",
    "assistant_model": 'the blocks draft: take mode="verified"',
    "prompt_lookup_num_tokens": 'the blocks draft: take mode="verified"',
    "generation_config": _FILES,
    "eos_token_id": _FILES,
    "pad_token_id": "nothing is padded",
    "attention_mask": "nothing is padded",
    "use_cache": "a cache is always used",
}
"""Options of transformers' `generate`, and what to do instead."""


def sampling_of(own: SamplingParams, options: Mapping[str, Any]) -> SamplingParams:
    """own: the checkpoint's for the task. Raises ConfigError for an option that is unknown, wrong or contradicted."""
    for name in options:
        if name not in _KNOWN:
            instead = _ELSEWHERE.get(name, f"wanted one of {', '.join(_KNOWN)}")
            raise ConfigError(f"the option {name} means nothing here: {instead}; leave it out")
    given = {name: value for name, value in options.items() if value is not None}
    chosen = {name: given[name] for name in (*_SAMPLING, "seed") if name in given}
    samples = given.get("do_sample")
    if samples is not None and bool(samples) != bool(chosen.get("temperature", samples)):
        raise ConfigError(f"do_sample {samples} and temperature {chosen['temperature']} contradict; leave one out")
    if samples is False:
        chosen["temperature"] = 0.0
    elif samples and own.temperature == 0:
        chosen = SAMPLED | chosen
    try:
        return replace(own, **chosen)
    except TypeError:
        raise ConfigError(f"{chosen} given; wanted a number for each") from None
