"""VocalNet's family: a thinker of any kind that hears through Whisper, and a talker that speaks its hidden states."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoConfig

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import FrameSpeaking, ModelFamily, ReleasedCodec, Shapes, Speaking
from vita_mctp.models.vocalnet.configuration import (
    ENCODER_PREFIX,
    EncoderSizes,
    VocalNetLlamaConfig,
    VocalNetQwen2Config,
    VocalNetQwen3Config,
)
from vita_mctp.models.vocalnet.modeling import VocalNetLlama, VocalNetModel, VocalNetQwen2, VocalNetQwen3
from vita_mctp.models.vocalnet.prompts import LLAMA, QWEN, Format, VocalNetChat
from vita_mctp.models.vocalnet.tokenizer import thinker_tokenizer, thinker_vocabulary
from vita_mctp.schema import read_json
from vita_mctp.text.chat import PromptStyle
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind

for _config in (VocalNetLlamaConfig, VocalNetQwen2Config, VocalNetQwen3Config):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)


@dataclass(frozen=True)
class VocalNetFamily(ModelFamily):
    form: Format = LLAMA
    shrinks: ClassVar[re.Pattern[str]] = re.compile(r"model\.layers\.\d+\..*_proj")
    """Of the thinker alone."""

    def read_config(self, folder: Path, values: Mapping[str, Any], shapes: Callable[[], Shapes]) -> Any:
        given = dict(values)
        if given.get("encoder_sizes") is None:
            given["encoder_sizes"] = EncoderSizes.from_shapes(shapes(), folder).model_dump()
        self.config_class.read_speech(given, str(folder / "config.json"), CheckpointError)
        return self.config_class.from_dict(given)

    def load_tokenizer(self, folder: Path, kind: str, num_codes: int) -> TextTokenizer:
        return thinker_tokenizer(folder, self.form, read_json(folder / "config.json")["vocab_size"])

    def chat(self, tokenizer: TextTokenizer, style: PromptStyle) -> VocalNetChat:
        """Its formats leave nothing open."""
        return VocalNetChat(tokenizer, self.form)

    def speaking(self, model: VocalNetModel, tokenizer: TextTokenizer) -> Speaking | FrameSpeaking:
        vocabulary = thinker_vocabulary(tokenizer)
        with torch.inference_mode():
            row = model.embed(torch.tensor([[vocabulary.text_end]], device=model.device))[0, 0]
        return Speaking(model.talker, vocabulary.end, row, tokenizer.decode, self.form.end_row)

    def is_never_trained(self, name: str) -> bool:
        """The audio encoder, in every stage."""
        return ENCODER_PREFIX in name

    def resize_vocabulary(self, model: Any, size: int, seed: int) -> None:
        raise ConfigError("a VocalNet thinker keeps its vocabulary; its speech ids are the talker's own")

    def flops_per_token(self, config: Any, *, backbone_trains: bool, context: int) -> float:
        raise ConfigError("no figure for VocalNet's training yet")

    def activation_bytes(self, config: Any, positions: int) -> int:
        raise ConfigError("no figure for VocalNet's training yet")


_SETTINGS = {
    "max_question_seconds": 30.0,
    "max_new_tokens": 512,
    "sampling": {"speech_to_speech": {"temperature": 0.1, "top_k": 0, "top_p": 0.1, "top_p_excludes": 1}},
}
"""Of the authors' streaming script; their encoder hears 30 s."""


def _family(model_class: type[VocalNetModel], form: Format) -> VocalNetFamily:
    return VocalNetFamily(
        lambda: model_class,
        VocabularyKind.CONTINUOUS,
        ReleasedCodec("whisper", None),
        ReleasedCodec("cosyvoice2", "FunAudioLLM/CosyVoice2-0.5B"),
        settings=_SETTINGS,
        form=form,
    )


VOCALNET_LLAMA = _family(VocalNetLlama, LLAMA)
VOCALNET_QWEN2 = _family(VocalNetQwen2, QWEN)
VOCALNET_QWEN3 = _family(VocalNetQwen3, QWEN)
