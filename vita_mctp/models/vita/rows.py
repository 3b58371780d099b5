"""Rows of packed samples: where samples begin, what each MCTP block sees of them, which label each position predicts,
and who attends to whom, said explicitly to every attention kernel.

A row holds one or more samples one after the other; `position_ids` restart at 0 with each sample. A lone 0 also pads
ragged rows: a sample of one token, which no block sees and no loss counts.

transformers decides silently between causal, packed and padded attention, from arguments that are easy to get wrong,
and aligns a kernel's own causal flag differently with and without a cache. Here the mask is decided once, from the
positions, and handed to each kernel in the form it takes, so that all kernels compute the same.

B rows, T positions per row, H hidden, Tq queries, Tk keys (cached ones + Tq). A mask is (B, 1, Tq, Tk): bool, True =
attend, or added to the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vita_mctp.errors import ConfigError

IGNORED = -100
"""Label of a position that no loss counts."""

LabelShift = Literal["per_sample", "reference_row"]


@dataclass(frozen=True, eq=False)
class Rows:
    """What one level of the chain (the backbone, then block 0, 1, ...) sees of the rows.

    Attributes:
        position_ids: (B, T) position of each element in its sample.
        source: (B, T) index of each element in the rows that the backbone sees.
    """

    position_ids: Tensor
    source: Tensor

    @classmethod
    def of(cls, position_ids: Tensor) -> Rows:
        """The backbone's level: every position.

        Raises:
            ValueError: a position is neither 0 nor its predecessor's plus one.
        """
        starts = position_ids == 0
        follows = torch.zeros_like(starts)
        follows[:, 1:] = position_ids[:, 1:] == position_ids[:, :-1] + 1
        if not bool((starts | follows).all()):
            raise ValueError("position_ids must count 0, 1, 2, ... and restart at 0 with each packed sample")
        return cls(
            position_ids, torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
        )

    def next(self, block: int) -> tuple[Rows, Tensor]:
        """Block `block`'s level: the elements with position > `block`, moved up to the front of their rows.

        Returns:
            That level, (B, T'), and `previous` (B, T'): for each of its elements, the index in this level of the
            element before it. T' >= 1 even when no sample is long enough: the block then runs on padding alone, so that
            its parameters take part in every step.
        """
        kept = self.position_ids > block
        counts = kept.sum(dim=1, keepdim=True)
        width = max(1, int(counts.max()))
        index = torch.argsort(~kept, dim=1, stable=True)[:, :width]
        real = torch.arange(width, device=kept.device) < counts
        positions = torch.where(real, self.position_ids.gather(1, index), 0)
        return Rows(positions, self.source.gather(1, index)), (index - 1).clamp(min=0)

    def targets(self, labels: Tensor, shift: LabelShift) -> Tensor:
        """(B, T) id that each element is trained to predict, IGNORED where there is none.

        Args:
            labels: (B, T of the backbone's level) unshifted labels.
            shift: "per_sample" shifts within each sample. "reference_row" shifts the row as one sequence, as the
                VITA-Audio reference does: the last element of a sample is trained on the next one's first label.
        """
        own = labels.gather(1, self.source)
        targets = torch.full_like(own, IGNORED)
        targets[:, :-1] = own[:, 1:]
        if shift == "per_sample":
            targets[:, :-1].masked_fill_(restarts(self.position_ids), IGNORED)
        return targets


def restarts(position_ids: Tensor) -> Tensor:
    """(B, T-1) bool: element t+1 does not continue the sample of element t."""
    return position_ids[:, 1:] != position_ids[:, :-1] + 1


def sample_index(position_ids: Tensor) -> Tensor:
    """(B, T) number of each element's sample within its row."""
    index = torch.zeros_like(position_ids)
    index[:, 1:] = restarts(position_ids).cumsum(dim=1)
    return index


def take(values: Tensor, index: Tensor) -> Tensor:
    """values (B, T, H) at index (B, T') -> (B, T', H)."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def attention_inputs(
    kernel: str,
    position_ids: Tensor,
    dtype: torch.dtype,
    attention_mask: Tensor | None = None,
    num_cached: int = 0,
) -> dict[str, Any]:
    """Keyword arguments that make a Qwen2 decoder layer attend rightly.

    Args:
        kernel: name of the attention implementation: eager, sdpa, flex_attention or flash_attention_2.
        position_ids: (B, Tq). Without mask and cached keys, a restart begins a new sample: block-diagonal causal.
        dtype: of the scores.
        attention_mask: (B, 1, Tq, Tk) explicit mask; None = causal, aligned so that the last query sees every key.
        num_cached: keys in the cache before these queries; unused with an explicit mask.

    Raises:
        ConfigError: an explicit mask is given to flash attention, which has no way to apply it.
    """
    flash = kernel.startswith("flash_attention")
    if attention_mask is not None:
        if flash:
            raise ConfigError(f"{kernel} cannot apply an explicit attention mask: load the model with attn='sdpa'")
        return {"attention_mask": _for_kernel(kernel, attention_mask, dtype)}
    if position_ids.shape[1] == 1:
        return {"attention_mask": None}
    packed = num_cached == 0 and bool(restarts(position_ids).any())
    if flash:
        return {"attention_mask": None} | (_varlen(position_ids) if packed else {})
    if kernel == "sdpa" and not packed and num_cached == 0:
        return {"attention_mask": None}  # the kernel's own causal path, which needs no mask in memory
    return {"attention_mask": _for_kernel(kernel, _causal(position_ids, packed, num_cached), dtype)}


def _causal(position_ids: Tensor, packed: bool, num_cached: int) -> Tensor:
    """(B or 1, 1, Tq, Tk) bool causal mask, block-diagonal by sample when packed."""
    length, device = position_ids.shape[1], position_ids.device
    mask = torch.ones(1, 1, length, num_cached + length, dtype=torch.bool, device=device).tril(num_cached)
    if not packed:
        return mask
    sample = sample_index(position_ids)
    return mask & (sample[:, None, :, None] == sample[:, None, None, :])


def _for_kernel(kernel: str, mask: Tensor, dtype: torch.dtype) -> Any:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    if kernel == "flex_attention":
        return _block_mask(mask)
    if kernel == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask


def _block_mask(mask: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def attends(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[row, 0, query, key]

    rows, _, num_queries, num_keys = mask.shape
    return create_block_mask(attends, rows, None, num_queries, num_keys, device=mask.device)


def _varlen(position_ids: Tensor) -> dict[str, Any]:
    """Flash attention's bounds of the samples of all rows, laid end to end."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = restarts(position_ids)
    total = torch.tensor([position_ids.numel()], device=position_ids.device)
    bounds = torch.cat([starts.flatten().nonzero().flatten(), total]).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
