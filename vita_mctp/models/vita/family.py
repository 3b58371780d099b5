"""What the other rooms know of VITA-Audio and VITA-Audio-Plus. torch is imported where a model is made or changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vita_mctp.errors import CheckpointError
from vita_mctp.models.registry import ModelFamily, ReleasedCodec, Shapes
from vita_mctp.models.vita.values import (
    ENCODER_PREFIX,
    MODEL_TYPE,
    PLUS_MODEL_TYPE,
    ConfigValues,
    SenseVoiceSizes,
    is_mctp_parameter,
)
from vita_mctp.text.vocabulary import VocabularyKind

if TYPE_CHECKING:
    from torch import Tensor

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT = 2, 2, 2
"""FLOPs of one weight for one token in each pass (Kaplan et al., arXiv 2001.08361, section 2.1)."""


class VitaFamily(ModelFamily):
    """Levels: the backbone, then each MCTP block."""

    shrinks: ClassVar[re.Pattern[str]] = re.compile(r"(?:.*\.)?layers\.\d+\..*_proj|(?:.*\.)?mtp_projs\.\d+")

    def read_config(self, folder: Path, values: Mapping[str, Any], shapes: Callable[[], Shapes]) -> Any:
        """A released Plus' leaves out its encoder's sizes."""
        given, _ = self._checked(folder, values)
        if self.hears_features and given.get("audio_config") is None:
            given["audio_config"] = _encoder_sizes(folder, shapes())
        return self.config_class.from_dict(given)

    def graph_values(self, folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
        given, checked = self._checked(folder, values)
        return {**checked.model_dump(exclude_none=True), **given}

    def _checked(self, folder: Path, values: Mapping[str, Any]) -> tuple[dict[str, Any], ConfigValues]:
        """A plain Qwen2's become those of a model without MCTP blocks."""
        given = {**values, "model_type": PLUS_MODEL_TYPE if self.hears_features else MODEL_TYPE}
        if values.get("model_type") == "qwen2":
            given["num_nextn_predict_layers"] = 0
        return given, ConfigValues.parse(given, str(folder / "config.json"), CheckpointError)

    def grow(self, model: Any, num_blocks: int, seed: int) -> None:
        model.expand(num_blocks, seed=seed)

    def is_block_parameter(self, config: Any, name: str) -> bool:
        return is_mctp_parameter(config, name)

    def is_never_trained(self, name: str) -> bool:
        """VITA-Audio-Plus' encoder, in every stage."""
        return ENCODER_PREFIX in f"{name}."

    def resize_vocabulary(self, model: Any, size: int, seed: int) -> None:
        """New rows are drawn around the mean of the old, as transformers does."""
        import torch

        from vita_mctp.models.losses import SharedHead

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(size, mean_resizing=True)
        weight = model.lm_head.weight
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
        from vita_mctp.models.losses import CHUNK_BYTES

        levels = config.num_hidden_layers + 3 * (config.num_nextn_predict_layers + 1)
        return 2 * positions * config.hidden_size * levels + 3 * CHUNK_BYTES

    def forward_options(self, recipe: Any) -> dict[str, Any]:
        return {"label_shift": recipe.label_shift, "detach": recipe.detach}

    def inference_mode(self, ratio: Sequence[int]) -> list[int]:
        return list(ratio)

    def with_encoder(
        self, backbone: Any, encoder: Mapping[str, Tensor], source: Path, seed: int, values: Mapping[str, Any]
    ) -> Any:
        from vita_mctp.models.vita.plus import join_encoder

        return join_encoder(backbone, encoder, source, seed)


def _encoder_sizes(folder: Path, shapes: Shapes) -> dict[str, int]:
    encoder = {name.removeprefix(ENCODER_PREFIX): shape for name, shape in shapes.items() if ENCODER_PREFIX in name}
    try:
        return SenseVoiceSizes.from_shapes(encoder).model_dump()
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{folder} lacks {ENCODER_PREFIX}{error.args[0]}: a VITA-Audio-Plus model has an audio encoder"
        ) from None


def _import_model() -> type[Any]:
    from vita_mctp.models.vita.modeling import VitaMctpForCausalLM

    return VitaMctpForCausalLM


def _import_plus() -> type[Any]:
    from vita_mctp.models.vita.plus import VitaMctpPlusForCausalLM

    return VitaMctpPlusForCausalLM


_DECODER = ReleasedCodec("glm4_voice", "THUDM/glm-4-voice-decoder")
_HISTORY = 4
"""Five exchanges of a short question and 20 s of answer, some 400 tokens each, fill the 2,048 of fine-tuning's rows."""

VITA = VitaFamily(
    _import_model,
    VocabularyKind.DISCRETE,
    ReleasedCodec("glm4_voice", "THUDM/glm-4-voice-tokenizer"),
    _DECODER,
    max_history_turns=_HISTORY,
    voice_prompts=True,
    channel=0,
)
VITA_PLUS = VitaFamily(
    _import_plus,
    VocabularyKind.CONTINUOUS,
    ReleasedCodec("sensevoice", "FunAudioLLM/SenseVoiceSmall"),
    _DECODER,
    max_history_turns=_HISTORY,
    voice_prompts=True,
)
