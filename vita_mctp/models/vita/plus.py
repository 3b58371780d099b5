"""VITA-Audio-Plus: the language model with ears. It hears features and still speaks audio codes.

An encoder and a projector turn a recording's T frames into T + 4 rows, which overwrite the embeddings of as many
placeholder ids on their way into the backbone. MCTP blocks see the placeholders' own embeddings, in training as in
decoding: sound reaches them through the backbone's hidden states alone.

Legend: B rows, T positions (of a row) or frames (of a recording), D features of a frame, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Model

from vita_mctp.errors import ConfigError
from vita_mctp.models.vita.configuration import VitaMctpConfig
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM
from vita_mctp.models.vita.sensevoice import AudioProjection, SenseVoice, SenseVoiceSizes
from vita_mctp.types import AudioFeatures, HeardAudio

ENCODER_PREFIX = "model.audio_model.model."
"""Of the encoder's tensors in a checkpoint."""

FEATURE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class VitaMctpPlusConfig(VitaMctpConfig):
    """A VITA-Audio configuration and the sizes of its audio encoder.

    Args:
        audio_config: values of `SenseVoiceSizes`; those left out are SenseVoiceSmall's. Released configs have none.
        audio_feature_dtype: what features are rounded to before the encoder: bfloat16, as the released models were
            trained, or float32, which is not to round.

    Raises:
        ConfigError: an unknown size or dtype.
    """

    model_type = "qwen2_mtp_sensevoice"

    speech_token_offset: int | None = None
    audio_config: dict[str, Any] | None = None
    audio_feature_dtype: str = "bfloat16"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.audio_config = asdict(SenseVoiceSizes.from_values(self.audio_config or {}))
        if self.audio_feature_dtype not in FEATURE_DTYPES:
            raise ConfigError(
                f"audio_feature_dtype is {self.audio_feature_dtype!r}; wanted one of {', '.join(FEATURE_DTYPES)}"
            )

    @property
    def audio_sizes(self) -> SenseVoiceSizes:
        return SenseVoiceSizes.from_values(self.audio_config or {})


class _HearingBackbone(Qwen2Model):
    def __init__(self, config: VitaMctpPlusConfig) -> None:
        super().__init__(config)
        sizes = config.audio_sizes
        self.audio_model = nn.ModuleDict({"model": SenseVoice(sizes)})
        self.audio_projection = AudioProjection(sizes.output_size, config.hidden_size)
        self.post_init()


class VitaMctpPlusForCausalLM(VitaMctpForCausalLM):
    """`VitaMctpForCausalLM` whose backbone also hears recordings, with the released checkpoints' parameter names."""

    config: VitaMctpPlusConfig
    config_class = VitaMctpPlusConfig
    backbone_class = _HearingBackbone
    default_detach = "always"

    def encode(self, recordings: Sequence[AudioFeatures]) -> list[Tensor]:
        """For each recording of T frames its rows (T + 4, H), whatever it is encoded together with.

        Raises:
            ConfigError: frames of another size than the encoder's.
        """
        wanted, weight = self.config.audio_sizes.input_size, self.lm_head.weight
        for recording in recordings:
            if recording.frames.shape[1] != wanted:
                raise ConfigError(
                    f"the audio encoder wants frames of {wanted} numbers, got {recording.frames.shape[1]}"
                )
        dtype = FEATURE_DTYPES[self.config.audio_feature_dtype]
        frames = [torch.tensor(recording.frames, device=weight.device, dtype=dtype) for recording in recordings]
        encoded = self.model.audio_model["model"](pad_sequence(frames, batch_first=True), [len(f) for f in frames])
        rows = self.model.audio_projection(encoded)
        return [row[: recording.rows] for row, recording in zip(rows, recordings, strict=True)]

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        """embeds (B, T, H) with the rows of each row's recordings in their places.

        Raises:
            ValueError: a recording that reaches over the end of its row.
            ConfigError: as `encode`.
        """
        recordings = [(row, audio) for row, audios in enumerate(heard) for audio in audios]
        if not recordings:
            return embeds + self._silence() if torch.is_grad_enabled() and self._learns_to_hear() else embeds
        if max(audio.end for _, audio in recordings) > embeds.shape[1]:
            raise ValueError(f"a recording ends behind the last of {embeds.shape[1]} positions")
        spliced = embeds.clone()
        encoded = self.encode([audio.features for _, audio in recordings])
        for (row, audio), rows in zip(recordings, encoded, strict=True):
            spliced[row, audio.start : audio.end] = rows.to(spliced.dtype)
        return spliced

    def _learns_to_hear(self) -> bool:
        ears = (self.model.audio_model, self.model.audio_projection)
        return any(weight.requires_grad for ear in ears for weight in ear.parameters())

    def _silence(self) -> Tensor:
        """A zero that every parameter of the ears is part of: distributed training waits for each one's gradient."""
        frame = np.ones((1, self.config.audio_sizes.input_size), np.float32)
        return self.encode([AudioFeatures(frame)])[0].sum() * 0.0
