"""The model as decoding needs it, in plain torch: transformers' own classes take longer to import than an answer takes.

Every operation is that of transformers' Qwen2 layers with scaled dot-product attention, in the same order, so that the
results are theirs to the bit; `VitaMctpForCausalLM` is the twin it is held to, and the one that trains. What is not
plain here (other attention kernels, scaled rotary positions, features, quantisation) is that one's alone.

Legend: B rows, T positions, H hidden, N heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.models.vita.levels import Levels
from vita_mctp.schema import Schema

_Size = Annotated[int, Field(ge=1, le=1 << 24)]


class _Rotary(Schema):
    rope_theta: Annotated[float, Field(gt=0)]
    rope_type: Literal["default"] = "default"


class InferenceConfig(Schema):
    """What decoding reads of config.json, other keys aside; a value that is not plain is an error."""

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["qwen2", "qwen2_mtp"]
    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=4096)]
    num_attention_heads: _Size
    num_key_value_heads: _Size
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    max_position_embeddings: _Size
    rms_norm_eps: Annotated[float, Field(gt=0)]
    tie_word_embeddings: bool
    hidden_act: Literal["silu"]
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    rope_parameters: _Rotary | None = None
    rope_scaling: None = None
    use_sliding_window: Literal[False] = False
    layer_types: tuple[Literal["full_attention"], ...] | None = None
    head_dim: None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    torch_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    quantization_config: None = None
    _attn_implementation: str = "sdpa"

    @property
    def num_backbone_layers(self) -> int:
        return self.num_hidden_layers - self.num_nextn_predict_layers

    @property
    def rotary_base(self) -> float | None:
        return self.rope_parameters.rope_theta if self.rope_parameters else self.rope_theta

    @property
    def is_sound(self) -> bool:
        """Whether its numbers fit together."""
        keys_divide = self.num_attention_heads % self.num_key_value_heads == 0
        heads_divide = self.hidden_size % (2 * self.num_attention_heads) == 0
        return keys_divide and heads_divide and self.num_backbone_layers > 0 and self.rotary_base is not None


@dataclass(frozen=True)
class GenerationValues:
    """generation_config.json as it is written."""

    values: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.values)


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(size)), eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class Rotary(nn.Module):
    """positions (B, T) -> cosine and sine (B, 1, T, D), for halves that turn together."""

    inverse: Tensor

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__()
        size = config.hidden_size // config.num_attention_heads
        powers = torch.arange(0, size, 2, dtype=torch.float, device="cpu") / size
        self.register_buffer("inverse", 1.0 / (config.rotary_base or 1.0) ** powers, persistent=False)

    def forward(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = (positions[..., None].float() * self.inverse).repeat(1, 1, 2)[:, None]
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def _turn(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-right, left), dim=-1) * sine


class Attention(nn.Module):
    def __init__(self, config: InferenceConfig, index: int) -> None:
        super().__init__()
        size, heads, keys = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.index, self.head_size, self.groups = index, size // heads, heads // keys
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, keys * self.head_size)
        self.v_proj = nn.Linear(size, keys * self.head_size)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any) -> Tensor:
        batch, length, size = hidden.shape
        query, keys, values = (
            project(hidden).view(batch, length, -1, self.head_size).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, keys = _turn(query, *rotary), _turn(keys, *rotary)
        if cache is not None:
            keys, values = cache.update(keys, values, self.index)
        if mask is not None and self.groups > 1:  # with a mask, the fast kernels want as many keys as queries
            keys, values = keys.repeat_interleave(self.groups, 1), values.repeat_interleave(self.groups, 1)
        attended = functional.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            enable_gqa=mask is None and self.groups > 1,
        )
        return cast(Tensor, self.o_proj(attended.transpose(1, 2).reshape(batch, length, size)))


class FeedForward(nn.Module):
    def __init__(self, config: InferenceConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)))


class DecoderLayer(nn.Module):
    def __init__(self, config: InferenceConfig, index: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config, index), FeedForward(config)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), position_embeddings, attention_mask, cache)
        return cast(Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden)))


class _Backbone(nn.Module):
    """Embeddings, all layers and the norm that all levels share."""

    def __init__(self, config: InferenceConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Rotary(config)


class VitaMctpForInference(Levels, nn.Module):
    """Backbone, MCTP blocks and shared head, with the released checkpoints' parameter names."""

    def __init__(self, config: InferenceConfig, generation_config: GenerationValues) -> None:
        super().__init__()
        self.config, self.generation_config = config, generation_config
        blocks, size = range(config.num_nextn_predict_layers), config.hidden_size
        self.model = _Backbone(config)
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False)
        self.mtp_projs = nn.ModuleList(nn.Linear(2 * size, size, bias=False) for _ in blocks)
        self.mtp_embed_norms = nn.ModuleList(RmsNorm(size, config.rms_norm_eps) for _ in blocks)
        self.mtp_hidden_norms = nn.ModuleList(RmsNorm(size, config.rms_norm_eps) for _ in blocks)

    @classmethod
    def of(
        cls, config: InferenceConfig, generation_config: GenerationValues, tensors: dict[str, Tensor]
    ) -> VitaMctpForInference | None:
        """The model around these tensors, which are not copied; None unless they are its own, each of its own shape."""
        with torch.device("meta"):  # what is replaced at once takes no memory
            model = cls(config, generation_config)
        expected = {name: weight.shape for name, weight in model.state_dict().items()}
        if config.tie_word_embeddings:
            del expected["lm_head.weight"]
        if expected != {name: tensor.shape for name, tensor in tensors.items()}:
            return None
        model.load_state_dict(tensors, assign=True, strict=False)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        return cast(Tensor, self.model.embed_tokens.weight).dtype

    @property
    def device(self) -> torch.device:
        return cast(Tensor, self.model.embed_tokens.weight).device
