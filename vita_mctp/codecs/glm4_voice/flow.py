"""The flow: speech tokens -> log-mel frames, by flow matching with classifier-free guidance.

B streams, N tokens, F mel frames, M mel bands. Streams of one batch may have different lengths; each comes out as if it
were alone. The parts are open (`encode_tokens`, `regulate`, `solve`), for a streaming decoder that stretches a window
of tokens to frames of its own choosing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.glm4_voice.decoder_config import (
    HOP_LENGTH,
    SAMPLE_RATE,
    CfmConfig,
    EstimatorConfig,
    FlowConfig,
    RegulatorConfig,
)
from vita_mctp.codecs.glm4_voice.estimator import Estimator
from vita_mctp.codecs.glm4_voice.flow_encoder import FlowEncoder
from vita_mctp.codecs.glm4_voice.ragged import RaggedGroupNorm, length_mask, masked, ragged_lengths
from vita_mctp.errors import ConfigError

REFERENCE_STEPS = 10
REFERENCE_SEED = 42
"""The reference seeds torch's global generator with it at each call."""


class LengthRegulator(nn.Module):
    """Smooths token states that have been stretched to frames: convolutions, each with a norm over all time."""

    def __init__(self, config: RegulatorConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = []
        for _ in config.sampling_ratios:
            layers += [nn.Conv1d(width, width, 3, padding=1), RaggedGroupNorm(1, width), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, M, F) -> (B, M, F)."""
        for layer in self.model:
            x = layer(x, mask) if isinstance(layer, RaggedGroupNorm) else layer(masked(x, mask))
        return x


class ConditionalFlowMatching(nn.Module):
    """Integrates the estimator's guided velocity from noise to mel with Euler steps."""

    def __init__(self, config: CfmConfig, estimator: EstimatorConfig) -> None:
        super().__init__()
        self.guidance = config.inference_cfg_rate
        self.estimator = Estimator(estimator)

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


def nearest_tokens(num_tokens: int, num_frames: int) -> Tensor:
    """(F,) the token whose state each frame starts from, as torch stretches N tokens to F frames ("nearest")."""
    tokens = torch.arange(num_tokens, dtype=torch.float32)[None, None]
    return functional.interpolate(tokens, size=num_frames, mode="nearest")[0, 0].long()


class Flow(nn.Module):
    """GLM-4-Voice's flow under its released tensor names."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder = FlowEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.length_regulator = LengthRegulator(config.length_regulator)
        self.decoder = ConditionalFlowMatching(config.decoder.cfm_params, config.decoder.estimator)

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
            mu: (B, F, M) as `encode` gives it.
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
