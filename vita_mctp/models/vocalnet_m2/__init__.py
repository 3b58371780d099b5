"""VocalNet-M2: VocalNet with a talker over several codebooks, which needs no flow model to be heard.

No code and no weights of it were published. A folder of ours has VocalNet's layout: the thinker's and encoder's tensors
under their names there, the talker's under `speech_generator.`; config.json has the talker's sizes (`M2Sizes`) under
`talker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor
from transformers import (
    AutoConfig,
    Qwen2Config,
    Qwen2Model,
    Qwen2PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    Qwen3PreTrainedModel,
)

from vita_mctp.models.registry import FrameSpeaking, ReleasedCodec
from vita_mctp.models.vocalnet import WHISPER_LARGE_V3, VocalNetFamily
from vita_mctp.models.vocalnet.configuration import ThinkerConfig, ThinkerValues
from vita_mctp.models.vocalnet.modeling import VocalNetModel
from vita_mctp.models.vocalnet.prompts import QWEN, VocalNetChat
from vita_mctp.models.vocalnet_m2.talker import M2Batch, M2Sizes, M2Talker
from vita_mctp.text.chat import IGNORED, Clip, Message, PromptStyle, Sample, SpokenAnswer, spoken_text
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import AUDIO_TAG, VocabularyKind


class M2Values(ThinkerValues):
    """What a config.json says of encoder and talker."""

    talker: M2Sizes

    @model_validator(mode="after")
    def _fits_the_thinker(self) -> Self:
        widths = (self.talker.text_size, self.talker.thinker_size)
        if widths != (self.hidden_size, self.hidden_size):
            raise ValueError(
                f"the talker reads text and states of widths {widths} and the thinker is {self.hidden_size} wide; "
                "wanted one width: they are not of one model"
            )
        return self

    @property
    def codes(self) -> tuple[int, int]:
        return self.talker.codebook_size, self.talker.num_codebooks


class M2Qwen2Config(ThinkerConfig, Qwen2Config):
    model_type, speech_values = "vocalnet_m2_qwen2", M2Values


class M2Qwen3Config(ThinkerConfig, Qwen3Config):
    model_type, speech_values = "vocalnet_m2_qwen3", M2Values


for _config in (M2Qwen2Config, M2Qwen3Config):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)


class _M2Model(VocalNetModel):
    talker_of = M2Talker

    def spoken_batch(
        self, hidden: Tensor | None, input_ids: Tensor, answers: Sequence[tuple[int, SpokenAnswer]]
    ) -> M2Batch:
        """Each token with the state that predicted it, zeros where a text stands alone."""
        embeds, fused, codes = self.embed(input_ids), [], []
        for row, each in answers:
            text = embeds[row, each.start : each.stop]
            alone = each.alone or hidden is None
            states = torch.zeros_like(text) if alone else hidden[row, each.start - 1 : each.stop - 1]  # type: ignore[index]
            fused.append(self.talker.fuse(text, states.to(text)))
            codes.append(torch.tensor(each.codes, device=text.device).unflatten(0, (-1, self.config.speech.codes[1])))
        return self.talker.batch(fused, codes)


class M2Qwen2(_M2Model, Qwen2PreTrainedModel):
    config_class, backbone_class = M2Qwen2Config, Qwen2Model


class M2Qwen3(_M2Model, Qwen3PreTrainedModel):
    config_class, backbone_class = M2Qwen3Config, Qwen3Model


@torch.inference_mode()
def fused_row(model: _M2Model, id: int, state: Tensor) -> Tensor:
    """A text token and the state (H,) that predicted it, both known as soon as it is drawn -> (1, W)."""
    text = model.embed(torch.tensor([[id]], device=model.device))[0]
    fused: Tensor = model.talker.fuse(text, state[None].to(text))
    return fused


class M2Chat(VocalNetChat):
    """A text to read aloud stands alone: the talker learns from it before there is a thinker to listen to."""

    def sample(self, messages: Sequence[Message], clips: Sequence[Clip], ratio: Any = None) -> Sample:
        text = spoken_text(messages[0].content) if len(messages) == 2 else None
        if text is None or len(clips) != 1 or AUDIO_TAG not in messages[1].content:
            return super().sample(messages, clips)
        ids = (*self._tokenizer.encode_ordinary(text), *self._ids([self.form.end]))
        return Sample(ids, (IGNORED,) * len(ids), (), SpokenAnswer(0, len(ids), self._codes(clips[0]), alone=True))

    def _spoken(self, start: int, stop: int, codes: tuple[int, ...]) -> SpokenAnswer:
        return SpokenAnswer(start, stop, codes)


@dataclass(frozen=True)
class M2Family(VocalNetFamily):
    def new_values(self, hidden_size: int) -> dict[str, Any]:
        """The talker's sizes are ours: 0.8 G weights, about VocalNet-1B's talker."""
        sizes = {"hidden_size": 2048, "ffn_size": 8192, "num_heads": 32, "num_layers": 6, "mtp_levels": 4}
        widths = {"text_size": hidden_size, "thinker_size": hidden_size, "fusion_size": 4096}
        return {"encoder_sizes": WHISPER_LARGE_V3, "talker": {**sizes, **widths}}

    def chat(self, tokenizer: TextTokenizer, style: PromptStyle) -> M2Chat:
        return M2Chat(tokenizer, self.form)

    def speaking(self, model: _M2Model, tokenizer: TextTokenizer) -> FrameSpeaking:
        return FrameSpeaking(model.talker, lambda id, state: fused_row(model, id, state))


def _family(model_class: type[_M2Model]) -> M2Family:
    return M2Family(
        lambda: model_class,
        VocabularyKind.CONTINUOUS,
        ReleasedCodec("whisper", None),
        ReleasedCodec("xy_tokenizer", "fdugyt/XY_Tokenizer"),
        settings={"max_question_seconds": 30.0, "max_new_tokens": 512},
        form=QWEN,
    )


M2_QWEN2, M2_QWEN3 = _family(M2Qwen2), _family(M2Qwen3)
