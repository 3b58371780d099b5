"""Talkers: text rows of a thinker in, several speech tokens a step out. One class for each predictor, side by side.

All share projector, backbone and final norm; they differ in what stands behind. Speech row j holds SOS (j = 0) or
token j; level 0 predicts token j + 1, level k token j + 1 + k. VocalNet paper (arXiv 2504.04060), section 4 and table
3; parameter names are the released ones.

B answers, T columns, S speech rows, H width, V vocabulary, g tokens of a row, K levels behind level 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vita_mctp.models.talker_layers import layer, norm, run
from vita_mctp.models.vocalnet.batches import TalkerBatch, text_limits
from vita_mctp.models.vocalnet.sizes import Predictor, TalkerSizes


class Talker(nn.Module):
    """Next-token prediction, and what all predictors have in common. Keeps no state: caches are passed in."""

    reads_tokens: ClassVar[bool] = False
    """Whether level k reads the token k rows further on."""
    released_causal: ClassVar[bool] = True
    """Whether the authors' loop decodes with a causal mask; otherwise with none, but for the projector."""

    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.text_size
        self.entry = nn.Identity() if width is None else nn.Linear(width, sizes.hidden_size)
        self.embedding = nn.Embedding(sizes.vocab_size, sizes.hidden_size, padding_idx=sizes.pad)
        self.encode_layers = nn.ModuleList(layer(sizes, i) for i in range(sizes.projector_layers))
        self.decode_layers = nn.ModuleList(layer(sizes, i) for i in range(sizes.backbone_layers))
        self.norm = norm(sizes)
        self.output_proj = nn.Linear(sizes.hidden_size, sizes.vocab_size)

    def project(self, text: Tensor, positions: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
        """The thinker's rows (B, T, text size) -> text columns (B, T, H) behind BOS."""
        return run(self.encode_layers, self.entry(text), positions, mask, cache)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, S, g) -> the speech columns (B, S, H), means over g."""
        return self.embedding(ids).mean(2)

    def backbone(self, rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None) -> Tensor:
        """Columns (B, T, H) -> level 0 (B, T, H), un-normalised."""
        return run(self.decode_layers, rows, positions, mask, cache)

    def level(
        self, k: int, hidden: Tensor, rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        """Level k >= 1 (B, T, H), un-normalised, from what `enter` made of the level below's.

        rows: (B, T, H) of each speech row the embedding of the token k rows further on, of each text column itself.
        """
        raise NotImplementedError(f"{type(self).__name__} has level 0 alone")

    def enter(self, k: int, hidden: Tensor) -> Tensor:
        """The level below's hidden state as level k reads it in training."""
        return hidden

    def released_enter(self, k: int, hidden: Tensor) -> Tensor:
        """As level k reads it in the authors' loop; of text columns it reads level 0's own, whatever k is."""
        return self.enter(k, hidden)

    def logits(self, k: int, hidden: Tensor) -> Tensor:
        """Level k's `hidden` (..., H) -> logits (..., g, V)."""
        return self.output_proj(self.norm(hidden))[..., None, :]

    def released_logits(self, k: int, hidden: Tensor) -> Tensor:
        """`logits` as the authors' loop computes them."""
        return self.logits(k, hidden)

    def batch(self, text: Sequence[Tensor], speech: Sequence[Tensor], streaming: Sequence[bool]) -> TalkerBatch:
        """As `TalkerBatch.of`, of this talker's sizes."""
        return TalkerBatch.of(self.sizes, text, speech, streaming)

    def chain(self, batch: TalkerBatch) -> Iterator[Tensor]:
        """Teacher-forced hidden states (B, T + S, H) of level 0, then of each level behind it."""
        text = batch.text.shape[1]
        columns = torch.arange(text + 1 + batch.inputs.shape[1], device=batch.text.device)[None]
        causal = columns[:, None, :text] <= columns[:, :text, None]
        projected = self.project(batch.text, columns[:, :text], causal)
        bos = self.embed(batch.inputs.new_full((len(projected), 1, 1), self.sizes.bos))
        text_rows = torch.cat([bos, projected], dim=1)
        hidden = self.backbone(torch.cat([text_rows, self.embed(batch.inputs)], dim=1), columns, batch.mask())
        yield hidden
        for k in range(1, self.sizes.mtp_levels + 1):
            further = F.pad(batch.inputs[:, k:], (0, 0, 0, k), value=self.sizes.pad)[:, : batch.inputs.shape[1]]
            rows = torch.cat([text_rows, self.embed(further)], dim=1) if self.reads_tokens else text_rows
            hidden = self.level(k, self.enter(k, hidden), rows, columns, batch.mask(k))
            yield hidden

    def text_limits(self, rows: Tensor, text_length: int, k: int) -> Tensor:
        """How many of `text_length` columns level k's speech rows (R,) of a stream see: (R,)."""
        length = torch.tensor([text_length], device=rows.device)
        return text_limits(self.sizes, rows, length, torch.ones_like(length, dtype=torch.bool), k)[0]

    def losses(self, batch: TalkerBatch) -> Tensor:
        """(K+1,) mean cross-entropy of each level over its targets in the batch, float32 or better; 0 without any."""
        counts = [(batch.labels(k) != self.sizes.pad).sum() for k in range(self.sizes.mtp_levels + 1)]
        return self.totals(batch) / torch.stack(counts).clamp(min=1)

    def totals(self, batch: TalkerBatch) -> Tensor:
        """(K+1,) the same, summed over targets."""
        found = []
        for k, hidden in enumerate(self.chain(batch)):
            labels = batch.labels(k)
            known = labels != self.sizes.pad
            logits = self.logits(k, hidden[:, batch.text_columns :])[known]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            found.append(F.cross_entropy(wide, labels[known], reduction="sum"))
        return torch.stack(found)

    def loss(self, losses: Tensor) -> Tensor:
        """Of `losses`: the sum of lambda^k times level k's. It is not divided by the number of levels."""
        powers = torch.arange(len(losses), device=losses.device, dtype=losses.dtype)
        return (losses * self.sizes.loss_decay**powers).sum()


