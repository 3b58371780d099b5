"""What a caller may say of one answer, in the words of transformers' `generate`; what means nothing here is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

from vita_mctp.decoding.defaults import SAMPLED
from vita_mctp.decoding.sampling import SamplingParams
from vita_mctp.errors import ConfigError


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
