"""The flow of such a decoder: conformer layers that read codes, and flow matching with classifier-free guidance.

B streams, N codes, D width, A heads, E = D / A, F mel frames, M mel bands. Position r = i - j is that of key j as seen
from query i. Streams of one batch may have different lengths; each comes out as if it were alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.config import FlowConfig
from vita_mctp.codecs.flow_decoder.layers import length_mask, masked, named, ragged_lengths
from vita_mctp.errors import ConfigError

REFERENCE_STEPS = 10


def relative_positions(num_tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """(2N - 1, D) interleaved sines and cosines of the positions N-1, ..., -(N-1) (Transformer-XL; ESPnet)."""
    positions = torch.arange(num_tokens - 1, -num_tokens, -1.0, device=device)[:, None]
    rates = torch.exp(torch.arange(0, width, 2.0, device=device) * -(math.log(10_000.0) / width))
    return torch.stack([torch.sin(positions * rates), torch.cos(positions * rates)], dim=-1).flatten(1)


def attended_keys(
    num_tokens: int, block_size: int, offsets: Tensor | None, lengths: list[int] | None, device: torch.device
) -> Tensor:
    """(B or 1, 1, N, N) bool: a query sees its own block of tokens and all before, within its stream.

    Args:
        offsets: (B,) position of each stream's first token, counted from where a block begins; None: all begin a block.
    """
    steps = torch.arange(num_tokens, device=device)
    starts = torch.zeros(1, dtype=torch.int64, device=device) if offsets is None else offsets.to(device)
    block = (steps + starts[:, None]) // block_size
    seen = block[:, None, :] <= block[:, :, None]
    if lengths is not None:
        seen = seen & (steps < torch.tensor(lengths, device=device)[:, None])[:, None]
    return seen[:, None]


class RelativeAttention(nn.Module):
    """score(i, j) = ((q_i + u) k_j + (q_i + v) W p_{i-j}) / sqrt(E), of Transformer-XL (Dai et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """(B, N, D), (2N - 1, D) and a bool mask (B or 1, 1, N, N) -> (B, N, D)."""
        query, key, value = (self._split(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        offset = self._split(self.linear_pos(positions)[None])  # 1, A, 2N - 1, E
        by_offset = _align((query + self.pos_bias_v[:, None]) @ offset.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        mixed = functional.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None], key, value, attn_mask=by_offset.masked_fill(~seen, float("-inf"))
        )
        y: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, A, N, E)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _align(scores: Tensor) -> Tensor:
    """(B, A, N, 2N - 1) by position, from N - 1 down -> (B, A, N, N) by key: row i is moved left by N - 1 - i."""
    num_tokens = scores.shape[2]
    skewed = functional.pad(scores, (1, 0)).flatten(2)[..., num_tokens:]
    return skewed.unflatten(2, (num_tokens, -1))[..., :num_tokens]


class ConformerLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width, heads)
        self.feed_forward = named(w_1=nn.Linear(width, hidden), silu=nn.SiLU(), w_2=nn.Linear(hidden, width))
        self.norm_ff = nn.LayerNorm(width)
        self.norm_mha = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, seen)
        y: Tensor = x + self.feed_forward(self.norm_ff(x))
        return y


class InputLayer(nn.Module):
    """Linear and norm, scaled by sqrt(D) as absolute embeddings are."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.out = nn.Sequential(nn.Linear(size, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(x) * self.scale
        return y


class ConditionalFlowMatching(nn.Module):
    """Integrates the estimator's guided velocity from noise to mel with Euler steps."""

    def __init__(self, guidance: float, estimator: nn.Module) -> None:
        super().__init__()
        self.guidance, self.estimator = guidance, estimator

    def forward(self, noise: Tensor, conditions: Tensor, mask: Tensor | None, steps: int) -> Tensor:
        """(B, M, F) noise and (B, 3 M, F) conditions -> (B, M, F) mel."""
        x = noise
        for time, duration in time_steps(steps):
            x = x + duration * self.velocity(x, conditions, time.to(x.device), mask)
        return x

    def velocity(self, x: Tensor, conditions: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        """(1 + g) E(x, conditions) - g E(x, 0) (Ho & Salimans 2022), both from one doubled batch."""
        both = torch.cat([torch.cat([x, conditions], 1), torch.cat([x, torch.zeros_like(conditions)], 1)])
        masks = None if mask is None else torch.cat([mask, mask])
        guided, free = self.estimator(both, time, masks).chunk(2)
        return (1.0 + self.guidance) * guided - self.guidance * free


def time_steps(steps: int) -> list[tuple[Tensor, float]]:
    """Time and length of each Euler step: 1 - cos on [0, pi / 2], added up in float32 as the reference does.

    Raises:
        ConfigError: `steps` is not positive.
    """
    if steps < 1:
        raise ConfigError(f"the flow wants at least one step, got {steps}; {REFERENCE_STEPS} are the released number")
    span = 1 - torch.cos(torch.linspace(0, 1, steps + 1, dtype=torch.float32) * 0.5 * math.pi)
    time, steps_taken = span[0], []
    for end in span[1:]:
        duration = end - time
        steps_taken.append((time, float(duration)))
        time = time + duration
    return steps_taken


class Flow(nn.Module):
    """Codes -> log-mel frames. A codec's own class adds `encoder` and `decoder`, and says what `mean` is."""

    decoder: ConditionalFlowMatching

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config: FlowConfig = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the device and type that the flow computes with."""
        return self.spk_embed_affine_layer.weight.new_zeros(0)

    def mean(self, codes: Tensor, lengths: Tensor, offsets: Tensor, owners: Tensor, frame_lengths: Tensor) -> Tensor:
        """What the mel of windows of longer streams is to become, on average.

        Args:
            codes: (B, N) int64; what lies beyond a window's length does not matter.
            lengths: (B,) codes of each window, 1..N.
            offsets: (B,) number of codes in front of each window, which it does not see.
            owners: (B, F) the code of each frame, counted from the window's first one.
            frame_lengths: (B,) frames of each window, 1..F.

        Returns:
            mu (B, F, M), zeros beyond each window's frames.
        """
        raise NotImplementedError

    def speaker(self, embedding: Tensor) -> Tensor:
        """(B, 192) x-vector -> (B, M). The released scripts give zeros, of which the bias remains."""
        projected: Tensor = self.spk_embed_affine_layer(functional.normalize(embedding, dim=1))
        return projected

    def solve(
        self,
        mu: Tensor,
        cond: Tensor,
        speaker: Tensor,
        noise: Tensor,
        frame_lengths: Tensor | None = None,
        steps: int = REFERENCE_STEPS,
    ) -> Tensor:
        """From noise to mel.

        Args:
            mu: (B, F, M), what the mel is to become on average.
            cond: (B, M, F) mel frames that are already known, zeros elsewhere.
            speaker: (B, M).
            noise: (B, M, F), standard normal.
            frame_lengths: (B,) frames of each stream, 1..F; None: all F.
            steps: Euler steps, each two calls of the estimator; time runs as 1 - cos in any number of them.

        Returns:
            (B, M, F), zeros beyond each stream's frames.
        """
        mask = length_mask(ragged_lengths(frame_lengths, mu.shape[1]), mu, mu.shape[1])
        conditions = torch.cat([mu.transpose(1, 2), speaker[..., None].expand_as(cond), cond], dim=1)
        return masked(self.decoder(noise, conditions, mask, steps), mask)
