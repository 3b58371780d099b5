"""Who attends to whom, said explicitly to every attention kernel.

transformers decides silently between causal, packed and padded attention, from arguments that are easy to get wrong,
and aligns a kernel's own causal flag differently with and without a cache. Here the mask is decided once, from the
positions, and handed to each kernel in the form it takes, so that all kernels compute the same.

B rows, Tq queries, Tk keys (cached ones + Tq). A mask is (B, 1, Tq, Tk): bool, True = attend, or added to the scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vita_mctp.errors import ConfigError


def restarts(position_ids: Tensor) -> Tensor:
    """(B, T-1) bool: element t+1 does not continue the sample of element t."""
    return position_ids[:, 1:] != position_ids[:, :-1] + 1


def sample_index(position_ids: Tensor) -> Tensor:
    """(B, T) number of each element's sample within its row."""
    index = torch.zeros_like(position_ids)
    index[:, 1:] = restarts(position_ids).cumsum(dim=1)
    return index


def attention_inputs(
    kernel: str,
    position_ids: Tensor,
    dtype: torch.dtype,
    attention_mask: Tensor | None = None,
    num_cached: int = 0,
) -> dict[str, Any]:
    """Keyword arguments that make a transformers decoder layer attend rightly.

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