class GroupLinear(Talker):
    """A row stands for g tokens; one linear layer predicts the next g."""

    released_causal = False

    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__(sizes)
        self.output_proj = nn.Linear(sizes.hidden_size, sizes.group_size * sizes.vocab_size)

    def logits(self, k: int, hidden: Tensor) -> Tensor:
        return self.output_proj(self.norm(hidden)).unflatten(-1, (self.sizes.group_size, -1))


class GroupTransformer(Talker):
    """A row stands for g tokens; g learned queries and the row pass one unmasked layer and predict the next g."""

    released_causal = False

    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__(sizes)
        self.group_model = _GroupModel(sizes)

    def logits(self, k: int, hidden: Tensor) -> Tensor:
        return self.output_proj(self.group_model(self.norm(hidden)))


class _GroupModel(nn.Module):
    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(sizes.group_size, sizes.hidden_size).normal_(std=0.02))
        self.norm1, self.norm2, self.final_norm = norm(sizes), norm(sizes), norm(sizes)
        self.encoder = layer(sizes)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., H) -> (..., g, H)."""
        flat = rows.reshape(-1, 1, rows.shape[-1])
        queries = self.norm2(self.query).expand(len(flat), -1, -1)
        sequence = torch.cat([self.norm1(flat), queries], dim=1)
        positions = torch.arange(sequence.shape[1], device=rows.device)[None]
        found = self.final_norm(run([self.encoder], sequence, positions, None)[:, 1:])
        return found.reshape(*rows.shape[:-1], *found.shape[1:])


class ParallelLinear(Talker):
    """K more linear heads on level 0's own hidden state (Gloeckle et al., arXiv 2404.19737, without their layers)."""

    released_causal = False

    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__(sizes)
        heads = (nn.Linear(sizes.hidden_size, sizes.vocab_size) for _ in range(sizes.mtp_levels))
        self.mtp_output_proj = nn.ModuleList(heads)

    def level(
        self, k: int, hidden: Tensor, rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        return hidden

    def logits(self, k: int, hidden: Tensor) -> Tensor:
        head = self.mtp_output_proj[k - 1] if k else self.output_proj
        return head(self.norm(hidden))[..., None, :]


class VocalNet(Talker):
    """K layers in a chain on un-normalised hidden states, each with its own norm and head. No token is read."""

    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__(sizes)
        self.mtp_layers = nn.ModuleList(self._module(sizes) for _ in range(sizes.mtp_levels))

    def _module(self, sizes: TalkerSizes) -> nn.Module:
        return _Module(sizes)

    def level(
        self, k: int, hidden: Tensor, rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        module: Any = self.mtp_layers[k - 1]
        return run([module.decoder_layer], hidden, positions, mask, cache)

    def logits(self, k: int, hidden: Tensor) -> Tensor:
        if k == 0:
            return super().logits(k, hidden)
        module: Any = self.mtp_layers[k - 1]
        return module.output_proj(module.norm_final(hidden))[..., None, :]


class _Module(nn.Module):
    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__()
        self.decoder_layer, self.norm_final = layer(sizes), norm(sizes)
        self.output_proj = nn.Linear(sizes.hidden_size, sizes.vocab_size)


class DeepSeek(VocalNet):
    """Module k joins the hidden state and the token k rows further on (DeepSeek-V3), but has its own head.

    The authors' loop norms once more with the main norm, before the head and before the next module, though training
    does not.
    """

    reads_tokens = True

    def _module(self, sizes: TalkerSizes) -> nn.Module:
        return _JoiningModule(sizes)

    def enter(self, k: int, hidden: Tensor) -> Tensor:
        return self.norm(hidden) if k == 1 else hidden

    def released_enter(self, k: int, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    def level(
        self, k: int, hidden: Tensor, rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        module: Any = self.mtp_layers[k - 1]
        joined = module.linear(torch.cat([module.norm1(hidden), module.norm2(rows)], dim=-1))
        return module.norm_final(run([module.decoder_layer], joined, positions, mask, cache))

    def logits(self, k: int, hidden: Tensor) -> Tensor:
        if k == 0:
            return super().logits(k, hidden)
        module: Any = self.mtp_layers[k - 1]
        return module.output_proj(hidden)[..., None, :]

    def released_logits(self, k: int, hidden: Tensor) -> Tensor:
        return self.logits(k, self.norm(hidden) if k else hidden)


class _JoiningModule(_Module):
    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__(sizes)
        self.norm1, self.norm2 = norm(sizes), norm(sizes)
        self.linear = nn.Linear(2 * sizes.hidden_size, sizes.hidden_size)


class Mctp(Talker):
    """VITA-Audio's block (arXiv 2505.03739): token and hidden state joined, one final norm and head for all."""

    reads_tokens = True

    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__(sizes)
        self.mtp_layers = nn.ModuleList(_Block(sizes) for _ in range(sizes.mtp_levels))

    def enter(self, k: int, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    def level(
        self, k: int, hidden: Tensor, rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        block: Any = self.mtp_layers[k - 1]
        joined = block.linear(torch.cat([block.embed_norm(rows), block.hidden_norm(hidden)], dim=-1))
        return run([block.decoder_layer], joined, positions, mask, cache)


class _Block(nn.Module):
    def __init__(self, sizes: TalkerSizes) -> None:
        super().__init__()
        self.embed_norm, self.hidden_norm, self.decoder_layer = norm(sizes), norm(sizes), layer(sizes)
        self.linear = nn.Linear(2 * sizes.hidden_size, sizes.hidden_size, bias=False)


TALKERS: dict[Predictor, type[Talker]] = {
    "ntp": Talker,
    "group_linear": GroupLinear,
    "group_transformer": GroupTransformer,
    "parallel_linear": ParallelLinear,
    "deepseek": DeepSeek,
    "vocalnet": VocalNet,
    "mctp": Mctp,
}


def make_talker(sizes: TalkerSizes) -> Talker:
    """A new one, its weights drawn from torch's own random stream."""
    return TALKERS[sizes.predictor](sizes)
