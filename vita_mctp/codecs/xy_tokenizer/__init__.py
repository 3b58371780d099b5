"""XY-Tokenizer: any voice at any rate -> 12.5 frames a second of 8 codes, and back to samples at 16 kHz.

The network sees 30 s both ways at once, so it cannot stream by itself. The authors speak long answers in windows of
375 frames of codes, of which 250 are kept; `decode_whole` does that. Streaming, and `decode`, are in windows of our
own: each hop of frames is spoken with some before and behind it, and its own samples are kept, without a cross-fade.

N frames of codes, Q codebooks, T samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vita_mctp.arrays import check_shapes
from vita_mctp.audio.mel import HOP, SAMPLE_RATE, whisper_log_mel
from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.base import AudioDecoder, check_ids
from vita_mctp.codecs.released import load_tensors, shapes_of, without_memory
from vita_mctp.codecs.xy_tokenizer.networks import PACKED, QuantizerConfig, XyConfig, XyNetwork, sinusoids
from vita_mctp.schema import Schema
from vita_mctp.types import AudioBlock, AudioCodes, Code, FloatArray, Wave, WaveChunk

WEIGHTS_FILES = ("model.safetensors", "xy_tokenizer.ckpt")
RELEASED_KEY = "generator"
"""Of the released file, under which its tensors lie."""
REMEDY = "download xy_tokenizer.ckpt of fdugyt/XY_Tokenizer (Apache-2.0)"
SAMPLES_PER_FRAME = HOP * 2 * PACKED
FRAME_RATE = Fraction(SAMPLE_RATE, SAMPLES_PER_FRAME)
WINDOW, KEPT = 375, 250
"""Frames of codes that the network takes at most, and those that the authors keep of each window, 20 s."""

_ENCODER = ("semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder", "pre_rvq_adapter", "downsample")
_DECODER = ("post_rvq_adapter", "upsample", "acoustic_decoder", "vocos")


def training_buffers(config: QuantizerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codebooks' moving averages: released, of no use to finished codebooks, never used."""
    size = config.codebook_size
    shapes = {"inited": (1,), "cluster_size": (size,), "embed_avg": (size, config.codebook_dim)}
    books = range(config.num_quantizers)
    return {f"quantizer.quantizers.{book}.{name}": shape for book in books for name, shape in shapes.items()}


