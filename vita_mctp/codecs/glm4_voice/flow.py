"""GLM-4-Voice's flow: speech tokens -> log-mel frames.

B streams, N tokens, F mel frames, M mel bands. Streams of one batch may have different lengths; each comes out as if it
were alone. The parts are open (`encode_tokens`, `regulate`, `solve`), for a streaming decoder that stretches a window
of tokens to frames of its own choosing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.flow_decoder.estimator import Estimator
from vita_mctp.codecs.flow_decoder.flow import (
    REFERENCE_STEPS,
    ConditionalFlowMatching,
    ConformerLayer,
    Flow,
    InputLayer,
    attended_keys,
    relative_positions,
)
from vita_mctp.codecs.flow_decoder.layers import RaggedGroupNorm, length_mask, masked, ragged_lengths
from vita_mctp.codecs.glm4_voice.config import HOP_LENGTH, SAMPLE_RATE, BlockEncoderConfig, Glm4FlowConfig
from vita_mctp.errors import ConfigError

REFERENCE_SEED = 42
"""The reference seeds torch's global generator with it at each call."""


class BlockEncoder(nn.Module):
    """Embedded tokens -> hidden states, causal over blocks of tokens."""

    def __init__(self, config: BlockEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = InputLayer(config.input_size, config.output_size)
        self.encoders = nn.ModuleList(
            ConformerLayer(config.output_size, config.attention_heads, config.linear_units)
            for _ in range(config.num_blocks)
        )
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, lengths: list[int] | None = None, offsets: Tensor | None = None) -> Tensor:
        """(B, N, input size) -> (B, N, D); states beyond a stream's length have no meaning."""
        x = self.embed(x)
        positions = relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        seen = attended_keys(x.shape[1], self.config.block_size, offsets, lengths, x.device)
        for layer in self.encoders:
            x = layer(x, positions, seen)
        y: Tensor = self.after_norm(x)
        return y


