"""VITA-Audio's family: a Qwen2 backbone with a chain of MCTP blocks, and the Plus variant, which hears features.

Importing this package registers the models with transformers' AutoConfig and AutoModelForCausalLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from vita_mctp.errors import CheckpointError
from vita_mctp.models.registry import ModelFamily, ReleasedCodec, Shapes
from vita_mctp.models.vita.configuration import (
    ConfigValues,
    SenseVoiceSizes,
    VitaMctpConfig,
    VitaMctpPlusConfig,
    is_mctp_parameter,
)
from vita_mctp.models.vita.losses import CHUNK_BYTES, SharedHead
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM, VitaMctpOutput
from vita_mctp.models.vita.plus import ENCODER_PREFIX, VitaMctpPlusForCausalLM, join_encoder
from vita_mctp.text.vocabulary import VocabularyKind

__all__ = [
    "VITA",
    "VITA_PLUS",
    "VitaMctpConfig",
    "VitaMctpForCausalLM",
    "VitaMctpOutput",
    "VitaMctpPlusConfig",
    "VitaMctpPlusForCausalLM",
    "is_mctp_parameter",
]

for _model in (VitaMctpForCausalLM, VitaMctpPlusForCausalLM):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_model.config_class, _model, exist_ok=True)

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT = 2, 2, 2
"""FLOPs of one weight for one token in each pass (Kaplan et al., arXiv 2001.08361, section 2.1)."""


class VitaFamily(ModelFamily):
    """Levels: the backbone, then each MCTP block."""

    shrinks: ClassVar[re.Pattern[str]] = re.compile(r"(?:.*\.)?layers\.\d+\..*_proj|(?:.*\.)?mtp_projs\.\d+")

    def read_config(self, folder: Path, values: Mapping[str, Any], shapes: Callable[[], Shapes]) -> VitaMctpConfig:
        """A plain Qwen2's becomes one with no MCTP blocks; a released Plus' leaves out its encoder's sizes."""
        given = {**values, "model_type": self.config_class.model_type}
        if values.get("model_type") == "qwen2":
            given["num_nextn_predict_layers"] = 0
        ConfigValues.parse(given, str(folder / "config.json"), CheckpointError)
        if self.hears_features and given.get("audio_config") is None:
            given["audio_config"] = _encoder_sizes(folder, shapes())
        return cast(VitaMctpConfig, self.config_class.from_dict(given))

    def grow(self, model: Any, num_blocks: int, seed: int) -> None:
        model.expand(num_blocks, seed=seed)

    def is_block_parameter(self, config: Any, name: str) -> bool:
        return is_mctp_parameter(config, name)

    def is_never_trained(self, name: str) -> bool:
        """VITA-Audio-Plus' encoder, in every stage."""
        return ENCODER_PREFIX in f"{name}."

    def resize_vocabulary(self, model: Any, size: int, seed: int) -> None:
        """New rows are drawn around the mean of the old, as transformers does."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(size, mean_resizing=True)
        weight = cast(nn.Linear, model.lm_head).weight
        head = SharedHead(1, 1)  # transformers has replaced it by a plain linear layer
        head.in_features, head.out_features, head.weight = weight.shape[1], weight.shape[0], weight
        model.lm_head = head
        model.tie_weights()

    def flops_per_token(self, config: Any, *, backbone_trains: bool, context: int) -> float:
        """A frozen backbone is run forward only, and a frozen head gives its input's gradient alone.

        Attention takes 4 * H * context / 2 FLOPs forward in each layer, causal (PaLM, arXiv 2204.02311, appendix B).
        """
        size, inner, blocks = config.hidden_size, config.intermediate_size, config.num_nextn_predict_layers
        keys = config.num_key_value_heads * (size // config.num_attention_heads)
        layer = 2 * size * size + 2 * size * keys + 3 * size * inner
        attention = size * context
        trained = _FORWARD + _INPUT_GRADIENT + _WEIGHT_GRADIENT
        backbone = trained if backbone_trains else _FORWARD
        level_head = trained if backbone_trains else _FORWARD + _INPUT_GRADIENT
        layers = config.num_backbone_layers * backbone * (layer + attention)
        layers += blocks * trained * (layer + 2 * size**2 + attention)
        return float(layers + size * config.vocab_size * (backbone + blocks * level_head))

    def activation_bytes(self, config: Any, positions: int) -> int:
        """Layer inputs, hidden states of all levels and a chunk of logits, bfloat16."""
        levels = config.num_hidden_layers + 3 * (config.num_nextn_predict_layers + 1)
        return 2 * positions * config.hidden_size * levels + 3 * CHUNK_BYTES

    def with_encoder(self, backbone: Any, encoder: Mapping[str, Tensor], source: Path, seed: int) -> Any:
        return join_encoder(backbone, encoder, source, seed)


def _encoder_sizes(folder: Path, shapes: Shapes) -> dict[str, int]:
    encoder = {name.removeprefix(ENCODER_PREFIX): shape for name, shape in shapes.items() if ENCODER_PREFIX in name}
    try:
        return SenseVoiceSizes.from_shapes(encoder).model_dump()
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{folder} lacks {ENCODER_PREFIX}{error.args[0]}: a VITA-Audio-Plus model has an audio encoder"
        ) from None


_DECODER = ReleasedCodec("glm4_voice", "THUDM/glm-4-voice-decoder")
_HISTORY = 4
"""Five exchanges of a short question and 20 s of answer, some 400 tokens each, fill the 2,048 of fine-tuning's rows."""

VITA = VitaFamily(
    VitaMctpConfig,
    VitaMctpForCausalLM,
    VocabularyKind.DISCRETE,
    ReleasedCodec("glm4_voice", "THUDM/glm-4-voice-tokenizer"),
    _DECODER,
    max_history_turns=_HISTORY,
    voice_prompts=True,
    channel=0,
)
VITA_PLUS = VitaFamily(
    VitaMctpPlusConfig,
    VitaMctpPlusForCausalLM,
    VocabularyKind.CONTINUOUS,
    ReleasedCodec("sensevoice", "FunAudioLLM/SenseVoiceSmall"),
    _DECODER,
    max_history_turns=_HISTORY,
    voice_prompts=True,
)
