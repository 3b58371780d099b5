"""VocalNet's family: a thinker of any kind that hears through Whisper, and a talker that speaks its hidden states."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.losses import CHUNK_BYTES
from vita_mctp.models.registry import FrameSpeaking, ModelFamily, ReleasedCodec, Shapes, Speaking
from vita_mctp.models.vocalnet.configuration import (
    ENCODER_PREFIX,
    EncoderSizes,
    VocalNetLlamaConfig,
    VocalNetQwen2Config,
    VocalNetQwen3Config,
)
from vita_mctp.models.vocalnet.joining import join_thinker
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
    parts: ClassVar[Mapping[str, str]] = {"adaptor": "speech_projector", "talker": "speech_generator"}

    def read_config(self, folder: Path, values: Mapping[str, Any], shapes: Callable[[], Shapes]) -> Any:
        given = dict(values)
        if given.get("encoder_sizes") is None:
            given["encoder_sizes"] = EncoderSizes.from_shapes(shapes(), folder).model_dump()
        self.config_class.read_speech(given, str(folder / "config.json"), CheckpointError)
        return self.config_class.from_dict(given)

    def load_tokenizer(self, folder: Path, kind: str | None = None, num_codes: int | None = None) -> TextTokenizer:
        """Its config says how many codes; of what it hears there are none."""
        values = read_json(folder / "config.json")
        speech = self.config_class.read_speech(values, str(folder / "config.json"), CheckpointError)
        return thinker_tokenizer(folder, self.form, values["vocab_size"], *speech.codes)

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

    def new_values(self, hidden_size: int) -> dict[str, Any]:
        """The released models' proportions."""
        ids = {f"speech_{name}_token_id": 6561 + n for n, name in enumerate(("bos", "sos", "eos", "padding"))}
        return {
            "encoder_sizes": WHISPER_LARGE_V3,
            "llm_hidden_size": hidden_size,
            "speech_generator_type": "ar_mtp",
            "decoder_ffn_dim": 4 * hidden_size,
            "decoder_num_heads": 32,
            "decoder_num_layers": 4,
            "decoder_dropout": 0.1,
            "encoder_num_layers": 2,
            "mtp_num": 5,
            "unit_vocab_size": 6561,
            **ids,
        }

    def with_encoder(
        self, backbone: Any, encoder: Mapping[str, Tensor], source: Path, seed: int, values: Mapping[str, Any]
    ) -> Any:
        if unknown := sorted(set(values) - set(self.config_class.speech_values.model_fields)):
            known = ", ".join(self.config_class.speech_values.model_fields)
            raise ConfigError(f"unknown size {unknown[0]}; known: {known}")
        merged = self.new_values(backbone.config.hidden_size)
        for name, value in values.items():
            merged[name] = merged[name] | value if isinstance(merged.get(name), dict) else value
        self.config_class.read_speech(merged | {"hidden_size": backbone.config.hidden_size}, "the new model's sizes")
        return join_thinker(self.model_class, backbone, encoder, source, seed, merged)

    def flops_per_token(self, config: Any, *, backbone_trains: bool, context: int) -> float:
        """Of the thinker; where it is trained, by adapters, whose own are few: a gradient of its rows comes on top."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        layer = config.hidden_size * (2 * width + 2 * keys + 3 * config.intermediate_size) + width * context
        once = 2 * (config.num_hidden_layers * layer + config.hidden_size * config.vocab_size)
        return float(once * (2 if backbone_trains else 1))

    def work_beside(self, model: Any) -> str:
        encoder, talker = (
            sum(weight.numel() for weight in part.parameters()) for part in (model.model.speech_encoder, model.talker)
        )
        recording = 2 * encoder * model.config.speech.encoder_sizes.max_source_positions
        return (
            f"beside the thinker's: {recording / 1e12:.1f} TFLOP a recording for the audio encoder; "
            f"{6 * talker / 1e9:.1f} GFLOP a frame said for the talker, where it is trained"
        )

    def activation_bytes(self, config: Any, positions: int) -> int:
        """The thinker's layer inputs and a chunk of its logits."""
        return 2 * positions * config.hidden_size * (config.num_hidden_layers + 1) + 3 * CHUNK_BYTES


WHISPER_LARGE_V3 = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}
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
