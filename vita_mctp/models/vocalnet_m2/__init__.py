"""VocalNet-M2: VocalNet with a talker over several codebooks, which needs no flow model to be heard.

No code and no weights of it were published. A folder of ours has VocalNet's layout: the thinker's and encoder's tensors
under their names there, the talker's under `speech_generator.`; config.json has the talker's sizes (`M2Sizes`) under
`talker`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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
from vita_mctp.models.vocalnet import VocalNetFamily
from vita_mctp.models.vocalnet.configuration import ThinkerConfig, ThinkerValues
from vita_mctp.models.vocalnet.modeling import VocalNetModel
from vita_mctp.models.vocalnet.prompts import QWEN
from vita_mctp.models.vocalnet_m2.talker import M2Sizes, M2Talker
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind


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


class M2Qwen2Config(ThinkerConfig, Qwen2Config):
    model_type, speech_values = "vocalnet_m2_qwen2", M2Values


class M2Qwen3Config(ThinkerConfig, Qwen3Config):
    model_type, speech_values = "vocalnet_m2_qwen3", M2Values


for _config in (M2Qwen2Config, M2Qwen3Config):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)


class _M2Model(VocalNetModel):
    talker_of = M2Talker


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


@dataclass(frozen=True)
class M2Family(VocalNetFamily):
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
