"""The levels that decoding runs, one forward each: the backbone, then every MCTP block. Legend: as in `modeling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from vita_mctp.errors import ConfigError
from vita_mctp.models.vita.attention import attention_inputs
from vita_mctp.types import HeardAudio


class Levels:
    """What the model that trains and the one that only decodes have in common: these parts, which keep no state."""

    config: Any
    model: Any
    lm_head: Any
    mtp_projs: Any
    mtp_embed_norms: Any
    mtp_hidden_norms: Any
    cache_argument: ClassVar[str] = "cache"
    """What a decoder layer calls its cache."""
    hears_features: ClassVar[bool] = False

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> embeddings (B, T, H)."""
        return cast(Tensor, self.model.embed_tokens(ids))

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        """What the backbone reads of embeds (B, T, H): with the recordings heard in each row. This model hears none.

        Raises:
            ConfigError: there is a recording.
        """
        if any(heard):
            raise ConfigError("this model hears audio codes, not features: give it codes, or load a VITA-Audio-Plus")
        return embeds

    def backbone(
        self, embeds: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """embeds (B, T, H) -> hidden states (B, T, H) after the final norm.

        Args:
            position_ids: (B, T) position of each token in its sequence.
            attention_mask: (B, 1, T, keys) bool or additive. None: causal; without a cache, positions that restart also
                separate packed samples; with one, its keys all come before these tokens.
            cache: updated under layer indices 0..L-1; None: none is kept.
        """
        return self._run(0, self.config.num_backbone_layers, embeds, position_ids, attention_mask, cache)

    def block(
        self,
        k: int,
        embeds: Tensor,
        previous_hidden: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """MCTP block k: embeds of x_p and h[k-1]_{p-1}, both (B, T, H) -> h[k]_p (B, T, H) after the shared final norm.

        Args:
            previous_hidden: of the backbone (k = 0) or of block k-1, one position before each token.
            position_ids: (B, T) the positions p, absolute in their sequence.
            attention_mask, cache: as in `backbone`; the cache is updated under layer index L+k.
        """
        inputs = torch.cat([self.mtp_embed_norms[k](embeds), self.mtp_hidden_norms[k](previous_hidden)], dim=-1)
        layer = self.config.num_backbone_layers + k
        return self._run(layer, layer + 1, self.mtp_projs[k](inputs), position_ids, attention_mask, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., H) of the backbone or any block -> logits (..., V) of the token after each position."""
        return cast(Tensor, self.lm_head(hidden))

    def _run(self, first: int, end: int, hidden: Tensor, positions: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        num_cached = int(cache.get_seq_length(first)) if cache is not None and mask is None else 0
        kernel = self.config._attn_implementation
        attention = attention_inputs(kernel, positions, hidden.dtype, mask, num_cached)
        rotary = self.model.rotary_emb(hidden, positions)
        for layer in self.model.layers[first:end]:
            hidden = layer(hidden, position_embeddings=rotary, **{self.cache_argument: cache}, **attention)
        return cast(Tensor, self.model.norm(hidden))
