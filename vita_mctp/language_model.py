"""The language model of an opened folder as the front door takes it: a runner, and what its files say of decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vita_mctp.arrays import Shapes, check_finite
from vita_mctp.checkpoints.opening import OpenedModel
from vita_mctp.decoding.runners import Runner, graph_runner, runner_for
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import SpeechModel
from vita_mctp.types import FloatArray


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """model_type: of its family. generation: the values of generation_config.json. model: None where torch is not."""

    runner: Runner
    model_type: str
    generation: Mapping[str, Any]
    dtype: str = "float32"
    device: str = "cpu"
    model: SpeechModel | None = None

    @classmethod
    def of(cls, model: SpeechModel) -> LanguageModel:
        """Of a model in memory."""
        generation, dtype = model.generation_config.to_dict(), str(model.dtype).removeprefix("torch.")
        return cls(runner_for(model), model.config.model_type, generation, dtype, str(model.device), model)


def load_graphs(
    opened: OpenedModel, *, device: str, dtype: str | None, attn: str, quantize: str | None
) -> LanguageModel | None:
    """Made of config.json and safetensors alone, without torch; None where torch's loader is wanted.

    It is for what the graphs do not compute, and for a folder that does not fit: it says what is wrong with it.
    Raises CheckpointError for weights that are not finite.
    """
    if (device, attn, quantize) != ("cpu", "sdpa", None):
        return None
    weights: dict[str, FloatArray] = {}

    def read(needed: Shapes) -> dict[str, FloatArray]:
        weights.update(opened.read_weights(needed))
        return weights

    try:
        values = opened.graph_values
        if (dtype or values.get("dtype") or values.get("torch_dtype") or "float32") != "float32":
            return None
        found = LanguageModel(graph_runner(values, read), values["model_type"], opened.generation)
    except (ConfigError, CheckpointError):
        return None
    check_finite(weights, opened.folder, "download it again")
    return found
