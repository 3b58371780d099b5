"""VocalNet-M2's talker: text and hidden states of a thinker in, several frames of 8 codes each out at every step.

From arXiv 2511.10232: text and thinker states are fused by two layers and stretched threefold by zeros; a frame's row
is its text row and the sum of its codes' embeddings; 8 heads predict the next frame; level n behind predicts frame
t + n + 1; losses are summed without weights. Ours, where the paper is silent: the activation (SiLU), the layers
(VocalNet's), a BOS and an EOS on every track, an EOS on the first one ends.

B answers, F frames, Q codebooks, H width, V ids of a track, K levels behind level 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vita_mctp.models.talker_layers import layer, norm, run
from vita_mctp.schema import Depth, Schema, Width

IGNORED = -100
"""Label of a track that nothing is learnt from."""


class M2Sizes(Schema):
    """text_size, thinker_size: of a text token's embedding and its hidden state; stretch: frames of a text token."""

    hidden_size: Width
    ffn_size: Width
    num_heads: Depth
    num_layers: Depth
    text_size: Width
    thinker_size: Width
    fusion_size: Width
    mtp_levels: Annotated[int, Field(ge=0, le=1000)] = 4
    num_codebooks: Annotated[int, Field(ge=1, le=64)] = 8
    codebook_size: Width = 1024
    stretch: Annotated[int, Field(ge=1, le=100)] = 3
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"width {self.hidden_size} over {self.num_heads} heads; wanted heads of one even size")
        return self

    @property
    def bos(self) -> int:
        return self.codebook_size

    @property
    def eos(self) -> int:
        return self.codebook_size + 1


@dataclass(frozen=True, eq=False)
class M2Batch:
    """text (B, F, H): stretched rows. inputs, targets (B, F, Q): BOS and the frames, the frames and EOS; padded."""

    text: Tensor
    inputs: Tensor
    targets: Tensor

    def labels(self, level: int) -> Tensor:
        """(B, F, Q): what level n predicts stands n frames further on."""
        shifted = torch.full_like(self.targets, IGNORED)
        shifted[:, : self.targets.shape[1] - level] = self.targets[:, level:]
        return shifted


class _Fusion(nn.Module):
    def __init__(self, sizes: M2Sizes) -> None:
        super().__init__()
        self.linear1 = nn.Linear(sizes.text_size + sizes.thinker_size, sizes.fusion_size)
        self.linear2 = nn.Linear(sizes.fusion_size, sizes.hidden_size)

    def forward(self, text: Tensor, hidden: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(torch.cat([text, hidden], dim=-1))))


class _Level(nn.Module):
    def __init__(self, sizes: M2Sizes) -> None:
        super().__init__()
        self.decoder_layer, self.norm_final, self.heads = layer(sizes), norm(sizes), _heads(sizes)


