"""The models' configurations, in the released checkpoints' own terms."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config

from vita_mctp.errors import ConfigError
from vita_mctp.models.vita.values import MODEL_TYPE, PLUS_MODEL_TYPE, SenseVoiceSizes


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

    model_type = MODEL_TYPE

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
            raise ConfigError("use_sliding_window is true; MCTP blocks attend to the whole sequence: set it to false")

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


class VitaMctpPlusConfig(VitaMctpConfig):
    """A VITA-Audio configuration and the sizes of its audio encoder.

    Args:
        audio_config: values of `SenseVoiceSizes`; those left out are SenseVoiceSmall's. Released configs have none.
        audio_feature_dtype: what features are rounded to before the encoder: bfloat16, as the released models were
            trained, or float32, which is not to round.
    """

    model_type = PLUS_MODEL_TYPE

    speech_token_offset: int | None = None
    audio_config: dict[str, Any] | None = None
    audio_feature_dtype: str = "bfloat16"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.audio_config = self.audio_sizes.model_dump()
        if self.audio_feature_dtype not in ("bfloat16", "float32"):
            raise ConfigError(f"audio_feature_dtype is {self.audio_feature_dtype!r}; wanted bfloat16 or float32")

    @property
    def audio_sizes(self) -> SenseVoiceSizes:
        """Raises ConfigError for an unknown name or a size out of bounds."""
        return SenseVoiceSizes.parse(self.audio_config or {}, "audio_config")
