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

from vita_mctp.errors import ConfigError, DataError
from vita_mctp.models.attention import attention_inputs
from vita_mctp.models.losses import LevelLosses, SharedHead
from vita_mctp.models.strict import StrictLoading, cache_argument
from vita_mctp.models.vocalnet.configuration import VocalNetLlamaConfig, VocalNetQwen2Config, VocalNetQwen3Config
from vita_mctp.models.vocalnet.talkers import make_talker
from vita_mctp.text.chat import IGNORED, SpokenAnswer
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
    accepts_loss_kwargs = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.backbone_class(config)
        _add_encoder(self.model, config)
        self.lm_head = SharedHead(config.hidden_size, config.vocab_size)
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
        with torch.no_grad():  # no stage trains it
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

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        num_items_in_batch: Tensor | None = None,
        *,
        heard: Sequence[Sequence[HeardAudio]] = (),
        spoken: Sequence[Sequence[SpokenAnswer]] = (),
        count_correct: bool = False,
    ) -> LevelLosses:
        """Losses on rows of packed samples: of the thinker's answers, and of the talker's levels where it is trained.

        What is trained decides: a loss that nothing trainable stands behind has no part in the sum, and a frozen
        thinker keeps nothing for a backward pass.

        Args:
            input_ids, labels, position_ids: (B, T), positions restarting with each sample; labels are not shifted.
            num_items_in_batch: denominators, as `count_targets` counts them; None: those of this batch.
            heard, spoken: the recordings and the spoken answers in each row.
            count_correct: also count right predictions of the thinker, where it alone is trained.

        Raises:
            DataError: the talker is trained, and no answer is spoken.
        """
        thinks, speaks = trains(self.model) or trains(self.lm_head), trains(self.talker)
        answers = [(row, each) for row, several in enumerate(spoken) for each in several]
        if speaks and not answers:
            raise DataError("no answer of a row is spoken; wanted recordings or units of answers, to train the talker")
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        items = (self.count_targets(labels, spoken) if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        output = LevelLosses(lm_loss=torch.zeros((), device=labels.device), mtp_losses=())
        hidden = None
        if thinks or not all(each.alone for _, each in answers):
            with torch.set_grad_enabled(thinks and torch.is_grad_enabled()):
                embeds = self.listen(self.embed(input_ids), heard)
                if thinks and not any(heard):  # distributed training waits for a gradient of each weight
                    embeds = embeds + 0.0 * self.model.speech_projector(self._no_rows(embeds)).sum()
                hidden = self.backbone(embeds, position_ids)
                found = self.lm_head.losses([hidden], [targets], 1 / items[:1], count_correct=count_correct)
            output.lm_loss = found.totals[0] / items[0]
            output.loss = found.loss if thinks else None
            output.num_correct = None if speaks else found.num_correct
        if speaks:
            losses = self.talker.totals(self.spoken_batch(hidden, input_ids, answers)) / items[1:]
            output.mtp_losses = tuple(losses.detach())
            spoken_loss = self.talker.loss(losses)
            output.loss = spoken_loss if output.loss is None else output.loss + spoken_loss
        output.num_targets = self.count_targets(labels, spoken)
        return output

    def count_targets(self, labels: Tensor, spoken: Sequence[Sequence[SpokenAnswer]] = (), **_: Any) -> Tensor:
        """(1,) labels; where the talker is trained (1 + K + 1,), behind them each of its levels' targets."""
        text = (labels != IGNORED).sum()[None]
        if not trains(self.talker):
            return text
        lengths = [len(each.codes) // self.config.speech.codes[1] for several in spoken for each in several]
        levels = torch.arange(self.talker.sizes.mtp_levels + 1, device=labels.device)
        ends = torch.tensor(lengths, device=labels.device, dtype=torch.long)[:, None] + 1
        return torch.cat([text, (ends - levels).clamp(min=0).sum(0)])

    def spoken_batch(
        self, hidden: Tensor | None, input_ids: Tensor, answers: Sequence[tuple[int, SpokenAnswer]]
    ) -> Any:
        """What the talker is trained on: answers in their rows. hidden: (B, T, H); None: all answers stand alone."""
        assert hidden is not None
        rows, codes = [], []
        for row, each in answers:
            end = self.embed(torch.tensor([each.text_end], device=hidden.device))
            rows.append(torch.cat([hidden[row, each.start : each.stop], end.to(hidden)]))
            codes.append(torch.tensor(each.codes, device=hidden.device))
        return self.talker.batch(rows, codes, [each.streaming for _, each in answers])

    def _no_rows(self, embeds: Tensor) -> Tensor:
        return embeds.new_zeros(1, self.model.speech_projector.rate, self.config.speech.encoder_sizes.d_model)


def trains(module: nn.Module) -> bool:
    """Whether anything in it is trained."""
    return any(weight.requires_grad for weight in module.parameters())


def silence(features: AudioFeatures) -> float:
    """What Whisper's log-mel of silence behind a recording is: its clamp lies two under the loudest of all."""
    return max(-1.5, float(features.frames.max()) - 2.0)


class VocalNetLlama(VocalNetModel, LlamaPreTrainedModel):
    config_class, backbone_class = VocalNetLlamaConfig, LlamaModel


class VocalNetQwen2(VocalNetModel, Qwen2PreTrainedModel):
    config_class, backbone_class = VocalNetQwen2Config, Qwen2Model


class VocalNetQwen3(VocalNetModel, Qwen3PreTrainedModel):
    config_class, backbone_class = VocalNetQwen3Config, Qwen3Model
