"""VocalNet: a thinker that hears through Whisper and writes, and a talker that speaks its hidden states.

The thinker is a transformers language model; an adaptor turns each five frames of the audio encoder into one of its
rows. It decodes as any model without blocks; the talker (`talkers.py`) has a loop of its own. Parameter names are the
released ones.

B rows or recordings, T positions, F mel frames, H width of the thinker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlamaModel,
    LlamaPreTrainedModel,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen3Model,
    Qwen3PreTrainedModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from vita_mctp.errors import ConfigError
from vita_mctp.models.attention import attention_inputs
from vita_mctp.models.strict import StrictLoading, cache_argument
from vita_mctp.models.vocalnet.configuration import VocalNetLlamaConfig, VocalNetQwen2Config, VocalNetQwen3Config
from vita_mctp.models.vocalnet.talkers import make_talker
from vita_mctp.types import AudioFeatures, HeardAudio

ADAPTOR_WIDTH = 2048
"""Between its two layers, whatever the models' widths are."""


class Adaptor(nn.Module):
    """Encoder rows (B, N, C) -> (B, N // rate, H); rows at the end that make no whole group are dropped."""

    def __init__(self, rate: int, encoder_width: int, width: int) -> None:
        super().__init__()
        self.rate = rate
        self.linear1 = nn.Linear(rate * encoder_width, ADAPTOR_WIDTH)
        self.linear2 = nn.Linear(ADAPTOR_WIDTH, width)

    def forward(self, rows: Tensor) -> Tensor:
        groups = rows.shape[1] // self.rate
        joined = rows[:, : groups * self.rate].reshape(len(rows), groups, -1)
        return self.linear2(F.relu(self.linear1(joined)))


def _add_encoder(model: Any, config: Any) -> None:
    speech = config.speech
    if speech.encoder_sizes is None:
        raise ConfigError("the configuration has no encoder_sizes; read it with the family's read_config")
    model.speech_encoder = WhisperEncoder(speech.encoder_sizes.whisper())
    model.speech_projector = Adaptor(speech.speech_encoder_ds_rate, speech.encoder_sizes.d_model, config.hidden_size)
    model.post_init()


class VocalNetModel(StrictLoading):
    """What all thinkers add to their own base class. Keeps no state but its weights."""

    backbone_class: ClassVar[type[Any]]
    talker_of: ClassVar[Any] = staticmethod(make_talker)
    """Its sizes to a talker."""
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers' own convention)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.backbone_class(config)
        _add_encoder(self.model, config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.speech_generator = self.talker_of(config.speech.talker)
        self.post_init()

    @property
    def talker(self) -> Any:
        """The talker's network, `talkers.py`'s for VocalNet."""
        return self.speech_generator

    def embed(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.model.embed_tokens(ids))

    def encode(self, features: AudioFeatures) -> Tensor:
        """A recording's frames (F, bands) -> (positions, H). Raises ConfigError for frames of another size."""
        sizes, weight = self.model.speech_encoder.config, self.lm_head.weight
        frames, longest = torch.from_numpy(features.frames).to(weight), 2 * sizes.max_source_positions
        if frames.shape[1] != sizes.num_mel_bins:
            raise ConfigError(f"the audio encoder wants {sizes.num_mel_bins} bands, got {frames.shape[1]}")
        padded = F.pad(frames[:longest], (0, 0, 0, max(0, longest - len(frames))), value=silence(features))
        rows = self.model.speech_encoder(padded.T[None]).last_hidden_state
        return cast(Tensor, self.model.speech_projector(rows)[0, : features.positions])

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        """embeds (B, T, H) with each row's recordings at their positions. Raises ConfigError as `encode`."""
        if not any(heard):
            return embeds
        spliced = embeds.clone()
        for row, audios in enumerate(heard):
            for audio in audios:
                spliced[row, audio.start : audio.end] = self.encode(audio.features).to(spliced)
        return spliced

    def backbone(
        self, embeds: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """(B, T, H) -> hidden states (B, T, H) after the final norm, which the talker speaks."""
        first, kernel = self.model.layers[0], self.config._attn_implementation
        cached = int(cache.get_seq_length(0)) if cache is not None and attention_mask is None else 0
        attention = attention_inputs(kernel, position_ids, embeds.dtype, attention_mask, cached)
        rotary, name = self.model.rotary_emb(embeds, position_ids), cache_argument(type(first))
        for layer in self.model.layers:
            embeds = layer(embeds, position_embeddings=rotary, **{name: cache}, **attention)
        return cast(Tensor, self.model.norm(embeds))

    def block(self, *_: Any, **__: Any) -> Tensor:
        raise ConfigError("a VocalNet thinker has no blocks; its talker makes several tokens a step")

    def logits(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.lm_head(hidden))


def silence(features: AudioFeatures) -> float:
    """What Whisper's log-mel of silence behind a recording is: its clamp lies two under the loudest of all."""
    return max(-1.5, float(features.frames.max()) - 2.0)


class VocalNetLlama(VocalNetModel, LlamaPreTrainedModel):
    config_class, backbone_class = VocalNetLlamaConfig, LlamaModel


class VocalNetQwen2(VocalNetModel, Qwen2PreTrainedModel):
    config_class, backbone_class = VocalNetQwen2Config, Qwen2Model


class VocalNetQwen3(VocalNetModel, Qwen3PreTrainedModel):
    config_class, backbone_class = VocalNetQwen3Config, Qwen3Model
