"""The nano codec, small enough to ship inside the package: one codebook of 1,000 codes at 12.5 per second.

An encoder for any voice, and a decoder to the answer voice.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import soxr
import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import REMEDY, LogMel, NanoCodecConfig
from vita_mctp.codecs.nano.networks import (
    FiniteScalarQuantizer,
    MelState,
    NanoEncoder,
    NanoMelDecoder,
    NanoVocoder,
    VocoderState,
)
from vita_mctp.codecs.released import read_tensors, shapes_of
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray, Wave, WaveChunk

NAME = "nano"
ENCODER_FILE = "encoder.safetensors"
DECODER_FILE = "decoder.safetensors"
_Module = TypeVar("_Module", bound=nn.Module)


class NanoTokenizer:
    """Any voice at any rate -> codes. 1.2 s of context on either side of a code."""

    name = NAME
    num_codebooks = 1

    def __init__(self, config: NanoCodecConfig, encoder: NanoEncoder) -> None:
        self.config, self.encoder, self.features = config, encoder, LogMel(config)
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.sample_rate = config.sample_rate

    @classmethod
    def from_folder(cls, folder: Path) -> NanoTokenizer:
        """Read config.json and encoder.safetensors; CheckpointError names what is missing or does not fit."""
        config = NanoCodecConfig.load(folder)
        return cls(config, load_weights(NanoEncoder(config), folder / ENCODER_FILE))

    @torch.inference_mode()
    def encode(self, wave: Wave) -> AudioCodes:
        samples = wave.samples
        if wave.sample_rate != self.sample_rate:
            samples = soxr.resample(samples, wave.sample_rate, self.sample_rate).astype(np.float32)
        _, codes = self.encoder(self.features(pad_to_codes(samples, self.config)))
        return AudioCodes(codes[0].numpy(), self.codebook_size, self.frame_rate, self.name)


class DecoderNetworks(nn.Module):
    """Both networks of a decoder's file."""

    def __init__(self, config: NanoCodecConfig) -> None:
        super().__init__()
        self.mel_decoder, self.vocoder = NanoMelDecoder(config), NanoVocoder(config)


class StreamState(NamedTuple):
    """One answer between two blocks."""

    mel: MelState | None
    vocoder: VocoderState | None


class NanoDecoder:
    """Codes -> the answer voice, offline or in blocks."""

    name = NAME
    num_codebooks = 1
    block_size = 8

    def __init__(self, config: NanoCodecConfig, mel_decoder: NanoMelDecoder, vocoder: NanoVocoder) -> None:
        self.config, self.mel_decoder, self.vocoder = config, mel_decoder, vocoder
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.sample_rate = config.sample_rate

    @classmethod
    def from_folder(cls, folder: Path) -> NanoDecoder:
        """Read config.json and decoder.safetensors; CheckpointError names what is missing or does not fit."""
        config = NanoCodecConfig.load(folder)
        modules = load_weights(DecoderNetworks(config), folder / DECODER_FILE)
        return cls(config, modules.mel_decoder, modules.vocoder)

    def start(self, seed: int = 0) -> StreamState:
        """This decoder draws nothing; `seed` is accepted and has no effect."""
        return StreamState(None, None)

    @torch.inference_mode()
    def decode_block(self, block: AudioBlock, state: StreamState) -> tuple[WaveChunk, StreamState]:
        codes = torch.tensor(block.codes, dtype=torch.long)[None]
        frames, mel = self.mel_decoder(self.quantizer.embed(codes), state.mel, block.is_last)
        samples, vocoder = self.vocoder(frames, state.vocoder, block.is_last)
        chunk = WaveChunk(_to_array(samples), self.sample_rate, block.index, block.is_last)
        return chunk, StreamState(mel, vocoder)

    def decode(self, codes: AudioCodes) -> Wave:
        chunk, _ = self.decode_block(codes.as_block(), self.start())
        return Wave(chunk.samples, self.sample_rate)


def pad_to_codes(samples: FloatArray, config: NanoCodecConfig) -> Tensor:
    """(T,) samples -> (1, T') with zeros up to a whole number of codes."""
    wave = torch.from_numpy(np.ascontiguousarray(samples))
    return functional.pad(wave, (0, -len(wave) % config.samples_per_code))[None]


def load_weights(module: _Module, path: Path) -> _Module:
    """The module, filled from a safetensors file, half precision widened; every tensor must be there and fit."""
    tensors = read_tensors(path, shapes_of(module), REMEDY)
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return module.eval().requires_grad_(False)


def _to_array(samples: Tensor) -> FloatArray:
    array: FloatArray = samples[0].clamp(-1.0, 1.0).numpy()
    return array
