"""A new model from a language model, a Whisper encoder, and an adaptor and a talker that are yet to learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_mctp.errors import CheckpointError
from vita_mctp.models.vocalnet.configuration import ENCODER_PREFIX
from vita_mctp.models.vocalnet.modeling import Adaptor, VocalNetModel

_NOT_TAKEN = ("model_type", "architectures", "transformers_version")


def join_thinker(
    kind: type[VocalNetModel],
    backbone: Any,
    encoder: Mapping[str, Tensor],
    source: Path,
    seed: int,
    values: Mapping[str, Any],
) -> VocalNetModel:
    """In the language model's type; what is new is drawn from `seed` as transformers draws layers.

    values: of the config beside the language model's. source: the folder that the encoder comes from, for errors.
    Raises CheckpointError for tensors that are no encoder of the sizes in `values`.
    """
    own = {name: value for name, value in backbone.config.to_dict().items() if name not in _NOT_TAKEN}
    config, dtype = kind.config_class(**own | dict(values)), backbone.dtype
    with torch.device("meta"):
        model: Any = kind(config)
    needed = model.model.speech_encoder.state_dict()
    for name, tensor in needed.items():
        if name not in encoder or encoder[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source} lacks {name} of shape {tuple(tensor.shape)}; wanted the Whisper encoder that its "
                "config.json describes: get it again"
            )
    weights = backbone.state_dict() | {ENCODER_PREFIX + name: encoder[name].to(dtype) for name in needed}
    model.load_state_dict(weights, strict=False, assign=True)
    speech = config.speech
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adaptor = Adaptor(speech.speech_encoder_ds_rate, speech.encoder_sizes.d_model, config.hidden_size)
        for part in (adaptor, talker := kind.talker_of(speech.talker)):
            part.apply(model._init_weights).to(dtype)
    model.model.speech_projector, model.speech_generator = adaptor, talker
    model.tie_weights()
    model.generation_config = backbone.generation_config
    return model
