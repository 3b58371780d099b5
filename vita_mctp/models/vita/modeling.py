"""The VITA-Audio language model: a Qwen2 backbone and a chain of K MCTP blocks on it (VITA-Audio paper, section 3).

Legend: B rows, T positions, H hidden, V vocabulary, L backbone layers, K blocks, x_p token at position p, E embedding.

    backbone     h[-1]_p = norm(layers 0..L-1 (E x_0 .. E x_p))
    block k      u_p = P_k [rms(E x_p) ; rms(h[k-1]_{p-1})],   h[k]_p = norm(layer_{L+k}(u_{k+1} .. u_p)),   p >= k+1
    any of them  logits_p = lm_head(h_p), which predict x_{p+1}

The final norm and the head are shared by all. So block k predicts x_{p+1} having seen the backbone only up to p-k-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from transformers import Cache, Qwen2Model, Qwen2PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from vita_mctp.errors import ConfigError
from vita_mctp.models.attention import attention_inputs
from vita_mctp.models.losses import LevelLosses, SharedHead
from vita_mctp.models.strict import StrictLoading, cache_argument, make_known
from vita_mctp.models.vita.configuration import VitaMctpConfig
from vita_mctp.models.vita.rows import LabelShift, Rows, take
from vita_mctp.text.chat import IGNORED
from vita_mctp.types import HeardAudio

Detach = Literal["when_frozen", "always"]

_CACHE_ARGUMENT = cache_argument(Qwen2DecoderLayer)


@dataclass
class VitaMctpOutput(LevelLosses):
    """What `VitaMctpForCausalLM.forward` returns; its loss is the LM loss (unless the backbone is frozen) +
    mtp_loss_weight * mean of the block losses.

    Attributes:
        logits: (B, T, V) the backbone's, when neither losses nor hidden states are asked for.
        hidden_states: K+1 tensors (B, T_k, H) after the final norm, the backbone's first; block k's rows hold the
            positions > k of each sample, moved to the front.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class VitaMctpForCausalLM(StrictLoading, Qwen2PreTrainedModel):
    """Backbone, MCTP blocks and shared head, with the released checkpoints' parameter names.

    Decoding takes the parts (`embed`, `backbone`, `block`, `logits`), which keep no state; training takes `forward`.
    """

    config: VitaMctpConfig
    config_class = VitaMctpConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers' own convention)
    accepts_loss_kwargs = True
    backbone_class: ClassVar[type[Qwen2Model]] = Qwen2Model
    default_detach: ClassVar[Detach] = "when_frozen"

    def __init__(self, config: VitaMctpConfig) -> None:
        super().__init__(config)
        blocks, hidden, eps = range(config.num_nextn_predict_layers), config.hidden_size, config.rms_norm_eps
        self.model = self.backbone_class(config)
        self.lm_head = SharedHead(hidden, config.vocab_size)
        self.mtp_projs = nn.ModuleList(nn.Linear(2 * hidden, hidden, bias=False) for _ in blocks)
        self.mtp_embed_norms = nn.ModuleList(Qwen2RMSNorm(hidden, eps=eps) for _ in blocks)
        self.mtp_hidden_norms = nn.ModuleList(Qwen2RMSNorm(hidden, eps=eps) for _ in blocks)
        self.post_init()

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> embeddings (B, T, H)."""
        return cast(Tensor, self.model.embed_tokens(ids))

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        """embeds (B, T, H) as the backbone reads them. This model hears no recordings: ConfigError if there is one."""
        if any(heard):
            raise ConfigError("this model hears audio codes, not features: give it codes, or load a VITA-Audio-Plus")
        return embeds

    def backbone(
        self, embeds: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """embeds (B, T, H) -> hidden states (B, T, H) after the final norm; layers 0..L-1 of the cache are updated.

        attention_mask: (B, 1, T, keys) bool or additive. None: causal; without a cache, positions (B, T) that restart
        also separate packed samples; with one, its keys all come before these tokens.
        """
        return self._run(0, self.config.num_backbone_layers, embeds, position_ids, attention_mask, cache)

    def block(
        self,
        k: int,
        embeds: Tensor,
        previous_hidden: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """MCTP block k: embeds of x_p and h[k-1]_{p-1}, both (B, T, H) -> h[k]_p (B, T, H) after the shared final norm.

        position_ids: the positions p, absolute in their sequence. Updates layer L+k of the cache; else as `backbone`.
        """
        inputs = torch.cat([self.mtp_embed_norms[k](embeds), self.mtp_hidden_norms[k](previous_hidden)], dim=-1)
        layer = self.config.num_backbone_layers + k
        return self._run(layer, layer + 1, self.mtp_projs[k](inputs), position_ids, attention_mask, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., H) of the backbone or any block -> logits (..., V) of the token after each position."""
        return cast(Tensor, self.lm_head(hidden))

    def _run(
        self, first: int, end: int, hidden: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        num_cached = int(cache.get_seq_length(first)) if cache is not None and mask is None else 0
        kernel = self.config._attn_implementation
        attention = attention_inputs(kernel, positions, hidden.dtype, mask, num_cached)
        rotary = self.model.rotary_emb(hidden, positions)
        for layer in self.model.layers[first:end]:
            hidden = layer(hidden, position_embeddings=rotary, **{_CACHE_ARGUMENT: cache}, **attention)
        return cast(Tensor, self.model.norm(hidden))

    def chain(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        *,
        heard: Sequence[Sequence[HeardAudio]] = (),
        detach: bool = False,
    ) -> Iterator[tuple[Rows, Tensor]]:
        """Teacher-forced hidden states of the backbone, then of each block in turn, with the rows that each sees.

        Args:
            input_ids: (B, T).
            position_ids: (B, T), restarting at 0 with each packed sample; None: one sample per row.
            heard: the recordings in each row, for a model that hears features; empty: none at all.
            detach: let no gradient of the blocks reach the embeddings and the backbone.

        Yields:
            K+1 pairs of `Rows` (B, T_k) and hidden states (B, T_k, H).
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        rows = Rows.of(position_ids)
        embeds = self.embed(input_ids)
        hidden = self.backbone(self.listen(embeds, heard), position_ids)
        yield rows, hidden
        if detach:
            embeds, hidden = embeds.detach(), hidden.detach()
        for k in range(self.config.num_nextn_predict_layers):
            rows, previous = rows.next(k)
            hidden = self.block(k, take(embeds, rows.source), take(hidden, previous), rows.position_ids)
            yield rows, hidden

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        *,
        label_shift: LabelShift = "per_sample",
        heard: Sequence[Sequence[HeardAudio]] = (),
        detach: Detach | None = None,
        output_hidden_states: bool = False,
        count_correct: bool = False,
    ) -> VitaMctpOutput:
        """Losses of the backbone and every block on rows of packed samples; without labels, the backbone's logits.

        Args:
            input_ids, labels: (B, T); labels are not shifted, -100 is ignored.
            position_ids: (B, T), restarting at 0 with each packed sample; None: one sample per row.
            num_items_in_batch: denominator of every loss; None: each loss is the mean over its own targets.
            label_shift: "per_sample", or "reference_row" for parity with the reference (one row; its labels leak from
                one sample into the one before it).
            heard: as in `chain`.
            detach: cut the blocks' gradients off embeddings and backbone when the backbone is frozen, or always; None:
                as released, which is always for VITA-Audio-Plus. Gradients between blocks are never cut.
            output_hidden_states: return the hidden states of all levels.
            count_correct: return the counts for accuracies.

        Raises:
            ConfigError: "reference_row" with more than one row.
            ValueError: positions that do not count up from 0.
        """
        if label_shift == "reference_row" and len(input_ids) != 1:
            raise ConfigError(f"label_shift 'reference_row' is defined for one row, got {len(input_ids)}")
        trains = self._backbone_trains()
        detached = (detach or self.default_detach) == "always" or not trains
        levels = self.chain(input_ids, position_ids, heard=heard, detach=detached)
        if labels is None and not output_hidden_states:
            return VitaMctpOutput(logits=self.logits(next(levels)[1]))
        rows, states = zip(*levels, strict=True)
        output = VitaMctpOutput()
        if labels is not None:
            targets = [each.targets(labels, label_shift) for each in rows]
            output = self._losses(list(states), targets, num_items_in_batch, trains, count_correct)
        output.hidden_states = states if output_hidden_states else None
        return output

    @staticmethod
    def count_targets(labels: Tensor, **_: Any) -> Tensor:
        """The denominator of every loss on a batch: its labels."""
        return (labels != IGNORED).sum()

    def _backbone_trains(self) -> bool:
        """Whether the language model itself is trained, be it whole or through adapters in its layers."""
        layers = self.model.layers[: self.config.num_backbone_layers]
        return self.lm_head.weight.requires_grad or any(weight.requires_grad for weight in layers.parameters())

    def _losses(
        self,
        states: list[Tensor],
        targets: list[Tensor],
        num_items: Tensor | int | None,
        backbone_trains: bool,
        count_correct: bool,
    ) -> VitaMctpOutput:
        num_targets = torch.stack([(each != IGNORED).sum() for each in targets])
        items = num_targets if num_items is None else torch.as_tensor(num_items, device=num_targets.device)
        items = items.clamp(min=1)
        num_blocks = len(states) - 1
        weights = [float(backbone_trains), *[self.config.mtp_loss_weight / max(1, num_blocks)] * num_blocks]
        found = self.lm_head.losses(
            states, targets, torch.tensor(weights, device=items.device) / items, count_correct=count_correct
        )
        lm_loss, *mtp_losses = found.totals / items
        return VitaMctpOutput(
            loss=found.loss,
            lm_loss=lm_loss,
            mtp_losses=tuple(mtp_losses),
            num_targets=num_targets,
            num_correct=found.num_correct,
        )

    def expand(self, num_blocks: int, *, seed: int = 0) -> None:
        """Appends MCTP blocks in place until there are so many (VITA-Audio paper, section 3.3).

        Block k copies block k-1. Block 0 copies the last backbone layer, draws its projection from
        normal(0, initializer_range) with `seed`, and has norms of ones.

        Raises:
            ConfigError: the model already has more blocks.
        """
        config = self.config
        if num_blocks < config.num_nextn_predict_layers:
            raise ConfigError(f"the model has {config.num_nextn_predict_layers} MCTP blocks, cannot leave {num_blocks}")
        for k in range(config.num_nextn_predict_layers, num_blocks):
            config.layer_types = [*config.layer_types, "full_attention"]
            config.num_hidden_layers += 1
            config.num_nextn_predict_layers += 1
            self._append_block(k, seed)

    def _append_block(self, k: int, seed: int) -> None:
        config, layers = self.config, self.model.layers
        layers.append(_copy(Qwen2DecoderLayer(config, len(layers)), layers[-1]))
        parts = (self.mtp_projs, self.mtp_embed_norms, self.mtp_hidden_norms)
        hidden, eps, like = config.hidden_size, config.rms_norm_eps, self.model.norm.weight
        projection = nn.Linear(2 * hidden, hidden, bias=False)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(projection.weight, std=config.initializer_range, generator=generator)
        new = (projection, Qwen2RMSNorm(hidden, eps=eps), Qwen2RMSNorm(hidden, eps=eps))
        for modules, module in zip(parts, new, strict=True):
            modules.append(_copy(module, modules[-1]) if k > 0 else module.to(like))


make_known(VitaMctpForCausalLM)


def _copy(new: Any, old: nn.Module) -> Any:
    """`new` with the weights, device, type and mode of `old`."""
    new.to(next(old.parameters())).load_state_dict(old.state_dict())
    return new.train(old.training)
