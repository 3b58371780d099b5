"""The model's configuration, in the released checkpoints' own terms."""

from __future__ import annotations

import re
from typing import Any

from transformers import Qwen2Config

from vita_mctp.errors import ConfigError

_DECODER_LAYER = re.compile(r"(?:^|\.)model\.layers\.(\d+)\.")
_AUDIO_ENCODER = re.compile(r"(?:^|\.)model\.audio_model\.")
_MCTP_MODULE = re.compile(r"(?:^|\.)mtp_(?:projs|embed_norms|hidden_norms)\.")


class VitaMctpConfig(Qwen2Config):
    """A Qwen2 configuration with K MCTP blocks behind the L backbone layers.

    As released, `num_hidden_layers` counts both: it is L + K, and MCTP block k is decoder layer L + k.

    Args:
        num_nextn_predict_layers: K >= 0, the number of MCTP blocks.
        mtp_loss_weight: weight of the mean of the K block losses beside the language-model loss.
        speech_token_offset: id of the first audio token; written by the released configs, the model does not use it.

    Raises:
        ConfigError: K does not leave at least one backbone layer, or sliding-window attention is asked for.
    """

    model_type = "qwen2_mtp"

    num_nextn_predict_layers: int = 1
    mtp_loss_weight: float | int = 1.0
    speech_token_offset: int | None = 151685

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # points released checkpoints at Python files that are not ours
        super().__post_init__(**kwargs)
        if not 0 <= self.num_nextn_predict_layers < self.num_hidden_layers:
            raise ConfigError(
                f"num_nextn_predict_layers is {self.num_nextn_predict_layers}, but num_hidden_layers "
                f"({self.num_hidden_layers}) counts the MCTP blocks too and must leave a backbone layer"
            )
        if self.use_sliding_window:
            raise ConfigError(
                "use_sliding_window is true, but MCTP blocks attend to the whole sequence: set it to false"
            )

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with `rope_theta` also where the released configs have it, for their own readers."""
        values: dict[str, Any] = super().to_dict()
        if self.rope_parameters is not None:
            values["rope_theta"] = self.rope_parameters["rope_theta"]
        return values

    @property
    def num_backbone_layers(self) -> int:
        """L, the number of decoder layers in front of the MCTP blocks."""
        return self.num_hidden_layers - self.num_nextn_predict_layers


def is_mctp_parameter(config: VitaMctpConfig, name: str) -> bool:
    """Whether the parameter `name` (as `named_parameters` gives it, wrappers' prefixes allowed) is an MCTP block's."""
    layer = _DECODER_LAYER.search(name)
    if layer is not None:
        return int(layer.group(1)) >= config.num_backbone_layers
    return _MCTP_MODULE.search(name) is not None


def is_audio_encoder_parameter(name: str) -> bool:
    """Whether the parameter `name` belongs to the audio encoder of VITA-Audio-Plus, which no stage trains."""
    return _AUDIO_ENCODER.search(name) is not None