class LengthRegulator(nn.Module):
    """Smooths token states that have been stretched to frames: convolutions, each with a norm over all time."""

    def __init__(self, width: int, convolutions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(convolutions):
            layers += [nn.Conv1d(width, width, 3, padding=1), RaggedGroupNorm(1, width), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, F) -> (B, M, F)."""
        for layer in self.model:
            x = layer(x, mask) if isinstance(layer, RaggedGroupNorm) else layer(masked(x, mask))
        return x


def nearest_tokens(num_tokens: int, num_frames: int) -> Tensor:
    """(F,) the token whose state each frame starts from, as torch stretches N tokens to F frames ("nearest")."""
    tokens = torch.arange(num_tokens, dtype=torch.float32)[None, None]
    return functional.interpolate(tokens, size=num_frames, mode="nearest")[0, 0].long()


class Glm4Flow(Flow):
    """The flow under its released tensor names."""

    config: Glm4FlowConfig

    def __init__(self, config: Glm4FlowConfig) -> None:
        super().__init__(config)
        self.encoder = BlockEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.length_regulator = LengthRegulator(config.output_size, len(config.length_regulator.sampling_ratios))
        guidance = config.decoder.cfm_params.inference_cfg_rate
        self.decoder = ConditionalFlowMatching(guidance, Estimator(config.decoder.estimator))

    def num_frames(self, num_tokens: int) -> int:
        """Mel frames of so many tokens.

        It is 441 / 64 for each, cut to a whole number; in float32, as the reference has it, some counts (3392, 3776)
        are one frame short.
        """
        seconds = torch.tensor(num_tokens, dtype=torch.float32) / self.config.input_frame_rate
        return int(seconds * SAMPLE_RATE / HOP_LENGTH)

    def encode(
        self, tokens: Tensor, lengths: Tensor | None = None, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What the mel is to become, on average.

        Args:
            tokens: (B, N) int64; what lies beyond a stream's length does not matter.
            lengths: (B,) tokens of each stream, 1..N; None: all N.
            offsets: see `encode_tokens`.

        Returns:
            mu (B, F, M), zeros beyond each stream's frames, and the number of these (B,), or None without `lengths`.
        """
        states = self.encode_tokens(tokens, lengths, offsets)
        if lengths is None:
            frames = nearest_tokens(tokens.shape[1], self.num_frames(tokens.shape[1]))
            return self.regulate(states, frames.expand(len(tokens), -1)), None
        maps = [nearest_tokens(length, self.num_frames(length)) for length in lengths.tolist()]
        frame_lengths = torch.tensor([len(frames) for frames in maps])
        frames = nn.utils.rnn.pad_sequence(maps, batch_first=True)
        return self.regulate(states, frames, frame_lengths), frame_lengths

    def encode_tokens(self, tokens: Tensor, lengths: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        """(B, N) tokens -> (B, N, M) states, one for each token.

        Args:
            tokens: as for `encode`. Ids below 0 stand for 0.
            lengths: as for `encode`.
            offsets: (B,) number of tokens in front of a window of a longer stream. It sets where blocks begin in the
                window; nothing in front of the window is seen. None: windows begin where a block does.
        """
        hidden = self.encoder(
            self.input_embedding(tokens.clamp(min=0)), ragged_lengths(lengths, tokens.shape[1]), offsets
        )
        states: Tensor = self.encoder_proj(hidden)
        return states

    def regulate(self, states: Tensor, frames: Tensor, frame_lengths: Tensor | None = None) -> Tensor:
        """Token states (B, N, M) and the token of each frame (B, F) -> mu (B, F, M).

        `frame_lengths` (B,) are the frames of each stream, 1..F; mu is zero beyond.
        """
        mask = length_mask(ragged_lengths(frame_lengths, frames.shape[1]), states, frames.shape[1])
        index = frames.to(states.device)[:, None].expand(-1, states.shape[2], -1)
        stretched = states.transpose(1, 2).gather(2, index)
        return masked(self.length_regulator(stretched, mask), mask).transpose(1, 2)

    def mean(self, codes: Tensor, lengths: Tensor, offsets: Tensor, owners: Tensor, frame_lengths: Tensor) -> Tensor:
        return self.regulate(self.encode_tokens(codes, lengths, offsets), owners, frame_lengths)

    def forward(
        self,
        token: Tensor,
        prompt_token: Tensor,
        prompt_feat: Tensor,
        embedding: Tensor,
        noise: Tensor | None = None,
        steps: int = REFERENCE_STEPS,
    ) -> Tensor:
        """The released call, for one stream: mel of the new tokens' frames, (1, M, F - f).

        Args:
            token: (1, n) new tokens.
            prompt_token: (1, p) tokens before them.
            prompt_feat: (1, f, M) their mel, as far as it is known.
            embedding: (1, 192) speaker.
            noise: (1, M, F) for all n + p tokens; None: what the reference draws on a CPU.
            steps: Euler steps.

        Raises:
            ConfigError: there are no tokens, or more known frames than the tokens make.
        """
        tokens = torch.cat([prompt_token, token], dim=1)
        num_frames, known = self.num_frames(tokens.shape[1]), prompt_feat.shape[1]
        if not known <= num_frames or not num_frames:
            raise ConfigError(
                f"{tokens.shape[1]} tokens make {num_frames} mel frames, of which {known} are given as known: "
                "give at least one token, and no more known frames than there are"
            )
        mu, _ = self.encode(tokens)
        cond = functional.pad(prompt_feat.transpose(1, 2), (0, num_frames - known))
        noise = reference_noise(self.config.output_size, num_frames).to(mu) if noise is None else noise
        return self.solve(mu, cond, self.speaker(embedding), noise, steps=steps)[:, :, known:]


def reference_noise(num_bands: int, num_frames: int) -> Tensor:
    """(1, M, F): what the reference draws on a CPU. It is not a prefix of the draw for more frames."""
    generator = torch.Generator().manual_seed(REFERENCE_SEED)
    return torch.randn(1, num_bands, num_frames, generator=generator)
