"""The language model of an opened folder as the front door takes it, and whether what stands beside goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vita_mctp.arrays import Shapes, check_finite
from vita_mctp.checkpoints.opening import AudioFrontend, OpenedModel
from vita_mctp.codecs.base import AudioDecoder, AudioFeatureExtractor, AudioTokenizer
from vita_mctp.decoding.runners import Runner, graph_runner, runner_for
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import FrameSpeaking, Speaking, SpeechModel, family_of
from vita_mctp.text.tokenizer import TextTokenizer
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


def check_frontend(model_type: str, tokenizer: TextTokenizer, audio_frontend: AudioFrontend) -> None:
    """Raises CheckpointError for parts of which some hear codes and some features."""
    kind, family = tokenizer.vocabulary.input_kind, family_of(model_type)
    if kind is not family.input_kind or isinstance(audio_frontend, AudioFeatureExtractor) != family.hears_features:
        raise CheckpointError(
            f"a {model_type} model, a tokenizer of kind {kind.value} and the audio front end "
            f"{audio_frontend.name} do not go together; wanted: all for features, or all for codes"
        )


def check_size(embedded: int, tokenizer: TextTokenizer) -> None:
    """Raises CheckpointError for a tokenizer of more ids than are embedded."""
    if tokenizer.vocabulary.size > embedded:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocabulary.size} ids, the model embeds {embedded}; "
            "give the tokenizer that the model was trained with"
        )


def check_codebooks(
    speaking: Speaking | FrameSpeaking | None, audio_frontend: AudioFrontend, audio_decoder: AudioDecoder
) -> None:
    """A model that writes codes hears the same ones; a talker's are its own. Raises CheckpointError."""
    if speaking is None:
        heard = audio_frontend.codebook_size if isinstance(audio_frontend, AudioTokenizer) else None
        if heard not in (None, audio_decoder.codebook_size):
            raise CheckpointError(
                f"the audio tokenizer {audio_frontend.name} has {heard} codes and the audio decoder "
                f"{audio_decoder.name} has {audio_decoder.codebook_size}; give two that share a codebook"
            )
        return
    says, has = speaking.codebooks, (audio_decoder.num_codebooks, audio_decoder.codebook_size)
    if says != has:
        raise CheckpointError(
            f"the talker says {says[0]} x {says[1]} codes and the audio decoder {audio_decoder.name} has {has[0]} x "
            f"{has[1]}; give the decoder that the model was trained with"
        )