class M2Talker(nn.Module):
    """Keeps no state: caches are passed in."""

    def __init__(self, sizes: M2Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.fusion = _Fusion(sizes)
        ids = sizes.codebook_size + 2
        self.embeddings = nn.ModuleList(nn.Embedding(ids, sizes.hidden_size) for _ in range(sizes.num_codebooks))
        self.layers = nn.ModuleList(layer(sizes, i) for i in range(sizes.num_layers))
        self.norm, self.heads = norm(sizes), _heads(sizes)
        self.mtp_layers = nn.ModuleList(_Level(sizes) for _ in range(sizes.mtp_levels))

    def fuse(self, text: Tensor, hidden: Tensor) -> Tensor:
        """Text embeddings (n, text size) and thinker states (n, thinker size) -> (n, H)."""
        return self.fusion(text, hidden)

    def stretch(self, fused: Tensor, start: int, frames: int) -> Tensor:
        """Fused rows (n, H) -> the text rows of `frames` frames from `start` on: each row, then zeros."""
        rows = fused.new_zeros(frames, fused.shape[1])
        first = -start % self.sizes.stretch
        known = fused[(start + first) // self.sizes.stretch :][: len(rows[first :: self.sizes.stretch])]
        rows[first : first + len(known) * self.sizes.stretch : self.sizes.stretch] = known
        return rows

    def embed(self, frames: Tensor) -> Tensor:
        """Ids (B, F, Q) -> the sums of their embeddings (B, F, H)."""
        tracks = [table(frames[..., q]) for q, table in enumerate(self.embeddings)]
        return torch.stack(tracks).sum(0)

    def backbone(self, rows: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None) -> Tensor:
        """(B, F, H) -> level 0 (B, F, H), un-normalised."""
        return run(self.layers, rows, positions, mask, cache)

    def level(self, k: int, hidden: Tensor, positions: Tensor, mask: Tensor | None, cache: Any = None) -> Tensor:
        """Level k >= 1 (B, F, H) from the one below."""
        module: Any = self.mtp_layers[k - 1]
        return run([module.decoder_layer], hidden, positions, mask, cache)

    def logits(self, k: int, hidden: Tensor) -> Tensor:
        """Level k's (..., H) -> (..., Q, V)."""
        module: Any = self.mtp_layers[k - 1] if k else None
        normed = module.norm_final(hidden) if k else self.norm(hidden)
        heads = module.heads if k else self.heads
        return torch.stack([head(normed) for head in heads], dim=-2)

    def batch(self, fused: Sequence[Tensor], codes: Sequence[Tensor]) -> M2Batch:
        """fused: of each answer (n, H). codes: of each (F, Q) ids of its frames."""
        sizes, inputs, targets, text = self.sizes, [], [], []
        for rows, said in zip(fused, codes, strict=True):
            edge = said.new_full((1, sizes.num_codebooks), sizes.bos)
            inputs.append(torch.cat([edge, said]))
            targets.append(torch.cat([said, torch.full_like(edge, sizes.eos)]))
            text.append(self.stretch(rows, 0, len(said) + 1))
        padded = pad_sequence(inputs, True, sizes.eos)
        return M2Batch(pad_sequence(text, batch_first=True), padded, pad_sequence(targets, True, IGNORED))

    def chain(self, batch: M2Batch) -> Iterator[Tensor]:
        """Teacher-forced hidden states (B, F, H) of level 0, then of each behind it; causal, so padding harms none."""
        positions = torch.arange(batch.inputs.shape[1], device=batch.inputs.device)[None]
        mask = positions[:, None, :] <= positions[:, :, None]
        hidden = self.backbone(batch.text + self.embed(batch.inputs), positions, mask)
        yield hidden
        for k in range(1, self.sizes.mtp_levels + 1):
            hidden = self.level(k, hidden, positions, mask)
            yield hidden

    def losses(self, batch: M2Batch) -> Tensor:
        """(K+1,) of each level the sum over codebooks of the mean cross-entropy, float32 or better."""
        counts = [(batch.labels(k)[..., 0] != IGNORED).sum() for k in range(self.sizes.mtp_levels + 1)]
        return self.totals(batch) / torch.stack(counts).clamp(min=1)

    def loss(self, losses: Tensor) -> Tensor:
        """Of `losses`: their sum."""
        return losses.sum()

    def totals(self, batch: M2Batch) -> Tensor:
        """(K+1,) the same, summed over frames."""
        found = []
        for k, hidden in enumerate(self.chain(batch)):
            labels = batch.labels(k)
            known = labels[..., 0] != IGNORED
            logits = self.logits(k, hidden[known])
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            found.append(F.cross_entropy(wide.flatten(0, 1), labels[known].flatten(), reduction="sum"))
        return torch.stack(found)


def _heads(sizes: M2Sizes) -> nn.ModuleList:
    ids = sizes.codebook_size + 2
    return nn.ModuleList(nn.Linear(sizes.hidden_size, ids) for _ in range(sizes.num_codebooks))