def load_network(
    folder: Path, unused: tuple[str, ...] = (), device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[XyConfig, XyNetwork]:
    """A folder's network, for inference, without the parts `unused`; a file may lack the positions, which are fixed.

    Raises CheckpointError: a file, key or tensor is missing, damaged or does not fit; the message names it.
    """
    config = XyConfig.from_folder(folder)
    network = without_memory(lambda: XyNetwork(config))
    path = next((path for name in WEIGHTS_FILES if (path := folder / name).is_file()), folder / WEIGHTS_FILES[-1])
    tensors = load_tensors(path, REMEDY, None if path.suffix == ".safetensors" else RELEASED_KEY)
    needed = shapes_of(network)
    positions = {name: shape for name, shape in needed.items() if name.endswith("positional_embedding")}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    optional = {**positions, **training_buffers(config.quantizer_kwargs)}
    check_shapes(found, {name: needed[name] for name in needed if name not in positions}, path, REMEDY, optional)
    for part in unused:
        delattr(network, part)
    computed = {name: sinusoids(*shape) for name, shape in positions.items()}
    chosen = {name: {**computed, **tensors}[name].to(device, dtype) for name in network.state_dict()}
    network.load_state_dict(chosen, assign=True)
    return config, network.eval().requires_grad_(False)


class _Xy:
    name = "xy_tokenizer"
    sample_rate, frame_rate = SAMPLE_RATE, FRAME_RATE

    def __init__(self, config: XyConfig, network: XyNetwork) -> None:
        self.config, self.network = config, network
        self.codebook_size = config.quantizer_kwargs.codebook_size
        self.num_codebooks = config.quantizer_kwargs.num_quantizers


class XyTokenizer(_Xy):
    """Waves -> codes. As the authors' program, it gives T // 1280 frames: a last one that is not whole is lost."""

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> XyTokenizer:
        """As `load_network`."""
        return cls(*load_network(folder, _DECODER, device, dtype))

    def encode(self, wave: Wave) -> AudioCodes:
        samples = sinc_resample(wave.samples, wave.sample_rate, self.sample_rate)
        size, step = WINDOW * SAMPLES_PER_FRAME, KEPT * SAMPLES_PER_FRAME
        rows = [self._encode(samples[at : at + size])[:KEPT] for at in range(0, len(samples), step)]
        ids = torch.cat([torch.zeros(0, self.num_codebooks, dtype=torch.int64), *rows])
        whole = len(samples) // SAMPLES_PER_FRAME
        return AudioCodes(ids[:whole].numpy(), self.codebook_size, self.frame_rate, self.name)

    def features(self, samples: FloatArray) -> tuple[Tensor, int]:
        """(T,) of at most 30 s -> (M, F), and the states that are the recording's.

        A few frames of the silence that follows to 30 s are kept, since the convolutions look into it.
        """
        padded = np.pad(samples, (0, WINDOW * SAMPLES_PER_FRAME - len(samples)))
        states = -(-len(samples) // HOP) // 2
        mel = whisper_log_mel(padded, self.config.semantic_encoder_kwargs.num_mel_bins)
        return torch.from_numpy(mel[:, : 2 * states + 2]), states

    @torch.inference_mode()
    def _encode(self, samples: FloatArray) -> Tensor:
        """(N, Q) of one window."""
        mel, states = self.features(samples)
        if states < PACKED:
            return torch.zeros(0, self.num_codebooks, dtype=torch.int64)
        ids, _ = self.network.quantizer.distances(self.network.pack(mel, states))
        return ids.cpu()


class XyWindows(Schema):
    """How a stream is cut, in frames of codes."""

    hop: Annotated[int, Field(ge=1, le=WINDOW)] = 10
    left: Annotated[int, Field(ge=0, le=WINDOW)] = 50
    """Frames before a hop that it is spoken with."""
    right: Annotated[int, Field(ge=0, le=WINDOW)] = 2
    """Frames behind it, for which it waits."""
    first: Annotated[int, Field(ge=0, le=WINDOW)] = 0
    """The first hop, 0: as the others. With `hop - right`, sound comes with every `hop` frames received."""


@dataclass(frozen=True)
class XyState:
    """One stream between two blocks: the newest codes, how many came, and how many are spoken."""

    codes: tuple[Code, ...] = ()
    received: int = 0
    spoken: int = 0


class XyDecoder(_Xy, AudioDecoder):
    """Codes -> wave, offline or in blocks; the samples do not depend on how a stream is cut."""

    def __init__(self, config: XyConfig, network: XyNetwork, windows: XyWindows | None = None) -> None:
        super().__init__(config, network)
        self.windows = windows or XyWindows(first=8)
        self.block_size = self.windows.hop

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        windows: Mapping[str, Any] | None = None,
    ) -> XyDecoder:
        """As `load_network`. windows: fields of `XyWindows` that differ from its defaults; ConfigError for bad ones.
        Without any, the first hop is short by `right`.
        """
        cut = None if windows is None else XyWindows.parse(windows, f"windows of the audio decoder {cls.name}")
        return cls(*load_network(folder, _ENCODER, device, dtype), cut)

    def start(self, seed: int = 0) -> XyState:
        """Nothing here is random."""
        return XyState()

    def decode_block(self, block: AudioBlock, state: XyState) -> tuple[WaveChunk, XyState]:
        """Raises ConfigError for an id that is none of this codec's."""
        check_ids(block.codes, self.codebook_size, self.name)
        codes, received, spoken = state.codes + block.codes, state.received + len(block.codes), state.spoken
        hop, left, right = self.windows.hop, self.windows.left, self.windows.right
        first = received - len(codes)
        pieces = [np.zeros(0, np.float32)]
        while (until := spoken + hop if spoken else self.windows.first or hop) + right <= received or (
            block.is_last and spoken < received
        ):
            end, begin = min(until, received), max(0, spoken - left)
            wave = self._speak(codes[begin - first : min(end + right, received) - first])
            pieces.append(wave[(spoken - begin) * SAMPLES_PER_FRAME : (end - begin) * SAMPLES_PER_FRAME])
            spoken = end
        kept = codes[max(0, spoken - left - first) :]
        chunk = WaveChunk(np.concatenate(pieces), self.sample_rate, block.index, block.is_last)
        return chunk, XyState(kept, received, spoken)

    def decode_whole(self, codes: AudioCodes) -> Wave:
        """As the authors' program: all that the network takes at once, and 20 s of each window of a longer answer."""
        every = codes.as_block().codes
        pieces = [self._speak(every[at : at + WINDOW])[: KEPT * SAMPLES_PER_FRAME] for at in range(0, len(every), KEPT)]
        return Wave(np.concatenate([np.zeros(0, np.float32), *pieces]), self.sample_rate)

    @torch.inference_mode()
    def _speak(self, codes: tuple[Code, ...]) -> FloatArray:
        wave: FloatArray = (
            self.network.speak(torch.tensor(codes, device=self.network.like.device)).float().cpu().numpy()
        )
        return wave
